"""A checkpoint's values to bytes, the same for equal values, and quickly where little has changed.

The trap guarded against is a save that costs more than its disk. Of 10,000 adapters each copy of the whole takes longer
than to write it: most of that is the kernel's, for memory that is new to the process. So long pieces stay apart.

Both formats are the same lines: two for the format and the sum, then one for each field and one for each adapter. Each
value is JSON, in the YAML file too (which is valid YAML), so aliases, tags and implicit conversions cannot occur.
`codec` is the way back. `docs/checkpoint-format.md` is the specification.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any, Final, assert_never

from lora_sidecar.checkpoint.decode import JSON_START, VERSION, YAML_START, Checkpoint, Format
from lora_sidecar.checkpoint.lines import Lines, dumped
from lora_sidecar.core.model import Adapter

_BETWEEN: Final[dict[Format, bytes]] = {"json": b",\n  ", "yaml": b"\n- "}
"""What stands between the items of a list, and here before each of them."""

LONG: Final = 8 * 1024
"""Bytes of a piece from which on it is handed out as it is."""


def encode(checkpoint: Checkpoint, format: Format) -> bytes:  # noqa: A002 - the config's own word
    """The file's bytes."""
    return b"".join(Encoder(format).pieces(checkpoint))


class Encoder:
    """Makes one server's files, one after another: what has not changed since the last one is not made again."""

    def __init__(self, format: Format) -> None:  # noqa: A002
        self._format: Format = format
        self._lines = Lines(_BETWEEN[format])

    def pieces(self, checkpoint: Checkpoint) -> tuple[bytes, ...]:
        """The file's bytes, piece by piece: together the same for equal checkpoints. Never fails, whatever the names.

        A start time that is not finite is stored as unknown. The result may be larger than `MAX_BYTES`, which `decode`
        refuses.
        """
        fields = _fields(checkpoint, self._lines).items()
        match self._format:
            case "json":
                start = JSON_START + b'"sha256": "%b",\n'
                every = [p for name, value in fields for p in (b",\n", b'"%b": ' % name.encode(), *_json_value(value))]
                every = [*every[1:], b"\n}\n"]
            case "yaml":
                start = YAML_START + b"sha256: %b\n"
                every = [p for name, value in fields for p in (name.encode(), b":", *_yaml_value(value), b"\n")]
            case _:
                assert_never(self._format)
        payload = _merged(every)
        digest = hashlib.sha256()
        for piece in payload:
            digest.update(piece)
        return tuple(_merged([start % digest.hexdigest().encode(), *payload]))


def _merged(every: Iterable[bytes]) -> list[bytes]:
    """The same bytes, with short pieces put together."""
    merged: list[bytes] = []
    short: list[bytes] = []
    for piece in every:
        if len(piece) < LONG:
            short.append(piece)
            continue
        if short:
            merged.append(b"".join(short))
            short = []
        merged.append(piece)
    return [*merged, b"".join(short)]


def _fields(checkpoint: Checkpoint, lines: Lines) -> dict[str, bytes | list[bytes]]:
    """Each field's value as JSON, or the text of a list's items, each with what stands before it."""
    desired = checkpoint.desired
    start_time = desired.incarnation.start_time
    if start_time is not None and not math.isfinite(start_time):
        start_time = None
    adapters, listed = lines.of(desired.adapters, desired.listed)
    fields: dict[str, bytes | list[bytes]] = {
        "version": _dumped(VERSION),
        "generation": _dumped(checkpoint.generation),
        "server": _dumped(checkpoint.server),
        "incarnation": _dumped({"number": desired.incarnation.number, "start_time": start_time}),
        "adapters": adapters,
        "listed": listed,
        "released": lines.text({"name": name, "path": path} for name, path in sorted(desired.released.items())),
    }
    if desired.withdrawn:
        fields["withdrawn"] = lines.text(
            {
                "name": name,
                "pending": one.pending,
                "declared": None if one.declared is None else _adapter_fields(one.declared),
            }
            for name, one in sorted(desired.withdrawn.items())
        )
    if desired.paused is not None:
        fields["paused"] = _dumped({"reason": desired.paused.reason})
    if desired.suspects:
        fields["suspects"] = lines.text(
            {"name": name, "path": one.path, "deaths": one.deaths, "accused": one.accused, "files": one.files}
            for name, one in sorted(desired.suspects.items())
        )
    return fields


def _adapter_fields(adapter: Adapter) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": adapter.name,
        "path": adapter.path,
        "origin": adapter.origin,
        "required": adapter.required,
        "priority": adapter.priority,
        "is_3d_lora_weight": adapter.is_3d_lora_weight,
        "base": adapter.base,
    }
    if adapter.listed_as is not None:
        fields["listed_as"] = adapter.listed_as
    return fields


def _dumped(value: object) -> bytes:
    (line,) = dumped((value,))
    return line


def _json_value(value: bytes | list[bytes]) -> tuple[bytes, ...]:
    match value:
        case bytes():
            return (value,)
        case []:
            return (b"[]",)
        case _:
            # No comma stands before the first.
            return (b"[", value[0][1:], *value[1:], b"\n]")


def _yaml_value(value: bytes | list[bytes]) -> tuple[bytes, ...]:
    match value:
        case bytes():
            return (b" ", value)
        case []:
            return (b" []",)
        case _:
            return tuple(value)
