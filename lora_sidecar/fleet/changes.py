"""What a document that was just read means: taken over, or held because it takes away what nobody took out.

The trap guarded against is a fleet that unloads everything since its ConfigMap was wiped by a sync of a manifest with
`data`, or replaced by the copy in an old backup. The serial alone does not tell: a new pod that knows nothing takes the
wiped document for the truth and writes on from there. So a document names its last writes, and one that lacks entries
in force is taken over only where it came about from the document in force. What is held stays held until somebody
writes (`writes.restored`), or accepts it by an annotation.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Final, assert_never

from msgspec import Struct

from lora_sidecar.fleet.document import KEPT_WRITES, Entry, FleetDocument, NoDocument, wanted

ACCEPT_ANNOTATION: Final = "lora-sidecar/accept"
"""On the ConfigMap: tokens of held documents that are to be taken over, separated by commas or spaces."""


class HoldReason(StrEnum):
    """Why a document is held; the value is the name of the condition."""

    EMPTIED = "FleetEmptied"
    """It has none of the entries that are in force, and no writes of sidecars explain that."""
    REVERTED = "FleetReverted"
    """It did not come about from the document in force, an old copy for instance, and takes entries away."""


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
    left = {entry.key: entry for entry in found.entries}
    gone = tuple(entry for entry in in_force.entries if entry.key not in left)
    if gone and len(gone) == len(in_force.entries) and not _explains(found, in_force, gone):
        return Held(HoldReason.EMPTIED, found.serial, gone)
    lost = tuple(entry for entry in in_force.entries if entry.key not in left or left[entry.key].path != entry.path)
    if lost and not follows(found, in_force):
        return Held(HoldReason.REVERTED, found.serial, lost)
    return found


def follows(later: FleetDocument, earlier: FleetDocument) -> bool:
    """Whether a document came about from another one by writes of sidecars, and edits by hand that left the marks.

    Also where nothing tells: no sidecar ever wrote the earlier one, or there were more writes since than are kept.
    """
    if later.serial < earlier.serial:
        return False
    if not earlier.writes or later.serial - earlier.serial >= KEPT_WRITES // 2:
        return True
    return earlier.writes[-1] in later.writes


def _explains(found: FleetDocument, in_force: FleetDocument, gone: tuple[Entry, ...]) -> bool:
    """Whether writes of sidecars can have taken all of this out: one write takes out one name at most."""
    writes = found.serial - in_force.serial
    puts = len({entry.serial for entry in found.entries if entry.serial > in_force.serial})
    return follows(found, in_force) and writes - puts >= len({entry.name for entry in gone})


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
