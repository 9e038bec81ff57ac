"""Changes of a document: put an adapter in, take one out, put back what was held.

The traps guarded against: a request that is repeated makes a new document every time, which rings in every replica; so
what is so already is `Unchanged`. And a document that grows until the API refuses it takes everybody's next write
along; so growth ends at a cap, with a refusal that says so, while taking out is always possible.
"""

from __future__ import annotations

import hashlib
from typing import Final, assert_never

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.fleet.codec import encode
from lora_sidecar.fleet.document import (
    KEPT_WRITES,
    MAX_BYTES,
    MAX_SERIAL,
    Entry,
    FleetDocument,
    NoDocument,
    fault_of,
    wanted,
)

_DIGITS: Final = 6
"""Hexadecimal digits in the mark of a write, which tell it from another one of the same serial."""


class Put(Struct, frozen=True):
    """Have every replica of the base model with the root `base` load an adapter; `by` and `at` are for people."""

    name: str
    path: str
    base: str
    by: str = ""
    at: str = ""


class TakeOut(Struct, frozen=True):
    """Have every replica of the base model with the root `base` unload an adapter."""

    name: str
    base: str


Change = Put | TakeOut


class Unchanged(Struct, frozen=True):
    """The document says so already, as of `serial`."""

    serial: int


class Refused(Struct, frozen=True):
    """A change that is not made, however often it is asked for; `hint` is what a person can do, maybe empty."""

    reason: str
    hint: str = ""


def change(document: FleetDocument, wish: Change) -> FleetDocument | Unchanged | Refused:
    """The document after one more write, or why there is none."""
    if document.serial >= MAX_SERIAL:
        hint = "write a smaller one by hand"
        return Refused(f"the document's serial is {document.serial}, which nothing can follow", hint)
    match wish:
        case Put():
            return _put(document, wish)
        case TakeOut():
            return _take_out(document, wish)
        case _:
            assert_never(wish)


def rewritten(document: FleetDocument) -> FleetDocument:
    """The same entries as another write, where the ConfigMap has lost them."""
    return _written(document, document.entries)


def restored(in_force: FleetDocument, held: FleetDocument | NoDocument) -> FleetDocument:
    """What a write starts from while `held` is: everything in force, and what was put into the held one since.

    It follows both, so that pods that hold the other document and pods that took it for the truth go on together. What
    the held document has from before the two went apart, and is not in force, was taken out. An entry that a sidecar
    put into it since then counts more than the one in force; one that a person put into it does not.
    """
    if isinstance(held, NoDocument):
        return in_force
    parted_at = max((_serial_of(mark) for mark in held.writes if mark in in_force.writes), default=-1)
    serial = max(in_force.serial, held.serial)
    since = {entry.key: entry for entry in held.entries if entry.serial > parted_at}
    entries = {entry.key: entry for entry in in_force.entries}
    entries.update((key, entry) for key, entry in since.items() if entry.serial > 0 or key not in entries)
    # All count as written by the write that starts from here: serials of one past mean nothing beside those of another.
    merged = tuple(replace(entry, serial=serial + 1) for entry in entries.values())
    half = KEPT_WRITES // 2
    marks = tuple(dict.fromkeys(held.writes[-half:] + in_force.writes[-half:]))
    return FleetDocument(serial, merged, marks, {**held.extra, **in_force.extra})


def _written(document: FleetDocument, entries: tuple[Entry, ...]) -> FleetDocument:
    """The document with other entries, one serial later and with a mark that no other write has."""
    after = replace(document, serial=document.serial + 1, entries=entries)
    digest = hashlib.sha256(encode(after).encode()).hexdigest()[:_DIGITS]
    return replace(after, writes=(*document.writes, f"{after.serial}-{digest}")[-KEPT_WRITES:])


def _serial_of(mark: str) -> int:
    """The serial of the write that a mark is of, 0 where a person made it up."""
    serial, _, _ = mark.partition("-")
    return int(serial) if serial.isascii() and serial.isdigit() else 0


def _put(document: FleetDocument, wish: Put) -> FleetDocument | Unchanged | Refused:
    if (there := wanted(document, wish.base).get(wish.name)) is not None and there.path == wish.path:
        return Unchanged(document.serial)
    serial = document.serial + 1
    entry = Entry(wish.name, wish.path, wish.base, serial, wish.by, wish.at)
    if fault := fault_of(entry):
        return Refused(f"the fleet cannot have this adapter: {fault}")
    entries = list(document.entries)
    for at, other in enumerate(entries):
        if other.key == entry.key:
            entries[at] = replace(entry, extra=other.extra)
            break
    else:
        entries.append(entry)
    grown = _written(document, tuple(entries))
    size = len(encode(grown).encode())
    if size > MAX_BYTES and size > len(encode(document).encode()):
        return Refused(
            f"the fleet's document would have {size} bytes with it: at most {MAX_BYTES} are written",
            "unload adapters that no replica needs, or give them to another fleet",
        )
    return grown


def _take_out(document: FleetDocument, wish: TakeOut) -> FleetDocument | Unchanged | Refused:
    # An entry for any base model goes as well: left alone, it would load the adapter again.
    left = tuple(e for e in document.entries if e.name != wish.name or e.base not in {None, wish.base})
    return Unchanged(document.serial) if left == document.entries else _written(document, left)
