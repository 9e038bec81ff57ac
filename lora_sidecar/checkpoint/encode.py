"""A checkpoint's values to bytes, the same for equal values.

The trap guarded against is a file that only this program can read. Both formats are the same lines: two for the format
and the sum, then one for each field and one for each adapter. Each value is JSON, in the YAML file too (which is valid
YAML), so aliases, tags and implicit conversions cannot occur. `decode` is the way back, and
`docs/checkpoint-format.md` is the specification.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from typing import Final, assert_never

import msgspec

from lora_sidecar.checkpoint.decode import JSON_START, VERSION, YAML_START, Checkpoint, Format
from lora_sidecar.checkpoint.stored import (
    StoredCheckpoint,
    StoredIncarnation,
    StoredOrphan,
    StoredPause,
    StoredSuspect,
    StoredWithdrawn,
    stored_adapter,
)

# Characters that YAML forbids or takes for line breaks, or that make a terminal show another text than the file's. They
# only ever stand inside strings, where JSON lets them be escaped.
_ESCAPED: Final = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")


def encode(checkpoint: Checkpoint, format: Format) -> bytes:  # noqa: A002 - the config's own word
    """The file's bytes, which may be more than `MAX_BYTES`, that `decode` refuses.

    A start time that is not finite is stored as unknown. Raises `UnicodeEncodeError` for a lone surrogate, which no
    reader of names, paths or reasons lets pass.
    """
    fields = _fields(_stored(checkpoint))
    match format:
        case "json":
            start = JSON_START + b'"sha256": "%b",\n'
            payload = b",\n".join(b'"%b": %b' % (name, _json_value(value)) for name, value in fields) + b"\n}\n"
        case "yaml":
            start = YAML_START + b"sha256: %b\n"
            payload = b"".join(b"%b:%b\n" % (name, _yaml_value(value)) for name, value in fields)
        case _:
            assert_never(format)
    payload = _legible(payload)
    return start % hashlib.sha256(payload).hexdigest().encode() + payload


def _stored(checkpoint: Checkpoint) -> StoredCheckpoint:
    desired = checkpoint.desired
    start_time = desired.incarnation.start_time
    if start_time is not None and not math.isfinite(start_time):
        start_time = None
    return StoredCheckpoint(
        version=VERSION,
        generation=checkpoint.generation,
        server=checkpoint.server,
        incarnation=StoredIncarnation(desired.incarnation.number, start_time),
        adapters=[stored_adapter(one) for _, one in sorted(desired.adapters.items())],
        listed=sorted(desired.listed),
        orphaned=[StoredOrphan(name, path) for name, path in sorted(desired.orphaned.items())],
        withdrawn=[
            StoredWithdrawn(name, one.pending, None if one.declared is None else stored_adapter(one.declared))
            for name, one in sorted(desired.withdrawn.items())
        ],
        paused=None if desired.paused is None else StoredPause(desired.paused.reason),
        suspects=[
            StoredSuspect(name, one.path, one.deaths, one.accused, one.files)
            for name, one in sorted(desired.suspects.items())
        ],
    )


def _fields(stored: StoredCheckpoint) -> Iterable[tuple[bytes, bytes | list[bytes]]]:
    """Each field's value as JSON, or the items of a list, each as JSON; what is empty and optional is left out."""
    optional = {field.name for field in msgspec.structs.fields(stored) if not field.required}
    for name in stored.__struct_fields__:
        value = getattr(stored, name)
        if value or name not in optional:
            yield name.encode(), [*map(msgspec.json.encode, value)] if isinstance(value, list) else _encode(value)


def _encode(value: object) -> bytes:
    return msgspec.json.encode(value)


def _json_value(value: bytes | list[bytes]) -> bytes:
    if isinstance(value, bytes):
        return value
    return b"[\n  " + b",\n  ".join(value) + b"\n]" if value else b"[]"


def _yaml_value(value: bytes | list[bytes]) -> bytes:
    if isinstance(value, bytes):
        return b" " + value
    return b"".join(b"\n- " + one for one in value) if value else b" []"


def _legible(payload: bytes) -> bytes:
    """The same text, with what no file or terminal should hold written otherwise."""
    text = payload.decode()
    if text.isascii() and "\x7f" not in text:
        return payload
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()
