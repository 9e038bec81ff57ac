"""Changes of a document: put an adapter in, take one out, put back what was held.

The traps guarded against: a request that is repeated makes a new document every time, which rings in every replica; so
what is so already is `Unchanged`. And a document that grows until the API refuses it takes everybody's next write
along; so growth ends at a cap, with a refusal that says so, while taking out is always possible.
"""

from __future__ import annotations

from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.fleet.codec import encode
from lora_sidecar.fleet.document import MAX_BYTES, MAX_SERIAL, Entry, FleetDocument, NoDocument, fault_of, wanted


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
    """The document with one change made, its serial one higher for each entry that is changed."""
    if document.serial >= MAX_SERIAL - len(document.entries) - 1:
        return Refused(
            f"the document's serial is {document.serial}, which nothing can follow", "write a smaller one by hand"
        )
    match wish:
        case Put():
            return _put(document, wish)
        case TakeOut():
            return _take_out(document, wish)
        case _:
            assert_never(wish)


def restored(in_force: FleetDocument, held: FleetDocument | NoDocument) -> FleetDocument:
    """What a write starts from while `held` is: everything in force, and what was added since.

    Of an entry in both the one in force counts. What the held document has beyond it may have been asked for at a pod
    that never knew the one in force, and an adapter too many does less harm than one that is lost.
    """
    if isinstance(held, NoDocument):
        return in_force
    known = {entry.key for entry in in_force.entries}
    added = tuple(entry for entry in held.entries if entry.key not in known)
    return FleetDocument(max(in_force.serial, held.serial), in_force.entries + added, {**held.extra, **in_force.extra})


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
    grown = replace(document, serial=serial, entries=tuple(entries))
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
    taken = len(document.entries) - len(left)
    return replace(document, serial=document.serial + taken, entries=left) if taken else Unchanged(document.serial)
