"""Looks at the adapters' files over and over, cheaply, and apart from the heartbeat.

The trap guarded against is a heartbeat that waits for a disk. The looks are a task of their own, one thread a look,
with a deadline each: the heartbeat says what it wants to know of and takes what was found last. Adapters that fail or
are suspected are looked at every time, those that are loaded a few at a time, in turn.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Final

from msgspec import Struct

from lora_sidecar.core.observation import Files, Sight
from lora_sidecar.files.peft import Finding, Limits, check
from lora_sidecar.files.preflight import Unseen, fingerprint, is_complete, is_visible, read_folder
from lora_sidecar.reconcile.missing_files import LOOKS
from lora_sidecar.threads import ReaderPool

IN_TURN: Final = 20
"""Loaded adapters that are looked at each time."""

_ODD: Final = frozenset({Sight.GONE, Sight.SPOILT})


class Place(Struct, frozen=True):
    """The devices on which a complete adapter folder and the folder above it were seen."""

    folder: int
    parent: int


class FileWatcher:
    """What is known of the files of one server's adapters. `want` and `files` are for its watch, `run` is its task."""

    def __init__(self, slots: ReaderPool, found: Callable[[], None]) -> None:
        """`found` is called when a look at a path came to another result than the one before."""
        self._slots = slots
        self._found = found
        self._wanted = asyncio.Event()
        self._urgent: tuple[str, ...] = ()
        self._others: tuple[str, ...] = ()
        self._known: Collection[str] = frozenset()
        self._turn = 0
        self._timeout = 1.0
        self._places: dict[str, Place] = {}
        self._beside: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self.files: Mapping[str, Files] = {}

    def want(
        self, urgent: Iterable[str], others: Sequence[str], timeout: float, spared: Collection[str] = frozenset()
    ) -> None:
        """Look at all of `urgent` and some of `others` (paths), each for at most `timeout` seconds; returns at once.

        What is known of other paths is forgotten, but for those that are `spared` for now.
        """
        self._urgent, self._others, self._timeout = tuple(urgent), tuple(others), timeout
        self._known = known = {*self._urgent, *self._others, *spared}
        for path in self._places.keys() - known:
            self._leave(path)
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
            await self.look()

    async def look(self) -> None:
        """Have one round of looks."""
        before, others = self.files, self._others
        fresh: dict[str, Files] = {}
        for path in self._due(before):
            try:
                # Given as arguments: a stuck thread must find nothing changed under it.
                place = self._places.get(path)
                neighbours = self._neighbours(path) if place is None else ()
                look = partial(_look, path, place, before.get(path), neighbours)
                found, place = await self._slots.run(path, look, self._timeout)
            except TimeoutError:
                continue
            if found != before.get(path):
                fresh[path] = found
            if place is not None:
                self._places[path] = place
                self._beside[_parent(path)][path] = None
        if others is not self._others:
            # What is wanted changed during the looks.
            fresh = {path: found for path, found in fresh.items() if path in self._known}
        if not fresh:
            return
        self.files = {**self.files, **fresh}
        # The first look at a path is no news: it tells how things were when the path became of interest.
        if any(path in before and _essence(found) != _essence(before[path]) for path, found in fresh.items()):
            self._found()

    def _due(self, before: Mapping[str, Files]) -> tuple[str, ...]:
        """The paths of this round: what is urgent or was not in order, and some of the rest in turn."""
        odd = [path for path, found in before.items() if found.sight in _ODD]
        count = min(IN_TURN, len(self._others))
        turn = [self._others[(self._turn + n) % len(self._others)] for n in range(count)]
        self._turn = (self._turn + count) % len(self._others) if self._others else 0
        return tuple(dict.fromkeys((*self._urgent, *odd, *turn)))

    def _leave(self, path: str) -> None:
        """Forget where a folder was, and that its neighbours had it beside them."""
        del self._places[path]
        parent = _parent(path)
        del self._beside[parent][path]
        if not self._beside[parent]:
            del self._beside[parent]

    def _neighbours(self, path: str) -> tuple[str, ...]:
        """Other folders beside this one that were complete when last looked at."""
        return tuple(islice(self._beside.get(_parent(path), ()), IN_TURN))


def _essence(found: Files) -> tuple[Sight, str, bool]:
    return found.sight, found.fingerprint, found.looks > 1


def _look(
    path: str, place: Place | None, before: Files | None, neighbours: Sequence[str]
) -> tuple[Files, Place | None]:
    """One look at one folder; blocks on the disk."""
    if not is_visible(path):
        return Files(Sight.UNSEEN), None
    now = _place(path)
    if now is not None and is_complete(path):
        marks = fingerprint(path)
        spoilt = _spoilt(path) if before is None or before.fingerprint != marks else before.why
        return _again(Files(Sight.SPOILT if spoilt else Sight.PRESENT, marks, why=spoilt), before), now
    if now is not None and place is None:
        # A folder in the making: nobody has seen it whole.
        return Files(Sight.UNSEEN, fingerprint(path)), None
    if now is None and not _absent(path):
        return Files(Sight.UNSEEN), place
    if place is None:
        beside = any(is_complete(one) for one in neighbours)
        return _again(Files(Sight.GONE if beside else Sight.UNSEEN), before), None
    same_mount = now.folder == place.folder if now is not None else _device(_parent(path)) == place.parent
    return _again(Files(Sight.GONE if same_mount else Sight.UNSEEN, seen_before=same_mount), before), place


def _again(found: Files, before: Files | None) -> Files:
    """The look with the number of looks in a row that came to the same; of a good one that is of no interest."""
    if before is None or before.sight is not found.sight or found.sight not in _ODD:
        return found
    return Files(found.sight, found.fingerprint, min(before.looks + 1, LOOKS), found.seen_before, found.why)


def _spoilt(path: str) -> str:
    """Why files that are there could not be loaded, empty if they could."""
    folder = read_folder(path)
    if isinstance(folder, Unseen):
        return ""
    findings = (folder,) if isinstance(folder, Finding) else check(folder, Limits())
    return next((one.message for one in findings if one.certain), "")


def _place(path: str) -> Place | None:
    folder, parent = _device(path), _device(_parent(path))
    return None if folder is None or parent is None else Place(folder, parent)


def _device(path: str) -> int | None:
    """The device of a folder, None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev if stat.S_ISDIR(found.st_mode) else None


def _absent(path: str) -> bool:
    """Whether the folder is known not to exist: any other error says nothing."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _parent(path: str) -> str:
    return os.path.dirname(path.rstrip("/"))
