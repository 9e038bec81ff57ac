"""Unloads what the newest plan retires: one at a time, reported and never believed.

Two traps are guarded against. An adapter that is unloaded to be replaced is away until its successor is loaded; so none
is while the engine sleeps or is paused, when nothing could be loaded, nor where the successor's files are seen to be
missing. And a plan for one life of the server says nothing of the next; so each step is looked up in the newest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from lora_sidecar.engines import Engine
from lora_sidecar.model import Accepted, Failure, FailureKind, Retired
from lora_sidecar.preflight import Slots, absent
from lora_sidecar.work import Plan, Retire

_LOOK_DEADLINE: Final = 5.0


class Retirer:
    """The retirements of one server. `offer` and `drain` are for its watch, `run` is its task."""

    def __init__(
        self,
        engine: Engine,
        now: Callable[[], float],
        finished: Callable[[], None],
        slots: Slots | None = None,
    ) -> None:
        """`finished` is called when only a new listing can say more; in `slots` the disk is waited for."""
        self._engine = engine
        self._now = now
        self._finished = finished
        self._slots = slots or Slots("retire")
        self._plan: Plan | None = None
        self._offered = asyncio.Event()
        self._ended: list[Retired] = []
        self._ended_at: dict[str, float] = {}

    def offer(self, plan: Plan) -> None:
        """Replace the plan."""
        if self._plan is not None and self._plan.incarnation != plan.incarnation:
            self._ended_at.clear()
        self._plan = plan
        if plan.retires:
            self._offered.set()

    def drain(self) -> tuple[Retired, ...]:
        """What ended since the last call."""
        ended, self._ended = tuple(self._ended), []
        return ended

    async def run(self) -> None:
        """Carry out plans for ever."""
        while True:
            await self._offered.wait()
            self._offered.clear()
            if await self._carry_out():
                self._finished()

    async def _carry_out(self) -> bool:
        if await self._engine.halted():
            return False
        ended = False
        while (step := self._step()) is not None:
            retire, incarnation = step
            result = await self._unload(retire)
            at = self._now()
            self._ended_at[retire.name] = at
            self._ended.append(Retired(retire.name, incarnation, result, at))
            ended = True
        return ended

    def _step(self) -> tuple[Retire, int] | None:
        plan = self._plan
        for retire in () if plan is None else plan.retires:
            if plan is not None and self._ended_at.get(retire.name, float("-inf")) < plan.observed_at:
                return retire, plan.incarnation
        return None

    async def _unload(self, retire: Retire) -> Accepted | Failure:
        if retire.successor is not None and (absent := await self._absent(retire.successor.path)):
            return Failure(FailureKind.FILES, absent)
        return await self._engine.unload(retire.name)

    async def _absent(self, path: str) -> str:
        """Why the successor must not be expected to load, as far as can be seen from here."""
        try:
            gone = await self._slots.run(path, lambda: absent(path), _LOOK_DEADLINE)
        except (TimeoutError, OSError) as error:
            return f"{path} cannot be read: {error}"
        return f"there is no adapter_config.json in {path}" if gone else ""
