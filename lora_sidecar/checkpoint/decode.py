"""Checkpoint bytes to values, so that what was remembered is either read exactly or known to be damaged.

Two traps are guarded against. A checksum over the decoded object turns every new field into "corruption" after an
upgrade; so the sum is over the bytes as they are in the file, and the version is looked at only after it. And a parser
fed with a damaged file may crash, hang, or quietly read something else; so nothing is parsed before the sum holds, and
whatever is wrong is a value with a reason, never an exception. Text that cannot be encoded again is damage, too, and so
are numbers that other programs cannot hold: they would end the process later, at every start.

`encode` is the way back. `docs/checkpoint-format.md` is the specification.
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

from lora_sidecar.checkpoint.stored import StoredCheckpoint, desired_of
from lora_sidecar.core.model import Desired

Format = Literal["json", "yaml"]

VERSION = 2
MAX_BYTES = 16 * 1024 * 1024

_MAX_VERSION = 999_999
JSON_START = b'{"format": "lora-sidecar/checkpoint",\n'
YAML_START = b"format: lora-sidecar/checkpoint\n"
_JSON_SUM = re.compile(rb'"sha256": "([0-9a-f]{64})",\n')
_YAML_SUM = re.compile(rb"sha256: ([0-9a-f]{64})\n")
_YAML_FIELD = re.compile(r"([a-z_0-9]+):(?: (.+))?")

_Tree = dict[str, Any]


def _from_1(tree: _Tree) -> _Tree:
    """Version 2 says adopted and orphaned where version 1 said learned and released."""
    orphaned = tree.get("released")
    kept = {name: value for name, value in tree.items() if name != "released"}
    adapters = [_adopted(one) for one in tree["adapters"]]
    withdrawn = [{**one, "declared": _adopted(one["declared"])} for one in tree.get("withdrawn", [])]
    changed = {"adapters": adapters, "orphaned": orphaned} | ({"withdrawn": withdrawn} if withdrawn else {})
    return kept | changed | {"version": 2}


def _adopted(adapter: Any) -> Any:  # noqa: ANN401 - whatever stands there is looked at afterwards
    return {**adapter, "origin": "adopted"} if adapter and adapter.get("origin") == "learned" else adapter


_MIGRATIONS: Mapping[int, Callable[[_Tree], _Tree]] = {1: _from_1}
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
        # A lone surrogate can only have come by an escape; then this raises.
        msgspec.json.encode(tree)
        return _checkpoint(msgspec.convert(tree, StoredCheckpoint))
    except UnicodeEncodeError:
        return Corrupt("a text in it is no Unicode text: it holds half a character")
    except RecursionError:
        return Corrupt("its values are nested too deeply")
    except UnicodeDecodeError:
        return Corrupt("it is not UTF-8 text")
    except (ValueError, TypeError, KeyError, AttributeError, msgspec.ValidationError) as error:
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


def _checkpoint(stored: StoredCheckpoint) -> Checkpoint:
    for field, names in (
        ("adapters", [adapter.name for adapter in stored.adapters]),
        ("listed", stored.listed),
        ("orphaned", [orphan.name for orphan in stored.orphaned]),
        ("withdrawn", [withdrawn.name for withdrawn in stored.withdrawn]),
        ("suspects", [suspect.name for suspect in stored.suspects]),
    ):
        if (name := _repeated(names)) is not None:
            raise ValueError(f"{field} holds {name!r} twice")
    both = {adapter.name for adapter in stored.adapters} & {withdrawn.name for withdrawn in stored.withdrawn}
    if both:
        raise ValueError(f"{min(both)!r} is desired and withdrawn")
    if stored.incarnation.start_time is not None and not math.isfinite(stored.incarnation.start_time):
        raise ValueError("the start time is not finite")
    return Checkpoint(stored.generation, stored.server, desired_of(stored))
