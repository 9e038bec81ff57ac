"""Reads an adapter's folder before the engine is made to: what is wrong with it is known, and its pages are cached.

The traps guarded against are a disk that hangs and a file that is none. The engine reads without a deadline, between
two steps of every request; so the same bytes are read here first, in a thread, in bounded pieces, each with a deadline,
and a folder that cannot be read is not sent.
What cannot be seen from here (not mounted, no permission, a hub id) is passed on, and said to be unchecked.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from functools import partial
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.config.settings import Config, PreflightConfig
from lora_sidecar.core.model import Adapter, Origin
from lora_sidecar.core.outcomes import Failure, FailureKind, Looked, Result
from lora_sidecar.files.peft import (
    CONFIG,
    PICKLES,
    SAFETENSORS,
    Finding,
    Folder,
    Limits,
    Weights,
    check,
    rank_limit_in,
)
from lora_sidecar.files.safetensors import HEADER_LENGTH_BYTES, BaseShape, base_shape
from lora_sidecar.threads import NoThreadError, ReaderPool

_WEIGHTS: Final = (SAFETENSORS, *PICKLES)
_CONFIG_BYTES: Final = 1024 * 1024
_HEADER_BYTES: Final = 8 * 1024 * 1024
_PIECE: Final = 64 * 1024 * 1024
_BUFFER: Final = 1024 * 1024

_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""Errors that tell of this process, and nothing of the file."""

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class Inspection(Struct, frozen=True):
    """What one look at an adapter's folder came to.

    `unchecked` is why nothing can be said, empty if it was read. `files` is the fingerprint of what was read.
    """

    findings: tuple[Finding, ...] = ()
    unchecked: str = ""
    files: str = ""

    @property
    def looked(self) -> Looked:
        """What of it an outcome keeps."""
        doubts = tuple(one.message for one in self.findings if not one.certain)
        return Looked(self.files, self.unchecked, doubts)

    @property
    def refusal(self) -> Failure | None:
        """Why the adapter is not to be sent, None if it may be."""
        first = next((one for one in self.findings if one.certain), None)
        return None if first is None else Failure(first.kind, f"preflight, not sent: {first.message}")


class Unseen(Struct, frozen=True):
    """A path that cannot be looked at from here, and why."""

    why: str


_HUNG = Finding(
    FailureKind.FILES,
    "its files cannot be read in time: the disk hangs or is too slow",
    "the engine would stand still on it, with every request; look at the volume",
)


class Preflight:
    """The checks of one server's adapters, one at a time."""

    def __init__(self, name: str, config: Config, slots: ReaderPool | None = None) -> None:
        """`name` is the server's in the config, `slots` is where the disk is waited for."""
        self._name = name
        self._slots = slots or ReaderPool(f"preflight-{name}")
        self._learned: tuple[int, int] | None = None
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Go by another config from the next check on."""
        server = next((one for one in config.servers if one.name == self._name), None)
        self._config = config.preflight
        self._is_vllm = server is None or server.engine != "sglang"
        self._max_rank = None if server is None else server.max_lora_rank
        self._base_model_config = None if server is None else server.base_model_config

    def learn(self, result: Result, incarnation: int) -> None:
        """Take the rank limit out of a server's refusal; it holds for that life of the server."""
        if isinstance(result, Failure) and (limit := rank_limit_in(result.message)) is not None:
            self._learned = (incarnation, limit)

    async def inspect(self, adapter: Adapter, incarnation: int, *, warm: bool = True) -> Inspection:
        """Read and check one adapter; `warm` reads all of its weights, so that the engine finds them in memory."""
        if not self._config.enabled:
            return Inspection(unchecked="preflight.enabled is false")
        learned = self._learned[1] if self._learned is not None and self._learned[0] == incarnation else self._max_rank
        config, base = self._config, self._base_model_config
        # A learned adapter was accepted by the server in the form that it has.
        pickles = config.allow_pickle or adapter.origin is Origin.ADOPTED
        try:
            limits = Limits(learned, pickles, vllm=self._is_vllm)
            look = partial(_inspect, adapter.path, config, base, limits, warm=warm)
            found, at = await self._slots.run(adapter.path, look, config.timeout)
            while at >= 0:
                at = await self._slots.run(adapter.path, partial(_warm, adapter.path, at), config.timeout)
        except NoThreadError as error:
            return Inspection(unchecked=str(error))
        except TimeoutError:
            return Inspection((_HUNG,))
        return found

    async def absence(self, adapter: Adapter) -> Failure | None:
        """Why it is not in its place, None where it is or where the folder above it cannot be seen from here."""
        try:
            absent = await self._slots.run(adapter.path, partial(_is_mistaken, adapter.path), self._config.timeout)
        except NoThreadError:
            return None
        except (TimeoutError, OSError) as error:
            return Failure(FailureKind.FILES, f"{adapter.path} cannot be read: {error}")
        return Failure(FailureKind.FILES, f"there is no {CONFIG} in {adapter.path}") if absent else None


def _is_mistaken(path: str) -> bool:
    above = os.path.dirname(path.rstrip("/"))
    return is_visible(path) and os.path.isdir(above) and not os.path.isfile(os.path.join(path, CONFIG))


def _inspect(
    path: str, config: PreflightConfig, base: str | None, limits: Limits, *, warm: bool
) -> tuple[Inspection, int]:
    """What is to be said of a folder, and where `_warm` goes on with the weights, -1 where there is nothing to read."""
    found = _look(path, config, base, limits)
    if not warm or found.unchecked or found.refusal:
        return found, -1
    # In the same turn: most weights are one piece, and a turn costs as much as reading them.
    return found, _warm(path, 0)


def _look(path: str, config: PreflightConfig, base: str | None, limits: Limits) -> Inspection:
    # Before the reading: what changes meanwhile is another state than the one that was read.
    marks = fingerprint(path) if is_visible(path) else ""
    folder = read_folder(path)
    if isinstance(folder, Unseen):
        return Inspection(unchecked=folder.why)
    if isinstance(folder, Finding):
        return Inspection((folder,), files=marks)
    roots = tuple(os.path.realpath(root) for root in config.roots)
    limits = replace(limits, roots=roots, base=None if base is None else read_base_shape(base))
    return Inspection(check(folder, limits), files=marks)


def read_base_shape(path: str) -> BaseShape | None:
    """The shapes of the base model in a folder or config.json; None where it cannot be read or is not understood."""
    try:
        at = os.path.join(path, "config.json") if os.path.isdir(path) else path
        found = _read(at, _CONFIG_BYTES)
    except OSError:
        return None
    return None if found is None else base_shape(found[0])


def read_folder(path: str) -> Folder | Finding | Unseen:
    """Read an adapter's config and the header of its weights; blocks on the disk.

    A folder that is there and cannot be read is a finding, one that is not there for us is unseen.
    """
    if not is_visible(path):
        return Unseen("it is a hub id, which only the server resolves")
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            where = os.path.join(path, CONFIG)
            return Finding(FailureKind.FILES, f"[Errno 20] Not a directory: {where!r}", "name the adapter's folder")
    except OSError as error:
        return Unseen(f"it cannot be seen from here: {os.strerror(error.errno or 0)}")
    try:
        config = _read(os.path.join(path, CONFIG), _CONFIG_BYTES)
        return Folder(path, os.path.realpath(path), None if config is None else config[0], _weights(path))
    except PermissionError as error:
        return Unseen(f"its files cannot be read from here: {os.strerror(error.errno or 0)}")
    except MemoryError:
        return Unseen("its files cannot be read now: no memory is left")
    except OSError as error:
        if error.errno in _OURS:
            return Unseen(f"its files cannot be read now: {os.strerror(error.errno or 0)}")
        return Finding(FailureKind.FILES, f"its files cannot be read: {error}", "look at the volume")


def _weights(path: str) -> Weights | None:
    for name in _WEIGHTS:
        at = os.path.join(path, name)
        found = _read(at, HEADER_LENGTH_BYTES)
        if found is None:
            continue
        head, size = found
        length = int.from_bytes(head, "little")
        if name in PICKLES or len(head) < HEADER_LENGTH_BYTES or length > size:
            return Weights(name, size, head)
        if length > _HEADER_BYTES:
            return Weights(name, size)
        whole = _read(at, HEADER_LENGTH_BYTES + length)
        return None if whole is None else Weights(name, whole[1], whole[0])
    return None


def _read(path: str, most: int) -> tuple[bytes, int] | None:
    """The first bytes of a regular file, and its size; None where there is none. Raises `OSError`.

    Opened without blocking, so that a named pipe does not hold us up as it would the engine.
    """
    try:
        file = os.open(path, _FLAGS)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", path)
        parts: list[bytes] = []
        while most > 0 and (part := os.read(file, min(most, _BUFFER))):
            parts.append(part)
            most -= len(part)
        return b"".join(parts), found.st_size
    finally:
        os.close(file)


def is_visible(path: str) -> bool:
    """Whether a path may name a folder here: a listing may hold any text, which the operating system must not get."""
    return path.startswith("/") and path.isprintable()


def is_complete(path: str) -> bool:
    """Whether a folder has what an adapter needs; blocks on the disk."""
    return all(any(os.path.isfile(os.path.join(path, name)) for name in names) for names in ((CONFIG,), _WEIGHTS))


def _warm(path: str, begin: int) -> int:
    """Have one piece of the weights read; where the next one begins, -1 at the end or if there is nothing to read."""
    for name in _WEIGHTS:
        try:
            file = os.open(os.path.join(path, name), _FLAGS)
        except OSError:
            continue
        try:
            end = os.fstat(file).st_size
            at = begin
            with open(os.devnull, "wb", buffering=0) as nowhere:
                while at < min(end, begin + _PIECE):
                    # Copies nothing: what is in memory already takes a quarter of the time of reading it.
                    count = os.sendfile(nowhere.fileno(), file, at, min(end, begin + _PIECE) - at)
                    if count == 0:
                        return -1
                    at += count
        except OSError:
            return -1
        else:
            return at if at < end else -1
        finally:
            os.close(file)
    return -1


def fingerprint(path: str) -> str:
    """What tells these files from changed ones: size, time and inode of each; empty where there are none."""
    parts = []
    for name in (CONFIG, *_WEIGHTS):
        try:
            found = os.stat(os.path.join(path, name))
        except OSError:
            continue
        parts.append(f"{name} {found.st_size} {found.st_mtime_ns} {found.st_ino}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16] if parts else ""
