"""Looks at the adapters' files over and over, cheaply, and apart from the heartbeat.

Two traps are guarded against. A heartbeat that waits for a disk: the scans are a task of their own, one thread a look,
with a deadline each; the heartbeat says what it wants to know of and takes what was found last. Adapters that fail or
are suspected are looked at every time, those that are loaded a few at a time, in turn. And an error of the disk taken
for files that are gone: of what cannot be seen nothing is said, and what was known of its place is kept.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Final, assert_never

from msgspec import Struct

from lora_sidecar.core.observation import Files, Sight
from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.files.folder import Absent, NoFolder, Signature, is_complete, read_folder, signature
from lora_sidecar.files.peft import Folder, Limits, Unseen, check
from lora_sidecar.reconcile.missing_files import LOOKS
from lora_sidecar.threads import ReaderPool

IN_TURN: Final = 20
"""Loaded adapters that are looked at each time."""

_ODD: Final = frozenset({Sight.GONE, Sight.UNREADABLE})
_READ: Final = frozenset({Sight.PRESENT, Sight.UNREADABLE})


class Place(Struct, frozen=True):
    """The devices on which a complete adapter folder and the folder above it were seen."""

    folder: int
    parent: int


class Look(Struct, frozen=True):
    """What one look at a folder came to; `place` is where it was last seen whole, None where it never was.

    `signature` is the metadata that was seen with it: while it stays, the bytes are not read again.
    """

    files: Files
    place: Place | None = None
    signature: Signature | None = None


class FileWatcher:
    """What is known of the files of one server's adapters. `run` is its task; all else is for its controller.

    `files` are the last looks by path. `accepted` maps the paths of listed adapters to the fingerprint of the files
    that were there when they were first seen listed: the server had loaded them. Both are read and never changed.
    """

    def __init__(self, readers: ReaderPool, changed: Callable[[], None]) -> None:
        """`changed` is called when a look at a path came to another result than the one before."""
        self._readers = readers
        self._changed = changed
        self._wanted = asyncio.Event()
        self._urgent: tuple[str, ...] = ()
        self._listed: tuple[str, ...] = ()
        self._known: Collection[str] = frozenset()
        self._new: dict[str, None] = {}
        self._turn = 0
        self._timeout = 1.0
        self._looks: dict[str, Look] = {}
        self._beside: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self.files: Mapping[str, Files] = {}
        self.accepted: dict[str, str] = {}

    def want(
        self, urgent: Iterable[str], listed: Sequence[str], timeout: float, keep: Collection[str] = frozenset()
    ) -> None:
        """Look at all of `urgent` and some of `listed` (paths), each for at most `timeout` seconds; returns at once.

        What is known of other paths is forgotten, but for those that it is to `keep` for now.
        """
        newly_listed = dict.fromkeys(listed)
        for path in self._listed:
            newly_listed.pop(path, None)
        self._urgent, self._listed, self._timeout = tuple(urgent), tuple(listed), timeout
        self._known = known = {*self._urgent, *self._listed, *keep}
        still_new = {path: None for path in self._new if path in known}
        self._new = still_new | newly_listed
        for path in self._looks.keys() - known:
            self._forget(path)
        if not self.files.keys() <= known:
            self.files = {path: found for path, found in self.files.items() if path in known}
        self._wanted.set()

    def want_again(self) -> None:
        """Look once more at what was wanted last; returns at once, however much that is."""
        self._wanted.set()

    async def run(self) -> None:
        """Look whenever that is wanted, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self.scan()

    async def scan(self) -> None:
        """Have one round of looks."""
        before, listed = self.files, self._listed
        fresh: dict[str, Files] = {}
        for path in self._due(before):
            former = self._looks.get(path)
            is_new = former is None or former.place is None
            try:
                # Given as arguments: a stuck thread must find nothing changed under it.
                look = partial(_look, path, former, self._neighbours(path) if is_new else ())
                found = await self._readers.run(path, look, self._timeout)
            except TimeoutError:
                continue
            if path not in self._known:
                continue
            if found.files != before.get(path):
                fresh[path] = found.files
            self._looks[path] = found
            if found.place is not None:
                self._beside[_parent(path)][path] = None
            if path in self._new and found.files.sight in _READ:
                del self._new[path]
                self.accepted[path] = found.files.fingerprint
        if listed is not self._listed:
            # What is wanted changed during the looks.
            fresh = {path: found for path, found in fresh.items() if path in self._known}
        if not fresh:
            return
        self.files = {**self.files, **fresh}
        # The first look at a path is no news: it tells how things were when the path became of interest.
        if any(path in before and _essence(found) != _essence(before[path]) for path, found in fresh.items()):
            self._changed()

    def _due(self, before: Mapping[str, Files]) -> tuple[str, ...]:
        """The paths of this round: what is urgent or was not in order, what is newly listed, and some in turn."""
        odd = [path for path, found in before.items() if found.sight in _ODD]
        new = [*islice(self._new, IN_TURN)]
        count = min(IN_TURN - len(new), len(self._listed))
        turn = [self._listed[(self._turn + n) % len(self._listed)] for n in range(count)]
        self._turn = (self._turn + count) % len(self._listed) if self._listed else 0
        return tuple(dict.fromkeys((*self._urgent, *odd, *new, *turn)))

    def _forget(self, path: str) -> None:
        del self._looks[path]
        self.accepted.pop(path, None)
        parent = _parent(path)
        self._beside[parent].pop(path, None)
        if not self._beside[parent]:
            del self._beside[parent]

    def _neighbours(self, path: str) -> tuple[str, ...]:
        """Other folders beside this one that were complete when last looked at."""
        return tuple(islice(self._beside.get(_parent(path), ()), IN_TURN))


def _essence(found: Files) -> tuple[Sight, str, bool]:
    return found.sight, found.fingerprint, found.looks > 1


def _look(path: str, former: Look | None, neighbours: Sequence[str]) -> Look:
    """One look at one folder; blocks on the disk."""
    # Before the reading: what changes meanwhile is another state than the one that was read.
    seen = signature(path)
    now = _place(path)
    before = None if former is None else former.files
    place = None if former is None else former.place
    if former is not None and before is not None and before.sight in _READ and seen == former.signature is not None:
        return Look(_counted(before, before), now or place, seen)
    folder = read_folder(path)
    match folder:
        case Unseen() | NoFolder():
            return Look(Files(Sight.UNSEEN), place)
        case Absent():
            return Look(_counted(_gone(path, None, place, neighbours), before), place)
        case Folder(config=None) | Folder(weights=None):
            if place is None:
                # A folder in the making: nobody has seen it whole.
                return Look(Files(Sight.UNSEEN), None)
            return Look(_counted(_gone(path, now, place, neighbours), before), place)
        case Folder(fingerprint=""):
            return Look(Files(Sight.UNSEEN), place)
        case Folder():
            damage = _damage(folder)
            sight = Sight.UNREADABLE if damage else Sight.PRESENT
            return Look(_counted(Files(sight, folder.fingerprint, why=damage), before), now or place, seen)
        case _:
            assert_never(folder)


def _gone(path: str, now: Place | None, place: Place | None, neighbours: Sequence[str]) -> Files:
    """Files that are not there: whether they are gone, or their volume is."""
    if place is None:
        return Files(Sight.GONE if any(is_complete(one) for one in neighbours) else Sight.UNSEEN)
    is_same = now.folder == place.folder if now is not None else _device(_parent(path)) == place.parent
    return Files(Sight.GONE if is_same else Sight.UNSEEN, seen_before=is_same)


def _counted(found: Files, before: Files | None) -> Files:
    """The look with the number of looks in a row that came to the same; of a good one that is of no interest."""
    if before is None or before.sight is not found.sight or found.sight not in _ODD:
        return found
    return Files(found.sight, found.fingerprint, min(before.looks + 1, LOOKS), found.seen_before, found.why)


def _damage(folder: Folder) -> str:
    """Why no engine could read files that are there, empty if one could."""
    found = check(folder, Limits())
    return next((one.message for one in found if one.kind is FailureKind.FILES and not one.doubtful), "")


def _place(path: str) -> Place | None:
    folder, parent = _device(path), _device(_parent(path))
    return None if folder is None or parent is None else Place(folder, parent)


def _device(path: str) -> int | None:
    """The device of a folder, None where there is none, or it cannot be seen."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev if stat.S_ISDIR(found.st_mode) else None


def _parent(path: str) -> str:
    return os.path.dirname(path.rstrip("/"))
