"""What a document that was just read means: taken over, or held because it takes away what nobody took out.

The trap guarded against is a fleet that unloads everything since its ConfigMap was wiped by a sync of a manifest with
`data`, or replaced by the copy in an old backup. A sidecar's write adds one to the serial for each entry that it
changes, so the serial tells a fleet whose last adapters were unloaded one by one from one that lost them at a stroke.
What is held stays as it was until it is written again (`writes.restored`), or accepted by an annotation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, assert_never

from msgspec import Struct

from lora_sidecar.fleet.document import Entry, EntryKey, FleetDocument, NoDocument, wanted

ACCEPT_ANNOTATION: Final = "lora-sidecar/accept"
"""On the ConfigMap: tokens of held documents that are to be taken over, separated by commas or spaces."""


class HoldReason(StrEnum):
    """Why a document is held; the value is the name of the condition."""

    EMPTIED = "FleetEmptied"
    """It has none of the entries that are in force, and no writes of sidecars explain that."""
    REVERTED = "FleetReverted"
    """Its serial went backwards, and entries in force are gone or have another path: an old copy was put back."""


class Held(Struct, frozen=True):
    """A document that is not taken over; `lost` are the entries in force that it lacks or gives another path."""

    reason: HoldReason
    serial: int
    lost: tuple[Entry, ...]


class Difference(Struct, frozen=True):
    """What another document changes for a pod, each sorted by name. `moved` ones have another path now."""

    added: tuple[Entry, ...] = ()
    removed: tuple[Entry, ...] = ()
    moved: tuple[Entry, ...] = ()


def judge(
    in_force: FleetDocument | None, reading: FleetDocument | NoDocument, *, accepted: bool
) -> FleetDocument | Held:
    """The document that is in force once `reading` was read, or why the one before it stays.

    `in_force` is None where this pod never knew one: then there is nothing to lose, and a ConfigMap without a document
    is an empty fleet. `accepted` is whether a person said that this very document is meant (`is_accepted`).
    """
    match reading:
        case FleetDocument():
            found = reading
        case NoDocument():
            found = FleetDocument()
        case _:
            assert_never(reading)
    if in_force is None or accepted:
        return found
    left = _by_key(found.entries)
    gone = tuple(entry for entry in in_force.entries if entry.key not in left)
    if gone and len(gone) == len(in_force.entries) and found.serial - in_force.serial < len(gone):
        return Held(HoldReason.EMPTIED, found.serial, gone)
    lost = tuple(entry for entry in in_force.entries if entry.key not in left or left[entry.key].path != entry.path)
    if lost and found.serial < in_force.serial:
        return Held(HoldReason.REVERTED, found.serial, lost)
    return found


def difference(before: FleetDocument | None, after: FleetDocument, base: str) -> Difference:
    """What `after` changes for a pod whose base model has the root `base`; `before` None is a fleet of nothing."""
    had = {} if before is None else wanted(before, base)
    has = wanted(after, base)
    return Difference(
        added=tuple(has[name] for name in sorted(has.keys() - had.keys())),
        removed=tuple(had[name] for name in sorted(had.keys() - has.keys())),
        moved=tuple(has[name] for name in sorted(has.keys() & had.keys()) if has[name].path != had[name].path),
    )


def accept_token(uid: str, key: str, text: str | None) -> str:
    """What the annotation must hold to have a document taken over: made of the object, its key and the very text.

    So one that was accepted once says nothing about another that is held later.
    """
    parts = (uid, key, text or "")
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def is_accepted(annotation: str | None, token: str) -> bool:
    """Whether the annotation names the token; documents of several servers may be accepted side by side."""
    return token in _tokens(annotation)


def without_token(annotation: str | None, token: str) -> str | None:
    """The annotation once the document that the token accepts was written over; None where nothing is left of it."""
    return ",".join(other for other in _tokens(annotation) if other != token) or None


def _tokens(annotation: str | None) -> list[str]:
    return (annotation or "").replace(",", " ").split()


def _by_key(entries: Iterable[Entry]) -> dict[EntryKey, Entry]:
    return {entry.key: entry for entry in entries}
