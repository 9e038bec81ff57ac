"""Looks at an adapter's folder before the engine is given it: what holds it back is known, and its pages are cached.

Two traps are guarded against. The engine reads without a deadline, between two steps of every request; so the same
bytes are read here first, in a thread, in bounded pieces, each with a deadline, and a folder that cannot be read in
time is not sent. And a check that keeps a good adapter away: what the engine had loaded from these very bytes is sent
again whatever is found, and what cannot be seen from here (not mounted, no permission, a hub id) is passed on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from typing import Final, assert_never

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.config.settings import Config, PreflightConfig
from lora_sidecar.core.model import Adapter, Origin
from lora_sidecar.core.outcomes import Failure, FailureKind, Looked
from lora_sidecar.core.text import printable
from lora_sidecar.files.folder import Absent, NoFolder, is_visible, read_file, read_folder, warm
from lora_sidecar.files.peft import CONFIG, Engine, Finding, Folder, Hold, Limits, Unseen, Weights, check, outside_roots
from lora_sidecar.files.safetensors import BaseShape, base_shape
from lora_sidecar.threads import NoThreadError, ReaderPool

LARGE: Final = 1024**3
"""Bytes of weights from which on an adapter is not read along with its check: others can be sent meanwhile."""

_SLICE: Final = 0.25
"""Seconds for which weights are read in one go, so that the check of another adapter gets its turn."""

_BASE_CONFIG_BYTES: Final = 1024 * 1024


class Inspection(Struct, frozen=True):
    """What one look at an adapter's folder came to.

    `unchecked` is why something could not be looked at, empty if all was read. `files` is the fingerprint of what was
    read, empty where not all of it was. `is_cold` is whether the weights are still to be read (`Preflight.warm`).
    """

    findings: tuple[Finding, ...] = ()
    unchecked: str = ""
    files: str = ""
    is_cold: bool = False

    @property
    def looked(self) -> Looked:
        """What of it an outcome keeps."""
        return Looked(self.files, self.unchecked, tuple(one.message for one in self.findings if one.holds is None))

    @property
    def refusal(self) -> Failure | None:
        """Why the adapter is not to be sent, None if it may be."""
        first = next((one for one in self.findings if one.holds is not None), None)
        return None if first is None else Failure(first.kind, f"preflight, not sent: {first.message}")


_HUNG = Finding(
    FailureKind.FILES,
    "its files cannot be read in time: the disk hangs",
    "the engine would stand still on it, with every request; look at the volume",
    Hold.HANG,
)


class Preflight:
    """The checks of one server's adapters, one at a time. Set `engine` to what the server was identified as."""

    def __init__(
        self, name: str, config: Config, readers: ReaderPool | None = None, accepted: Mapping[str, str] | None = None
    ) -> None:
        """`name` is the server's in the config, `readers` is where the disk is waited for.

        `accepted` maps paths to the fingerprint of the files that the server listed an adapter from; it is looked up at
        every check.
        """
        self._name = name
        self._readers = readers or ReaderPool(f"preflight-{name}")
        self._accepted = {} if accepted is None else accepted
        self.engine: Engine | None = None
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Go by another config from the next check on."""
        server = next((one for one in config.servers if one.name == self._name), None)
        self._config = config.preflight
        self._max_rank = None if server is None else server.max_lora_rank
        self._base_model_config = None if server is None else server.base_model_config

    async def inspect(self, adapter: Adapter, *, warm: bool = True) -> Inspection:
        """Read and check one adapter; each of its files has `preflight.timeout`.

        `warm` reads its weights as well, so that the engine finds them in memory, unless they are `LARGE`.
        """
        config = self._config
        if not config.enabled:
            return Inspection(unchecked="preflight.enabled is false")
        base = await self._base_shape()
        limits = Limits(self._max_rank, config.allow_pickle, (), base, self.engine, config.hold_deadly)
        look = partial(_look, adapter.path, config, limits)
        try:
            found, size = await self._readers.run(adapter.path, look, config.timeout)
        except NoThreadError as error:
            return Inspection(unchecked=str(error))
        except TimeoutError:
            return Inspection((_HUNG,))
        found = self._without_what_was_accepted(adapter, found)
        if not warm or size == 0 or found.refusal is not None:
            return found
        if size > LARGE:
            return replace(found, is_cold=True)
        return replace(found, findings=(*await self._warm(adapter.path), *found.findings))

    async def _base_shape(self) -> BaseShape | None:
        path = self._base_model_config
        if path is None:
            return None
        try:
            return await self._readers.run(path, partial(_read_base_shape, path), self._config.timeout)
        except TimeoutError:
            # The disk of the base model says nothing of an adapter's.
            return None

    async def warm(self, adapter: Adapter) -> Failure | None:
        """Read the weights of an adapter, for `preflight.timeout` at most; why it is not to be sent, if the disk hangs.

        For one that is large (`Inspection.is_cold`), once nothing else can be sent. What the time did not suffice for
        is read by the engine.
        """
        return Inspection(await self._warm(adapter.path)).refusal

    async def _warm(self, path: str) -> tuple[Finding, ...]:
        timeout = self._config.timeout
        until = asyncio.get_running_loop().time() + timeout
        at = 0
        try:
            while at >= 0 and asyncio.get_running_loop().time() < until:
                at = await self._readers.run(path, partial(warm, path, at, _SLICE), timeout)
        except NoThreadError:
            return ()
        except TimeoutError:
            return (_HUNG,)
        return ()

    def _without_what_was_accepted(self, adapter: Adapter, found: Inspection) -> Inspection:
        """The inspection without the holds that the engine's own word has refuted.

        It had loaded an adapter that was adopted, if nobody knows from which bytes. That SGLang lists one says nothing
        of its weights.
        """
        known = self._accepted.get(adapter.path) or self._accepted.get(adapter.listed_as or "")
        if known is None:
            refuted = {Hold.LIMIT} if adapter.origin is Origin.ADOPTED else set()
        else:
            refuted = {Hold.LIMIT, Hold.SHORT} if known == found.files else set()
        findings = (replace(one, holds=None) if one.holds in refuted else one for one in found.findings)
        return replace(found, findings=tuple(findings)) if refuted else found

    async def absence(self, adapter: Adapter) -> Failure | None:
        """Why it must not be expected to load, None where it is there or its place is not for us to see.

        For who would unload another for it: that is not to be done for files that are not there, or answer with errors.
        """
        path = adapter.path
        try:
            found = await self._readers.run(path, partial(read_folder, path), self._config.timeout)
        except NoThreadError:
            return None
        except TimeoutError as error:
            return Failure(FailureKind.FILES, f"{printable(path)} cannot be read: {error}")
        parts = (found.config, found.weights) if isinstance(found, Folder) else (found,)
        if why := next((one.why for one in parts if isinstance(one, Unseen) and one.is_error), ""):
            return Failure(FailureKind.FILES, f"{printable(path)} cannot be read: {why}")
        if isinstance(found, Absent) or (isinstance(found, Folder) and found.config is None):
            return Failure(FailureKind.FILES, f"there is no {CONFIG} in {printable(path)}")
        return None


def _look(path: str, config: PreflightConfig, limits: Limits) -> tuple[Inspection, int]:
    """What is to be said of a folder, and how many bytes of weights there are to be read; blocks on the disk."""
    roots = tuple(os.path.realpath(root) for root in config.roots)
    limits = replace(limits, roots=roots)
    folder = read_folder(path)
    match folder:
        case Unseen() | Absent():
            places = outside_roots(os.path.realpath(path), roots) if is_visible(path) else ()
            return Inspection(tuple(places), unchecked=folder.why), 0
        case NoFolder():
            found = Finding(FailureKind.FILES, f"{printable(path)} is not a directory", "name the adapter's folder")
            return Inspection((found,)), 0
        case Folder():
            unread = [one.why for one in (folder.config, folder.weights) if isinstance(one, Unseen)]
            size = folder.weights.size if isinstance(folder.weights, Weights) else 0
            return Inspection(check(folder, limits), "; ".join(unread), folder.fingerprint), size
        case _:
            assert_never(folder)


def _read_base_shape(path: str) -> BaseShape | None:
    """The shapes of the base model in a folder or config.json; None where it cannot be read or is not understood."""
    text = read_file(os.path.join(path, "config.json") if os.path.isdir(path) else path, _BASE_CONFIG_BYTES)
    return base_shape(text) if isinstance(text, bytes) else None
