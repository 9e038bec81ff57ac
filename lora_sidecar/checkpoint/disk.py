"""The operating system's side of a checkpoint: the calls that change a directory, safe reading, and errors explained.

The traps guarded against: a FIFO, device, link or directory planted at a file's path, which blocks a reader or
redirects a writer; and a bare "Permission denied", which leaves a person guessing which mount and which user.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_sidecar.checkpoint.decode import MAX_BYTES, Corrupt
from lora_sidecar.core.errors import CheckpointError

# Never wait for a FIFO's other end, never take over a terminal.
_AT_ONCE = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_SAFELY = os.O_NOFOLLOW | _AT_ONCE


class Disk:
    """The calls that change a directory, one method a step, so that a test can fail or die at each of them.

    `directory` is an open directory's descriptor, and names are relative to it. All raise OSError.
    """

    def create(self, directory: int, name: str) -> int:
        """Open a new file for writing, readable by its owner only."""
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600, dir_fd=directory)

    def write(self, file: int, data: memoryview) -> int:
        """Write some of the bytes, and say how many."""
        return os.write(file, data)

    def fsync(self, file: int) -> None:
        """Make the bytes durable."""
        os.fsync(file)

    def link(self, directory: int, source: str, target: str) -> None:
        """Give a file a second name, which must be free."""
        os.link(source, target, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)

    def rename(self, directory: int, source: str, target: str) -> None:
        """Give a file another name in one step, whether or not that name is taken."""
        os.rename(source, target, src_dir_fd=directory, dst_dir_fd=directory)

    def unlink(self, directory: int, name: str) -> None:
        """Take a name away."""
        os.unlink(name, dir_fd=directory)

    def fsync_directory(self, directory: int) -> None:
        """Make the names durable."""
        try:
            os.fsync(directory)
        except OSError as error:
            # Some network and FUSE volumes cannot sync a directory; there is nothing better to do on them.
            if error.errno != errno.EINVAL:
                raise


def open_lock(directory: int, name: str) -> int:
    """Open the lock file, which is made where it is absent. Raises OSError."""
    try:
        return os.open(name, os.O_RDWR | os.O_CREAT | _SAFELY, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno not in {errno.EROFS, errno.EACCES}:
            raise
    # On a volume that became read-only the checkpoint can still be read, and the lock taken if its file is there.
    return os.open(name, os.O_RDONLY | os.O_CREAT | _SAFELY, 0o600, dir_fd=directory)


def read_at(directory: int, name: str) -> bytes | Corrupt | None:
    """A file's bytes, None where there is none. Raises OSError where they may be readable at another time."""
    try:
        file = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        match error.errno:
            case errno.ELOOP:
                return Corrupt("it is a symbolic link")
            case errno.ENXIO | errno.ENODEV:
                return Corrupt("it is a socket or a device")
            case _:
                raise
    return _contents(file)


def read_path(path: str) -> bytes | Corrupt:
    """The bytes of the file at a path, at the end of a link too. Raises OSError."""
    return _contents(os.open(path, os.O_RDONLY | _AT_ONCE))


def _contents(file: int) -> bytes | Corrupt:
    """The bytes of an open file, which is closed."""
    try:
        mode = os.fstat(file).st_mode
        if not stat.S_ISREG(mode):
            return Corrupt(f"it is not a regular file (its mode is {stat.filemode(mode)})")
        parts: list[bytes] = []
        left = MAX_BYTES + 1
        while left and (part := os.read(file, left)):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return Corrupt("the disk cannot read it back (EIO)")
    finally:
        os.close(file)
    return b"".join(parts) if left else Corrupt(f"it is larger than {MAX_BYTES} bytes")


@contextmanager
def explained(attempted: str, target: str, directory: str) -> Iterator[None]:
    """Turn an OSError into a CheckpointError that names the operation, its target, the cause and a hint."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        cause = f"{error.strerror} [{errno.errorcode.get(number, number)}]"
        raise CheckpointError(attempted, target, cause, _hint(number, directory)) from error


def _hint(number: int, directory: str) -> str:
    match number:
        case errno.ENOSPC | errno.EDQUOT:
            return f"free space on the volume of {directory}"
        case errno.EROFS:
            return f"the volume of {directory} is read-only: mount a writable one"
        case errno.EACCES | errno.EPERM:
            return f"{_ownership(directory)}: set fsGroup or runAsUser in the pod's securityContext"
        case errno.EBUSY | errno.EXDEV:
            return f"mount the directory {directory}, not a file in it with subPath"
        case errno.ENOENT | errno.ENOTDIR:
            return f"mount a volume at {directory}, or set checkpoint.directory to a directory that exists"
        case errno.EISDIR | errno.ENOTEMPTY | errno.EEXIST | errno.ELOOP | errno.ENXIO:
            return "something else stands in its place: remove it"
        case errno.ENOLCK | errno.EOPNOTSUPP | errno.EBADF:
            return f"the volume of {directory} cannot lock files: use an emptyDir or a block volume"
        case errno.EIO:
            return f"the disk under {directory} reports a failure: see the node's kernel log"
        case _:
            return ""


def _ownership(directory: str) -> str:
    us = f"this process is uid {os.geteuid()}, gid {os.getegid()}"
    try:
        status = Path(directory).stat()
    except OSError:
        return us
    return f"{us}; {directory} is {stat.filemode(status.st_mode)} of uid {status.st_uid}, gid {status.st_gid}"
