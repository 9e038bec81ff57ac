"""What stands behind the fake server's routes: the registry of one API process and the one engine it shares.

The traps of the real engine are kept: loads run one at a time, a load goes on after its client hung up, one that is
in flight when the engine dies is never answered, and an adapter that was pushed out of the cache is read from disk
again by the next request for it, which kills the engine when its folder is gone.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable
from typing import TypeVar

from tests.fakes.adapters import AdapterRefusedError, read_adapter
from tests.fakes.dialect import Dialect

T = TypeVar("T")

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


class EngineDeadError(Exception):
    """The engine is dead, or died under this request."""


class LoadFailedError(Exception):
    """The engine lives and could not load the adapter; `str()` of it is what the server says."""


class FakeEngine:
    """One engine: it loads adapters one at a time, answers completions, sleeps, hangs and dies.

    Each of `hung`, `asleep` and `load_delay` may be set at any time and holds from the next step on. `asleep` is the
    sleep level, None while awake; `load_delay` is in seconds; adapters loaded from a path in `unapplied` answer as the
    base model does. On a GPU (`gpu`) a load into a sleeping engine destroys it: that load fails, and no completion is
    answered any more. The engine dies of loading a path in `deadly`.
    """

    def __init__(
        self,
        *,
        max_rank: int,
        max_cpu_loras: int,
        enable_lora: bool,
        gpu: bool,
        check_files: bool,
        dialect: Dialect,
    ) -> None:
        self.asleep: int | None = None
        self.load_delay = 0.0
        self.deadly: frozenset[str] = frozenset()
        self.draining = False
        self.unapplied: set[str] = set()
        self.destroyed = False
        self._max_rank = max_rank
        self._max_cpu_loras = max_cpu_loras
        self._enable_lora = enable_lora
        self._gpu = gpu
        self._check_files = check_files
        self._dialect = dialect
        self._turn = asyncio.Lock()
        self._death = asyncio.Event()
        self.requests = 0
        self.tokens = 0
        self._running = asyncio.Event()
        self._running.set()
        # Held here so that a request which waits for ever is not collected as garbage.
        self._never = asyncio.Event()
        self._awake = asyncio.Event()
        self._awake.set()
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._cache: OrderedDict[int, str] = OrderedDict()

    @property
    def hung(self) -> bool:
        """Whether no load and no completion is answered; setting it to False lets everything queued run."""
        return not self._running.is_set()

    @hung.setter
    def hung(self, value: bool) -> None:
        if value:
            self._running.clear()
        else:
            self._running.set()

    @property
    def paused(self) -> bool:
        """Whether completions wait; loads are let through, and the server's other answers go on."""
        return not self._resumed.is_set()

    @paused.setter
    def paused(self, value: bool) -> None:
        if value:
            self._resumed.clear()
        else:
            self._resumed.set()

    @property
    def dead(self) -> bool:
        """Whether the engine process is gone; an engine does not come back to life."""
        return self._death.is_set()

    def die(self) -> None:
        """End the engine process, as a SIGKILL of it would."""
        self._death.set()

    async def death(self) -> None:
        """Wait until the engine is dead."""
        await self._death.wait()

    async def load(self, path: str, identity: int) -> None:
        """Load the adapter, for as long as it takes.

        Raises `FileNotFoundError`, `LoadFailedError` or `EngineDeadError`. Never returns if the engine dies meanwhile.
        """
        if self.dead:
            raise EngineDeadError
        if self.draining:
            raise LoadFailedError("Server shutting down")
        if await self._until_death(self._load(path, identity)) is None:
            # vLLM never fails the calls that were under way to an engine that died: this handler is stuck for good.
            await self._never.wait()

    async def _load(self, path: str, identity: int) -> bool:
        async with self._turn:
            await self._running.wait()
            if not self._enable_lora:
                raise LoadFailedError(self._dialect.refusal("LoRA is not enabled. Use --enable-lora to enable LoRA."))
            await asyncio.sleep(self.load_delay)
            await self._running.wait()
            if path in self.deadly:
                self.die()
                await self._never.wait()
            if self._gpu and self.asleep:
                self.destroyed = True
                raise LoadFailedError("Call to add_lora method failed: CUDA error: invalid argument")
            try:
                await self._read(path)
            except AdapterRefusedError as refusal:
                raise LoadFailedError(self._dialect.refusal(str(refusal))) from refusal
            self._touch(identity, path)
            return True

    async def complete(self, path: str | None, identity: int) -> None:
        """Run one completion on the adapter, or on the base model where `path` is None. Raises `EngineDeadError`."""
        if self.dead:
            raise EngineDeadError
        self.requests += 1
        try:
            if await self._until_death(self._complete(path, identity)) is None:
                raise EngineDeadError
            self.tokens += 1
        finally:
            self.requests -= 1

    async def _complete(self, path: str | None, identity: int) -> bool:
        await self._awake.wait()
        await self._resumed.wait()
        async with self._turn:
            await self._running.wait()
            if self.destroyed:
                await self._never.wait()
            if path is None:
                return True
            if identity not in self._cache:
                try:
                    await self._read(path)
                except (OSError, AdapterRefusedError):
                    self.die()
                    await self._never.wait()
            self._touch(identity, path)
            return True

    def sleep(self, level: int) -> None:
        """Put the engine to sleep: completions wait, while loads are let through."""
        self.asleep = level
        self._awake.clear()

    def wake(self) -> None:
        """Wake the engine: the completions that waited run."""
        self.asleep = None
        self._awake.set()

    async def _read(self, path: str) -> None:
        if self._check_files:
            await asyncio.to_thread(read_adapter, path, max_rank=self._max_rank, dialect=self._dialect)

    def _touch(self, identity: int, path: str) -> None:
        self._cache[identity] = path
        self._cache.move_to_end(identity)
        while len(self._cache) > self._max_cpu_loras:
            self._cache.popitem(last=False)

    async def _until_death(self, step: Awaitable[T]) -> T | None:
        """Return what `step` returns, or None where the engine died first."""
        work = asyncio.ensure_future(step)
        death = asyncio.ensure_future(self._death.wait())
        try:
            await asyncio.wait({work, death}, return_when=asyncio.FIRST_COMPLETED)
            return None if death.done() else work.result()
        finally:
            for task in (work, death):
                task.cancel()
            await asyncio.gather(work, death, return_exceptions=True)


class Registry:
    """The adapters that the API process lists, by name in load order, with the lock that each name has."""

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._identities: dict[str, int] = {}
        self._last = 0

    def identity(self, name: str) -> int:
        """The number under which the engine knows the adapter: one and the same while it is listed, else a new one."""
        if name not in self.adapters or name not in self._identities:
            self._last += 1
            self._identities[name] = self._last
        return self._identities[name]
