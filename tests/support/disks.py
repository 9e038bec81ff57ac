"""Disks that fail, end the process, or forget, at one exact step of a save; and a child process to do it in.

The trap guarded against is a test of crashes that only proves that the page cache survives them: a killed process loses
nothing that it wrote. So `Platter` keeps what was synced apart from what was not, and gives every state that a power
loss can leave, in whatever order the operating system wrote things back.
"""

# ruff: noqa: D102 - `Disk` documents the methods that are overridden here

from __future__ import annotations

import errno
import itertools
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from lora_sidecar.checkpoint.disk import Disk


class Steps(Disk):
    """Does what a disk does, and calls `before` with each step's number (from 0) and name."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def before(self, number: int, step: str) -> None:
        """Do nothing: for subclasses."""

    def _step(self, step: str) -> None:
        self.taken.append(step)
        self.before(len(self.taken) - 1, step)

    def create(self, directory: int, name: str) -> int:
        self._step("create")
        return super().create(directory, name)

    def write(self, file: int, data: memoryview) -> int:
        self._step("write")
        return super().write(file, data)

    def fsync(self, file: int) -> None:
        self._step("fsync")
        super().fsync(file)

    def link(self, directory: int, source: str, target: str) -> None:
        self._step("link")
        super().link(directory, source, target)

    def rename(self, directory: int, source: str, target: str) -> None:
        self._step("rename")
        super().rename(directory, source, target)

    def unlink(self, directory: int, name: str) -> None:
        self._step("unlink")
        super().unlink(directory, name)

    def fsync_directory(self, directory: int) -> None:
        self._step("fsync_directory")
        super().fsync_directory(directory)


class FailingDisk(Steps):
    """Refuses the steps of these numbers with an errno."""

    def __init__(self, number: int, *steps: int) -> None:
        super().__init__()
        self.number = number
        self.steps = set(steps)

    def before(self, number: int, step: str) -> None:
        if number in self.steps:
            raise OSError(self.number, os.strerror(self.number), step)


class UnlinkedDisk(Steps):
    """A volume without hard links."""

    def link(self, directory: int, source: str, target: str) -> None:
        del directory, source, target
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


class DyingDisk(Steps):
    """Kills the process, as SIGKILL does, just before the step of this number."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.last = step

    def before(self, number: int, step: str) -> None:
        del step
        if number == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class ShortDisk(Steps):
    """Writes at most seven bytes at a time."""

    def write(self, file: int, data: memoryview) -> int:
        return super().write(file, data[:7])


Image = dict[str, bytes]
"""What a directory holds after a power loss: names and contents."""

_Change = tuple[str | None, str | None, int]
"""A change to the directory that is not durable yet: the name it takes away, the name it sets, and the file."""


class Platter(Steps):
    """Keeps apart what is durable and what only the running system sees (the method of SQLite's crash tests).

    Before a file's sync its bytes may be all lost, cut short, or zeros; before the directory's sync any of the changes
    to it may be lost, whatever became of the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._contents: dict[int, bytes] = {}
        self._synced: dict[int, bytes] = {}
        self._names: dict[str, int] = {}
        self._durable: dict[str, int] = {}
        self._pending: list[_Change] = []
        self._files: dict[int, int] = {}
        self._count = itertools.count()
        self.images: list[Image] = []

    def before(self, number: int, step: str) -> None:
        del number, step
        self.images.extend(self.after_power_loss())

    def hold(self, name: str, data: bytes) -> None:
        """Take a file that stands in the directory already for durable."""
        self._names[name] = self._durable[name] = file = next(self._count)
        self._contents[file] = self._synced[file] = data

    def after_power_loss(self) -> Iterator[Image]:
        """Every directory that a power loss at this moment can leave."""
        for kept in itertools.product((False, True), repeat=len(self._pending)):
            for damage in _DAMAGES:
                yield self._image(kept, damage)

    def a_power_loss(self, chance: Random) -> Image:
        """One of the directories that a power loss at this moment can leave."""
        return self._image([chance.random() < 0.5 for _ in self._pending], chance.choice(_DAMAGES))

    def _image(self, kept: Sequence[bool], damage: Callable[[bytes], bytes]) -> Image:
        """What is left where these of the pending changes were written back."""
        names = dict(self._durable)
        for old, new, file in itertools.compress(self._pending, kept):
            if old is not None:
                names.pop(old, None)
            if new is not None:
                names[new] = file
        return {
            name: self._synced[file] if file in self._synced else damage(self._contents[file])
            for name, file in names.items()
        }

    def create(self, directory: int, name: str) -> int:
        opened = super().create(directory, name)
        self._files[opened] = file = next(self._count)
        self._contents[file] = b""
        self._names[name] = file
        self._pending.append((None, name, file))
        return opened

    def write(self, file: int, data: memoryview) -> int:
        written = super().write(file, data)
        self._contents[self._files[file]] += data[:written]
        return written

    def fsync(self, file: int) -> None:
        super().fsync(file)
        self._synced[self._files[file]] = self._contents[self._files[file]]

    def link(self, directory: int, source: str, target: str) -> None:
        super().link(directory, source, target)
        self._names[target] = self._names[source]
        self._pending.append((None, target, self._names[source]))

    def rename(self, directory: int, source: str, target: str) -> None:
        super().rename(directory, source, target)
        self._names[target] = self._names.pop(source)
        self._pending.append((source, target, self._names[target]))

    def unlink(self, directory: int, name: str) -> None:
        super().unlink(directory, name)
        self._pending.append((name, None, self._names.pop(name)))

    def fsync_directory(self, directory: int) -> None:
        super().fsync_directory(directory)
        self._durable = dict(self._names)
        self._pending.clear()


def _lost(data: bytes) -> bytes:
    return data[:0]


def _torn(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _zeroed(data: bytes) -> bytes:
    return bytes(len(data))


_DAMAGES: tuple[Callable[[bytes], bytes], ...] = (_lost, _torn, _zeroed)


def fork(work: Callable[[], None]) -> int:
    """Do the work in a child process, whose id is returned; the child never returns from here.

    The child exits with 0, with 1 where the work raised, or is killed by its own disk.
    """
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads; the child only makes system calls.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Wait for a child; its exit status, or minus the number of the signal that killed it."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def temporaries(directory: Path) -> list[str]:
    """The temporary files in a directory."""
    return [path.name for path in directory.iterdir() if path.suffix == ".tmp"]
