"""The simulated volume of the checkpoint: real files, on a disk that fails, fills up, hangs, dies with us, or forgets.

The trap guarded against is a disk that is only ever slow or only ever full. A step of a save may be refused with an
errno, end the process, or be the last one before a power loss, of which the write-list disk knows every outcome.
"""

# ruff: noqa: D102 - `Disk` documents the methods that are overridden here

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from lora_sidecar.checkpoint.decode import Checkpoint, Format
from lora_sidecar.checkpoint.disk import Disk
from lora_sidecar.checkpoint.store import Loaded, Store
from lora_sidecar.threads import BlockingCall
from tests.support.disks import Platter

T = TypeVar("T")

STEPS = ("create", "write", "fsync", "link", "rename", "unlink", "fsync_directory")


class DiedError(BaseException):
    """The process was killed at this very step: no code of it runs after it."""


class _Quiet(Platter):
    """The write-list disk; what a power loss leaves is asked for and not kept for every step."""

    def before(self, number: int, step: str) -> None:
        del number, step


class Volume:
    """A directory that outlives the sidecar, and what is wrong with it at the moment."""

    def __init__(self, directory: Path, rng: Random) -> None:
        self.directory = directory
        self.platter: Platter = _Quiet()
        self.errno: int | None = None
        self.failing: tuple[str, ...] = ()
        self.seconds = 0.0
        self.dies_in: int | None = None
        self._rng = rng
        directory.mkdir()

    def heal(self) -> None:
        """Nothing is wrong with it any more."""
        self.errno, self.seconds, self.dies_in = None, 0.0, None

    def lose_power(self) -> None:
        """Replace the directory by one of those that a power loss at this moment can leave."""
        image = self.platter.a_power_loss(self._rng)
        for path in self.directory.iterdir():
            path.unlink()
        self.platter = _Quiet()
        for name, data in image.items():
            (self.directory / name).write_bytes(data)
            self.platter.hold(name, data)

    def damage(self) -> bool:
        """Flip a bit of the current file; whether there is one."""
        files = [path for path in sorted(self.directory.iterdir()) if path.name in ("vllm.json", "vllm.yaml")]
        for path in files:
            data = bytearray(path.read_bytes())
            if data:
                data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
                path.write_bytes(data)
                self.platter.hold(path.name, bytes(data))
                return True
        return False


class LifeDisk(Disk):
    """The volume as one life of the sidecar sees it."""

    def __init__(self, volume: Volume, died: Callable[[], None]) -> None:
        self._volume = volume
        self._died = died
        self.dead = False

    def _step(self, step: str) -> Disk:
        volume = self._volume
        if volume.dies_in is not None and not self.dead:
            volume.dies_in -= 1
            if volume.dies_in <= 0:
                volume.dies_in = None
                self.dead = True
                self._died()
        if self.dead:
            raise DiedError
        if volume.errno is not None and step in volume.failing:
            raise OSError(volume.errno, os.strerror(volume.errno), step)
        return volume.platter

    def create(self, directory: int, name: str) -> int:
        return self._step("create").create(directory, name)

    def write(self, file: int, data: memoryview) -> int:
        return self._step("write").write(file, data)

    def fsync(self, file: int) -> None:
        self._step("fsync").fsync(file)

    def link(self, directory: int, source: str, target: str) -> None:
        self._step("link").link(directory, source, target)

    def rename(self, directory: int, source: str, target: str) -> None:
        self._step("rename").rename(directory, source, target)

    def unlink(self, directory: int, name: str) -> None:
        self._step("unlink").unlink(directory, name)

    def fsync_directory(self, directory: int) -> None:
        self._step("fsync_directory").fsync_directory(directory)


class WatchedStore(Store):
    """The real store, which tells the model what it was asked to save, what it saved, and what it read."""

    def __init__(self, volume: Volume, disk: Disk, format_: Format, told: Any) -> None:
        super().__init__(str(volume.directory), "vllm", format_, disk)
        self._told = told

    def save(self, checkpoint: Checkpoint) -> None:
        self._told.saving(checkpoint)
        super().save(checkpoint)
        self._told.saved(checkpoint)

    def load(self) -> Loaded:
        loaded = super().load()
        self._told.loaded(loaded)
        return loaded


class VirtualCall(BlockingCall):
    """Blocking work on virtual time: it takes as long as the volume says, and goes on after its deadline."""

    def __init__(self, name: str, volume: Volume) -> None:
        super().__init__(name)
        self._volume = volume
        self._works: set[asyncio.Future[Any]] = set()

    async def run(self, function: Callable[[], T], deadline: float) -> T:
        """Call the function; see `BlockingCall.run`."""
        if self._volume.seconds <= 0.0 and not self._works:
            return function()
        if self._works:
            raise TimeoutError("an earlier call has not come back yet")
        work = asyncio.ensure_future(self._late(function))
        self._works.add(work)
        work.add_done_callback(self._ended)
        async with asyncio.timeout(deadline):
            return await asyncio.shield(work)

    def _ended(self, work: asyncio.Future[Any]) -> None:
        self._works.discard(work)
        if not work.cancelled():
            # The caller may have left at its deadline; then nobody else would look at the error.
            work.exception()

    async def _late(self, function: Callable[[], T]) -> T:
        await asyncio.sleep(self._volume.seconds)
        return function()

    async def settle(self, deadline: float) -> bool:
        """See `BlockingCall.settle`."""
        if self._works:
            await asyncio.wait(self._works, timeout=deadline)
        return not self._works

    def die(self) -> None:
        """Nothing of it runs after its process was killed."""
        for work in self._works:
            work.cancel()
