"""Reads adapters' folders: config, header, fingerprint, and the pages of the weights. Everything here blocks.

Three traps are guarded against. "Unknown" read as "absent": only a name that the operating system says is not there, in
a folder that is, is absent; no permission, an error of the disk, a link that leads nowhere from here are unseen, and
nothing may follow from them. Metadata taken for content: a file system in user space or a sync that copies anew
changes inodes and times and no byte, so a fingerprint is made of bytes. And a path that is none: a listing may hold any
text, which the operating system must not get.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar

from msgspec import Struct

from lora_sidecar.files.peft import CONFIG, PICKLES, SAFETENSORS, Folder, NotAFile, Unseen, Weights
from lora_sidecar.files.safetensors import HEADER_BYTES, HEADER_LENGTH_BYTES

WEIGHTS: Final = (SAFETENSORS, *PICKLES)

CONFIG_BYTES: Final = 8 * 1024 * 1024
"""The longest config that is read: one that names every module of a mixture of experts has more than one MiB."""

_BLOCK: Final = 4096
_BUFFER: Final = 1024 * 1024
_CHUNK: Final = 4 * 1024 * 1024
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""Errors that tell of this process, and nothing of the file."""
_ELSEWHERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM})
"""Errors of a place that is not for us, and may well be for the server."""

T = TypeVar("T")


class Digest(Protocol):
    """A hash under way."""

    def update(self, data: bytes, /) -> None:
        """Take in more."""


class Absent(Struct, frozen=True):
    """A folder whose name is not there, while the folder above it is; and that in words."""

    why: str


class NoFolder(Struct, frozen=True):
    """Something else than a folder."""


def is_visible(path: str) -> bool:
    """Whether a path may name a folder here, and not a repository of a hub. Any character but NUL is good in it."""
    return path.startswith("/") and "\0" not in path and not any("\ud800" <= c <= "\udfff" for c in path)


def is_complete(path: str) -> bool:
    """Whether a folder is seen to have what an adapter needs."""
    return all(any(os.path.isfile(os.path.join(path, name)) for name in names) for names in ((CONFIG,), WEIGHTS))


def read_folder(path: str) -> Folder | NoFolder | Absent | Unseen:
    """Read an adapter's config and the header of its weights."""
    if not is_visible(path):
        return Unseen("it is a hub id, which only the server resolves")
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            return NoFolder()
        return _read_folder(path)
    except FileNotFoundError as error:
        return Absent(_unseen(error).why) if _is_absent(path) else _unseen(error)
    except OSError as error:
        return _unseen(error)
    except MemoryError:
        return Unseen("it cannot be seen now: no memory is left")


def _read_folder(path: str) -> Folder:
    digest = hashlib.sha256()
    config = _open(path, CONFIG, partial(_config, digest))
    weights: Weights | NotAFile | Unseen | None = None
    for name in WEIGHTS:
        weights = _open(path, name, partial(_weights, digest, name))
        if isinstance(weights, NotAFile) and not weights.hangs:
            # A directory: vLLM (0.32) looks for the next.
            weights = None
        if weights is not None:
            break
    is_whole = isinstance(config, bytes) and isinstance(weights, Weights)
    return Folder(path, os.path.realpath(path), config, weights, digest.hexdigest()[:16] if is_whole else "")


def _open(folder: str, name: str, read: Callable[[int, int], T]) -> T | NotAFile | Unseen | None:
    """What `read` makes of a regular file's descriptor and size; None where the name is not there.

    Opened without blocking, so that a named pipe does not hold us up as it would the engine.
    """
    path = os.path.join(folder, name)
    try:
        file = os.open(path, _FLAGS)
    except FileNotFoundError:
        return None if _is_absent(path) else Unseen(f"{name} is a link that leads nowhere from here")
    except OSError as error:
        return _unseen(error, name)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            return NotAFile(hangs=not stat.S_ISDIR(found.st_mode))
        return read(file, found.st_size)
    except OSError as error:
        return _unseen(error, name)
    finally:
        os.close(file)


def read_file(path: str, most: int) -> bytes | NotAFile | Unseen | None:
    """The first bytes of a file; None where there is none for certain."""
    folder, name = os.path.split(path)
    return _open(folder, name, lambda file, _: _read(file, most))


def _unseen(error: OSError, name: str = "it") -> Unseen:
    now = "now" if error.errno in _OURS else "from here"
    is_error = error.errno not in _OURS | _ELSEWHERE
    return Unseen(f"{name} cannot be seen {now}: {os.strerror(error.errno or 0)}", is_error)


def _is_absent(path: str) -> bool:
    """Whether the name itself is not there, in a folder that is; what cannot be told is not absent."""
    name = path.rstrip("/") or "/"
    try:
        os.lstat(name)
    except FileNotFoundError:
        return os.path.isdir(os.path.dirname(name))
    except OSError:
        return False
    return False


def _config(digest: Digest, file: int, size: int) -> bytes | Unseen:
    if size > CONFIG_BYTES:
        return Unseen(f"{CONFIG} has more than {CONFIG_BYTES // 1024**2} MiB, and is not read")
    text = _read(file, CONFIG_BYTES)
    digest.update(b"%d\n" % len(text))
    digest.update(text)
    return text


def _weights(digest: Digest, name: str, file: int, size: int) -> Weights:
    head = os.pread(file, _BLOCK, 0)
    if name == SAFETENSORS and len(head) > HEADER_LENGTH_BYTES:
        whole = HEADER_LENGTH_BYTES + int.from_bytes(head[:HEADER_LENGTH_BYTES], "little")
        if len(head) < whole <= HEADER_LENGTH_BYTES + HEADER_BYTES:
            head = _read(file, whole)
    digest.update(f"{name} {size}\n".encode())
    digest.update(head)
    # The same layout with other values is another adapter: a sample of them tells the two apart.
    for at in (size // 2, max(0, size - _BLOCK)):
        digest.update(os.pread(file, _BLOCK, at))
    return Weights(name, size, head)


def _read(file: int, most: int) -> bytes:
    """The first bytes of a file."""
    parts: list[bytes] = []
    at = 0
    while at < most and (part := os.pread(file, min(most - at, _BUFFER), at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def warm(path: str, begin: int, seconds: float) -> int:
    """Have the weights read from `begin` on, for so long at most; where to go on, -1 at the end or where nothing is.

    A file that is sparse, or longer than a disk, is read like any other: whoever calls this again and again has a
    deadline for the whole.
    """
    until = time.monotonic() + seconds
    for name in WEIGHTS:
        try:
            file = os.open(os.path.join(path, name), _FLAGS)
        except OSError:
            continue
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                continue
            at = begin
            with open(os.devnull, "wb", buffering=0) as nowhere:
                while at < found.st_size:
                    # Copies nothing: what is in memory already takes a quarter of the time of reading it.
                    count = os.sendfile(nowhere.fileno(), file, at, min(_CHUNK, found.st_size - at))
                    if count == 0:
                        return -1
                    at += count
                    if time.monotonic() >= until:
                        return at if at < found.st_size else -1
        except OSError:
            return -1
        else:
            return -1
        finally:
            os.close(file)
    return -1


Signature = tuple[tuple[int, ...] | None, ...]


def signature(path: str) -> Signature | None:
    """The metadata of an adapter's files; None where some cannot be had. While it stays, so do the bytes."""
    if not is_visible(path):
        return None
    marks: list[tuple[int, ...] | None] = []
    for name in (CONFIG, *WEIGHTS):
        try:
            found = os.stat(os.path.join(path, name))
        except FileNotFoundError:
            marks.append(None)
        except OSError:
            return None
        else:
            marks.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return tuple(marks)
