"""The only writer of files: keeps one server's checkpoint on disk through crashes, full disks and damaged files.

The traps guarded against, each met in production by somebody: a file replaced without syncing the file and then its
directory is empty after a power loss; two processes write the same file; a damaged file ends the process in a crash
loop, or is silently overwritten by an empty state. So a save is temporary file, write, fsync, rename, fsync of the
directory, relative to one descriptor of the directory and under a lock; and whatever cannot be used is moved aside,
named, and worked around.

Everything here blocks, and is meant for one worker thread. What is raised is `CheckpointError` (go on in memory, try
again later) and, by `Store.open` only, `LockHeldError`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from msgspec import Struct

from lora_sidecar.checkpoint.aside import Aside, RejectedFile, RejectedKind, names_like
from lora_sidecar.checkpoint.decode import MAX_BYTES, Checkpoint, Corrupt, Format, TooNew, decode
from lora_sidecar.checkpoint.disk import Disk, explained, open_lock, read_at, read_path
from lora_sidecar.checkpoint.encode import encode
from lora_sidecar.core.errors import CheckpointError, LockHeldError

_LOCK_PAUSE = 0.05


class Loaded(Struct, frozen=True):
    """What the directory held. Where `source` is "previous", the next save should not wait for a change.

    Nor where it is not `durable`: a power loss could still bring back the generation before it.
    """

    checkpoint: Checkpoint | None
    source: Literal["current", "previous", "none"]
    notes: tuple[RejectedFile, ...] = ()
    durable: bool = True


class _Found(Struct, frozen=True):
    checkpoint: Checkpoint
    current: bool
    configured: bool


class Store:
    """One server's checkpoint in a directory: `open`, then `load`, then `save` as often as needed, then `close`.

    After a `CheckpointError` each of them may be called again at any time. No save happens before a load succeeded,
    so what was remembered is never overwritten unread.
    """

    def __init__(self, directory: str, server: str, format: Format, disk: Disk | None = None) -> None:  # noqa: A002
        # Without dots and slashes, and another for each server, so that no server's file is taken for another's.
        stem = quote(server, safe="", errors="surrogatepass").replace(".", "%2E")
        other = "yaml" if format == "json" else "json"
        self.directory = directory
        self.server = server
        self._disk = disk or Disk()
        self._stem = stem
        self._current, self._previous = f"{stem}.{format}", f"{stem}.prev.{format}"
        self._other_current, self._other_previous = f"{stem}.{other}", f"{stem}.prev.{other}"
        self._format: Format = format
        self._aside = Aside(self._disk, directory, stem)
        self._held = ExitStack()
        self._fd: int | None = None
        self._loaded = False
        self._was_loaded = False

    def open(self, wait: float = 0.0) -> None:
        """Take the directory's lock for this server, trying for `wait` seconds, and remove what a crash left behind.

        Raises LockHeldError where another process has the lock, and CheckpointError where the directory is missing
        or cannot be used.
        """
        self.close()
        lock = f"{self._stem}.lock"
        with ExitStack() as stack:
            with explained("open the checkpoint directory", self.directory, self.directory):
                directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            with explained("open the lock file", self._path(lock), self.directory):
                file = open_lock(directory, lock)
            stack.callback(os.close, file)
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise CheckpointError("lock", self._path(lock), "it is not a regular file", "remove it")
            with explained("lock", self._path(lock), self.directory):
                self._lock(file, lock, wait)
            self._held, self._fd = stack.pop_all(), directory
        for name in names_like(rf"\.{self._stem}\.[0-9a-f]{{16}}\.tmp", directory, self.directory):
            # A leftover only costs space, so a directory that refuses is no reason to stop.
            with suppress(OSError):
                self._disk.unlink(directory, name)

    def load(self) -> Loaded:
        """Read the newest generation that is sound, and move aside whatever else stands in a checkpoint's place.

        Raises CheckpointError where a file may be sound but cannot be read now, or is of a newer version and cannot
        be moved out of the way: it must not be overwritten then.
        """
        directory = self._opened()
        found: list[_Found] = []
        notes: list[RejectedFile] = []
        for name in (self._current, self._other_current, self._previous, self._other_previous):
            with explained("read the checkpoint", self._path(name), self.directory):
                data = read_at(directory, name)
            if data is None:
                continue
            match decode(data) if isinstance(data, bytes) else data:
                case Checkpoint(server=server) as checkpoint if server == self.server:
                    current = name in {self._current, self._other_current}
                    found.append(_Found(checkpoint, current, name in {self._current, self._previous}))
                case Checkpoint(server=server):
                    reason, hint = f"it belongs to the server {server!r}", "give each server a name of its own"
                    notes.append(self._aside.quarantine(directory, RejectedKind.FOREIGN, name, reason, hint))
                case Corrupt(reason, hint):
                    notes.append(self._aside.quarantine(directory, RejectedKind.CORRUPT, name, reason, hint))
                case TooNew(version) as newer:
                    notes.append(self._aside.keep_newer(directory, name, version, newer.reason))
        self._loaded = self._was_loaded = True
        if not found:
            return Loaded(None, "none", tuple(notes))
        # Two current files are there where a crash fell between the two halves of a change of format.
        best = max(found, key=lambda one: (one.current, one.checkpoint.generation, one.configured))
        return Loaded(best.checkpoint, "current" if best.current else "previous", tuple(notes), self._synced())

    def _synced(self) -> bool:
        """Make durable what a process renamed that did not live to sync it; whether that is done."""
        try:
            self._disk.fsync_directory(self._opened())
        except OSError:
            return False
        return True

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the file; on return the new generation is durable.

        Raises CheckpointError. The old or the new generation is then in place, whole, and the save is to be repeated.
        """
        directory = self._attached()
        data = encode(checkpoint, self._format)
        current = self._path(self._current)
        if len(data) > MAX_BYTES:
            hint = "lower policy.adopt.max, or use shorter adapter names"
            raise CheckpointError("write the checkpoint", current, f"it would be larger than {MAX_BYTES} bytes", hint)
        fresh, kept = (f".{self._stem}.{secrets.token_hex(8)}.tmp" for _ in range(2))
        try:
            with explained("write the checkpoint", current, self.directory):
                self._write(directory, fresh, data)
                has_kept = self._keep_current(directory, kept)
                self._disk.rename(directory, fresh, self._current)
            with explained("make durable the checkpoint", current, self.directory):
                self._disk.fsync_directory(directory)
            if has_kept:
                with explained("keep the previous checkpoint as", self._path(self._previous), self.directory):
                    self._disk.rename(directory, kept, self._previous)
        finally:
            # Gone already after a success, but for one case: rename does nothing where both names are one file.
            for name in (fresh, kept):
                with suppress(OSError):
                    self._disk.unlink(directory, name)
        self._retire_other_format(directory, has_kept=has_kept)

    def close(self) -> None:
        """Give up the lock."""
        self._fd = None
        self._loaded = False
        self._held.close()

    def _path(self, name: str) -> str:
        return str(Path(self.directory) / name)

    def _opened(self) -> int:
        if self._fd is None:
            raise CheckpointError("use the checkpoint directory", self.directory, "it is not open")
        return self._fd

    def _attached(self) -> int:
        """The directory's descriptor, taken anew where another directory stands at its path now (a remount)."""
        if not self._was_loaded:
            cause = "what is there has not been read yet, and would be lost"
            raise CheckpointError("write the checkpoint", self._path(self._current), cause)
        with explained("find the checkpoint directory", self.directory, self.directory):
            there = Path(self.directory).stat()
            here = None if self._fd is None else os.fstat(self._fd)
        if here is None or (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            try:
                self.open()
            except LockHeldError as error:
                raise CheckpointError(error.attempted, error.target, error.cause, error.hint) from error
        if not self._loaded:
            # Memory is newer than what stands there, which is only moved aside where it must not be overwritten.
            self.load()
        return self._opened()

    def _lock(self, file: int, name: str, wait: float) -> None:
        deadline = time.monotonic() + wait
        pause = threading.Event()
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    break
            pause.wait(_LOCK_PAUSE)
        hint = (
            "another lora-sidecar runs with this directory and server name; its lock ends with it, "
            "and removing the file would let both write"
        )
        raise LockHeldError("lock", self._path(name), "another process holds it", hint)

    def _write(self, directory: int, name: str, data: bytes) -> None:
        file = self._disk.create(directory, name)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._disk.write(file, rest) :]
            self._disk.fsync(file)
        finally:
            os.close(file)

    def _keep_current(self, directory: int, name: str) -> bool:
        """Give the current generation a second name, and say whether there was one."""
        try:
            self._disk.link(directory, self._current, name)
        except FileNotFoundError:
            return False
        except OSError:
            # No hard links here (FAT, some FUSE and network volumes). Whatever else it was, copying will meet too.
            data = read_at(directory, self._current)
            if not isinstance(data, bytes):
                return False
            self._write(directory, name, data)
        return True

    def _retire_other_format(self, directory: int, *, has_kept: bool) -> None:
        """Make the file of the format used before the previous generation, and drop it once there is a newer one.

        A failure is harmless: a file of the other format is used only where its generation is the highest.
        """
        with suppress(OSError):
            self._disk.rename(directory, self._other_current, self._other_previous)
        if has_kept:
            with suppress(OSError):
                self._disk.unlink(directory, self._other_previous)


def read_file(path: str) -> bytes:
    """A file's bytes for `codec.decode`, read without a lock. Raises CheckpointError."""
    with explained("read", path, str(Path(path).parent)):
        data = read_path(path)
    if isinstance(data, Corrupt):
        raise CheckpointError("read", path, data.reason, data.hint)
    return data
