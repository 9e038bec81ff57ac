"""What a fleet's document says: which adapters every replica is to have.

Two traps are guarded against. A document that cannot be read, or that is not there, taken for one that lists nothing:
so a reading is one of four types, and only `FleetDocument` has entries. And an entry of one base model loaded into
another, when a rollout to a new model shares the document with the old pods: so an entry names its base model, and
`wanted` is the only way from a document to what one pod loads.

`docs/fleet.md` is the specification of the format; `codec` reads and writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

VERSION: Final = 1

MAX_BYTES: Final = 768 * 1024
"""Bytes of a document that is written: a ConfigMap takes 1,048,576 for all of its keys (422 above, Kubernetes 1.20)."""

MAX_SERIAL: Final = 2**53
"""The largest whole number that every reader of JSON takes for itself."""

NAME_LIMIT: Final = 256
PATH_LIMIT: Final = 4096
"""Characters of a path, and of the root of a base model."""

NOTE_LIMIT: Final = 256
"""Characters of what stands in an entry for people only."""

KEPT_WRITES: Final = 64
"""Marks of writes in a document: a pod may have missed half as many and still know that it follows."""

EntryKey = tuple[str, str | None]


class Entry(Struct, frozen=True):
    """One adapter that every replica of one base model is to have.

    `base` is the root of the base model, None for any (only people write that). `serial` is the document's serial at
    which this entry was last written. `by` (a pod) and `at` (RFC 3339) are for people: nothing is decided by them.
    `extra` has the fields that this program does not know, as JSON.
    """

    name: str
    path: str
    base: str | None = None
    serial: int = 0
    by: str = ""
    at: str = ""
    extra: Mapping[str, bytes] = {}

    @property
    def key(self) -> EntryKey:
        """What makes it one entry: an adapter of the same name for another base model is another one."""
        return self.name, self.base


class FleetDocument(Struct, frozen=True):
    """A document that can be read. `serial` counts the writes of sidecars; no two entries have the same key.

    `writes` are the marks of the last `KEPT_WRITES` of them, the newest last, such as `58-9f2c41`: they tell whether
    this document came about from another one. A person who edits it leaves them as they are. `extra` has the fields of
    the document that this program does not know, as JSON.
    """

    serial: int = 0
    entries: tuple[Entry, ...] = ()
    writes: tuple[str, ...] = ()
    extra: Mapping[str, bytes] = {}


class NoDocument(Struct, frozen=True):
    """The ConfigMap is there and the document's key is not, or it is empty: a new fleet, or one that was wiped."""


class Unreadable(Struct, frozen=True):
    """Text that is no document. `line` counts from 1, 0 where none can be named; `rule` is what it breaks."""

    line: int
    rule: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.rule}" if self.line else self.rule


class Newer(Struct, frozen=True):
    """A document of a version that this program does not know."""

    version: int

    def __str__(self) -> str:
        return f"it has version {self.version} and this program reads up to version {VERSION}"


Reading = FleetDocument | NoDocument | Unreadable | Newer


def wanted(document: FleetDocument, base: str) -> dict[str, Entry]:
    """The entries that concern a pod whose base model has the root `base`, by name.

    Where one entry of a name is for this base model and one for any, the first counts.
    """
    chosen = {entry.name: entry for entry in document.entries if entry.base is None}
    chosen.update((entry.name, entry) for entry in document.entries if entry.base == base)
    return chosen


def fault_of(entry: Entry) -> str:
    """The rule that a field of an entry breaks, empty where all are sound: names reach logs, pages and file systems."""
    for field, text, longest in (
        ("name", entry.name, NAME_LIMIT),
        ("path", entry.path, PATH_LIMIT),
        ("base", entry.base, PATH_LIMIT),
        ("by", entry.by, NOTE_LIMIT),
        ("at", entry.at, NOTE_LIMIT),
    ):
        if text is None:
            continue
        if not text and field in {"name", "path", "base"}:
            return f"{field} is empty"
        if len(text) > longest:
            return f"{field} has {len(text)} characters: at most {longest} are allowed"
        if not text.isprintable():
            return f"{field} has control characters or others that do not print"
    return ""
