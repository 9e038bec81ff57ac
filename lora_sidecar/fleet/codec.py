"""Fleet documents to text and back, so that a mistake by hand is named with its line and nothing unknown is lost.

Three traps are guarded against. Rewriting drops what a newer sidecar, or a person, added: so unknown fields are kept as
the JSON that they came as, numbers of any size included. A key that stands twice is read as its last value by most
parsers, which is rarely what its author sees: so it is refused. And a document on one line makes `kubectl edit` and
`kubectl diff` useless: so each adapter has a line of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import msgspec
from msgspec import Raw, Struct

from lora_sidecar.fleet.document import (
    KEPT_WRITES,
    MAX_SERIAL,
    VERSION,
    Entry,
    EntryKey,
    FleetDocument,
    Newer,
    NoDocument,
    Reading,
    Unreadable,
    fault_of,
)

_QUOTED: Final = 200
"""Characters of a parser's sentence that are passed on: it may quote a value of any length."""

_LONGEST_MARK: Final = 64

_Object = dict[str, Raw]


class _Head(Struct, frozen=True):
    version: int
    serial: int = 0
    writes: list[str] = []
    adapters: list[Raw] = []


class _Entry(Struct, frozen=True, omit_defaults=True):
    name: str
    path: str
    base: str | None = None
    serial: int = 0
    by: str = ""
    at: str = ""


_HEAD: Final = msgspec.json.Decoder(_Head)
_ENTRY: Final = msgspec.json.Decoder(_Entry)
_OBJECT: Final = msgspec.json.Decoder(_Object)
_ENCODER: Final = msgspec.json.Encoder()


def decode(text: str | None) -> Reading:
    """What the text under a document's key says; None where the key is not there. Never raises."""
    if text is None or not text.strip():
        return NoDocument()
    try:
        # Twice over, since one parser names the line and keys that stand twice, and the other keeps what it came as.
        tree = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        return _document(tree, text.encode())
    except json.JSONDecodeError as error:
        return Unreadable(error.lineno, f"it is not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return Unreadable(0, "its values are nested too deeply")
    except ValueError as error:
        return Unreadable(0, _bounded(error))


def encode(document: FleetDocument) -> str:
    """The text of a document, an adapter a line; `decode` gives the same document back."""
    head = {"version": VERSION, "serial": document.serial}
    lines = b",\n".join(_encoded_entry(entry) for entry in document.entries)
    adapters = b'"adapters":[\n' + lines + b"\n]" if lines else b'"adapters":[]'
    tail = {**{name: Raw(value) for name, value in document.extra.items()}, "writes": document.writes}
    fields = [_ENCODER.encode(head)[1:-1], adapters, _ENCODER.encode(tail)[1:-1]]
    return (b"{" + b",\n".join(fields) + b"}\n").decode()


def _encoded_entry(entry: Entry) -> bytes:
    known = _ENCODER.encode(_Entry(entry.name, entry.path, entry.base, entry.serial, entry.by, entry.at))
    if not entry.extra:
        return known
    rest = _ENCODER.encode({name: Raw(value) for name, value in entry.extra.items()})
    return known[:-1] + b"," + rest[1:]


def _document(tree: object, data: bytes) -> Reading:
    if not isinstance(tree, dict):
        return Unreadable(1, "it is not an object with `version`, `serial` and `adapters`")
    version = tree.get("version")
    if type(version) is not int or version < 1:
        return Unreadable(0, f"version must be a whole number of at least 1, such as {VERSION}")
    if version > VERSION:
        # Nothing else is looked at: a newer version may give any other field another meaning.
        return Newer(version)
    fields = _OBJECT.decode(data)
    head = _HEAD.decode(data)
    if not 0 <= head.serial <= MAX_SERIAL:
        return Unreadable(0, f"serial must be between 0 and {MAX_SERIAL}")
    if any(len(mark) > _LONGEST_MARK for mark in head.writes):
        return Unreadable(0, f"writes must hold the marks of writes: none has more than {_LONGEST_MARK} characters")
    entries: dict[EntryKey, Entry] = {}
    for at, raw in enumerate(head.adapters):
        entry = _entry(bytes(raw))
        if isinstance(entry, Entry) and entry.key in entries:
            whose = "" if entry.base is None else f" for the base model {entry.base!r}"
            entry = f"{entry.name!r} stands twice{whose}"
        if isinstance(entry, str):
            line = _line(data, bytes(fields["adapters"]), head.adapters[: at + 1])
            return Unreadable(line, f"adapters[{at}]: {entry}")
        entries[entry.key] = entry
    writes = tuple(head.writes[-KEPT_WRITES:])
    return FleetDocument(head.serial, tuple(entries.values()), writes, _extra(fields, _Head))


def _entry(raw: bytes) -> Entry | str:
    """An entry, or what is wrong with it."""
    try:
        known = _ENTRY.decode(raw)
        extra = _extra(_OBJECT.decode(raw), _Entry)
    except ValueError as error:
        return _bounded(error)
    entry = Entry(known.name, known.path, known.base, known.serial, known.by, known.at, extra)
    if not 0 <= entry.serial <= MAX_SERIAL:
        return f"serial must be between 0 and {MAX_SERIAL}"
    return fault_of(entry) or entry


def _extra(fields: _Object, known: type[Struct]) -> Mapping[str, bytes]:
    # A line break in JSON stands between values only, so a value that was spread over lines stays what it was.
    return {
        name: b" ".join(bytes(value).splitlines())
        for name, value in fields.items()
        if name not in known.__struct_fields__
    }


def _line(data: bytes, array: bytes, items: list[Raw]) -> int:
    """The line on which the last of the first `items` of an array begins: between two stand only commas and space."""
    start = end = data.find(array)
    for item in items:
        start = data.find(bytes(item), end)
        end = start + len(bytes(item))
    return data.count(b"\n", 0, start) + 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} stands twice in one object")
    return tree


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _bounded(error: Exception) -> str:
    # The message may quote a name of any length, with lone surrogates in it.
    return ascii(str(error))[1:-1][:_QUOTED]
