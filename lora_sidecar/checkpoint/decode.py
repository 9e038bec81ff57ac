"""Checkpoint bytes to values, so that what was remembered is either read exactly or known to be damaged.

Two traps are guarded against. A checksum over the decoded object turns every new field into "corruption" after an
upgrade; so the sum is over the bytes as they are in the file, and the version is looked at only after it. And a parser
fed with a damaged file may crash, hang, or quietly read something else; so nothing is parsed before the sum holds, and
whatever is wrong is a value with a reason, never an exception.

`encoding` is the way back. `docs/checkpoint-format.md` is the specification.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NoReturn

import msgspec
from msgspec import Struct

from lora_sidecar.core.model import Adapter, Desired, Incarnation, Origin, Paused, Suspect, Withdrawn

Format = Literal["json", "yaml"]

VERSION = 1
MAX_BYTES = 16 * 1024 * 1024

_MAX_VERSION = 999_999
JSON_START = b'{"format": "lora-sidecar/checkpoint",\n'
YAML_START = b"format: lora-sidecar/checkpoint\n"
_JSON_SUM = re.compile(rb'"sha256": "([0-9a-f]{64})",\n')
_YAML_SUM = re.compile(rb"sha256: ([0-9a-f]{64})\n")
_YAML_FIELD = re.compile(r"([a-z_0-9]+):(?: (.+))?")

_Tree = dict[str, Any]

_MIGRATIONS: Mapping[int, Callable[[_Tree], _Tree]] = {}
"""For each old version, the pure step that turns a tree of it into a tree of the next one."""


class Checkpoint(Struct, frozen=True):
    """The durable copy of what is desired from one server. `generation` counts the saves of it."""

    generation: int
    server: str
    desired: Desired


class Corrupt(Struct, frozen=True):
    """Bytes that are no checkpoint: `reason` says why in one line, `hint` what a person can do, maybe empty."""

    reason: str
    hint: str = ""


class TooNew(Struct, frozen=True):
    """A sound checkpoint of a version that this program does not know."""

    version: int

    @property
    def reason(self) -> str:
        """Why it cannot be used, in one line."""
        return f"it has version {self.version} and this program reads up to version {VERSION}"


class _AdapterV1(Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter as version 1 stores it: apart from the model's, so that a change there cannot change the file."""

    name: str
    path: str
    origin: Origin
    required: bool
    priority: int
    is_3d_lora_weight: bool
    base: str | None
    listed_as: str | None = None


class _IncarnationV1(Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    start_time: float | None


class _ReleasedV1(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    path: str


class _WithdrawnV1(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    pending: bool
    declared: _AdapterV1 | None


class _PausedV1(Struct, frozen=True, forbid_unknown_fields=True):
    reason: str


class _SuspectV1(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    path: str
    deaths: int
    accused: bool
    files: str


class _CheckpointV1(Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    generation: int
    server: str
    incarnation: _IncarnationV1
    adapters: list[_AdapterV1]
    listed: list[str]
    released: list[_ReleasedV1]
    withdrawn: list[_WithdrawnV1] = []
    paused: _PausedV1 | None = None
    suspects: list[_SuspectV1] = []


def decode(data: bytes) -> Checkpoint | Corrupt | TooNew:
    """What a file's bytes say, in either format. Never raises."""
    payload = _payload(data)
    if isinstance(payload, Corrupt):
        return payload
    try:
        tree = _json_tree(data) if data.startswith(JSON_START) else _yaml_tree(payload)
        version = tree.get("version")
        if type(version) is not int or not 1 <= version <= _MAX_VERSION:
            return Corrupt("its version is not a positive whole number")
        if version > VERSION:
            return TooNew(version)
        while version < VERSION:
            tree = _MIGRATIONS[version](tree)
            version += 1
        return _checkpoint(msgspec.convert(tree, _CheckpointV1))
    except RecursionError:
        return Corrupt("its values are nested too deeply")
    except UnicodeDecodeError:
        return Corrupt("it is not UTF-8 text")
    except (ValueError, msgspec.ValidationError) as error:
        # The message may quote a name of any length, with line breaks and lone surrogates in it.
        return Corrupt(f"the checksum holds, but the content does not: {ascii(str(error))[1:-1]:.300}")


def _payload(data: bytes) -> bytes | Corrupt:
    """The bytes that the sum covers, once it holds."""
    if not data:
        return Corrupt("it is empty")
    if len(data) > MAX_BYTES:
        return Corrupt(f"it is larger than {MAX_BYTES} bytes")
    if not data.strip(b"\0"):
        return Corrupt("it holds only zero bytes, as after a power loss")
    if data.startswith(JSON_START):
        header = _JSON_SUM.match(data, len(JSON_START))
    elif data.startswith(YAML_START):
        header = _YAML_SUM.match(data, len(YAML_START))
    else:
        return Corrupt("its first line is not that of a checkpoint")
    if header is None:
        return Corrupt("its second line holds no checksum")
    payload = data[header.end() :]
    stated, actual = header[1].decode(), hashlib.sha256(payload).hexdigest()
    if stated != actual:
        return Corrupt(
            f"its checksum is {stated}, but the lines after it have {actual}: cut short, damaged or edited by hand",
            "if it was edited on purpose, write the second sum in place of the first",
        )
    return payload


def _json_tree(data: bytes) -> _Tree:
    """Reads an object, which it is: it begins with a brace."""
    tree: _Tree = _loads(data.decode())
    return {name: value for name, value in tree.items() if name not in {"format", "sha256"}}


def _yaml_tree(payload: bytes) -> _Tree:
    """Reads the one layout that `encode` writes; YAML's other ways to say the same are refused."""
    tree: _Tree = {}
    items: list[Any] | None = None
    *lines, rest = payload.decode().split("\n")
    if rest:
        raise ValueError("the last line does not end")
    for number, line in enumerate(lines, start=3):
        if items is not None and line.startswith("- "):
            items.append(_loads(line[2:]))
        elif field := _YAML_FIELD.fullmatch(line):
            name, value = field.groups()
            if name in tree:
                raise ValueError(f"line {number}: {name} stands twice")
            items = [] if value is None else None
            tree[name] = items if value is None else _loads(value)
        else:
            raise ValueError(f"line {number} is neither a field nor an item")
    return tree


def _loads(text: str) -> Any:  # noqa: ANN401 - any JSON value
    return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)


def _object(pairs: list[tuple[str, Any]]) -> _Tree:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError(f"{_repeated(name for name, _ in pairs)!r} stands twice in one object")
    return tree


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _checkpoint(stored: _CheckpointV1) -> Checkpoint:
    for field, names in (
        ("adapters", [adapter.name for adapter in stored.adapters]),
        ("listed", stored.listed),
        ("released", [released.name for released in stored.released]),
        ("withdrawn", [withdrawn.name for withdrawn in stored.withdrawn]),
        ("suspects", [suspect.name for suspect in stored.suspects]),
    ):
        if (name := _repeated(names)) is not None:
            raise ValueError(f"{field} holds {name!r} twice")
    both = {adapter.name for adapter in stored.adapters} & {withdrawn.name for withdrawn in stored.withdrawn}
    if both:
        raise ValueError(f"{min(both)!r} is desired and withdrawn")
    for field, number in (("generation", stored.generation), ("incarnation number", stored.incarnation.number)):
        if number < 0:
            raise ValueError(f"the {field} is negative")
    if any(suspect.deaths < 0 for suspect in stored.suspects):
        raise ValueError("the deaths of a suspect are negative")
    if stored.incarnation.start_time is not None and not math.isfinite(stored.incarnation.start_time):
        raise ValueError("the start time is not finite")
    return Checkpoint(
        generation=stored.generation,
        server=stored.server,
        desired=Desired(
            adapters={adapter.name: _adapter(adapter) for adapter in stored.adapters},
            incarnation=Incarnation(stored.incarnation.number, stored.incarnation.start_time),
            listed=frozenset(stored.listed),
            released={released.name: released.path for released in stored.released},
            withdrawn={
                one.name: Withdrawn(None if one.declared is None else _adapter(one.declared), one.pending)
                for one in stored.withdrawn
            },
            paused=None if stored.paused is None else Paused(stored.paused.reason),
            suspects={s.name: Suspect(s.path, s.deaths, s.accused, s.files) for s in stored.suspects},
        ),
    )


def _adapter(stored: _AdapterV1) -> Adapter:
    return Adapter(
        name=stored.name,
        path=stored.path,
        origin=stored.origin,
        required=stored.required,
        priority=stored.priority,
        is_3d_lora_weight=stored.is_3d_lora_weight,
        base=stored.base,
        listed_as=stored.listed_as,
    )
