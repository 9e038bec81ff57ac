"""Unloads what the newest plan retires: one at a time, reported and never believed.

Two traps are guarded against. An adapter that is unloaded to be replaced is away until its successor is loaded; so none
is while the engine sleeps or is paused, when nothing could be loaded, nor where the successor's files are missing or
such that the engine would refuse them, as far as can be seen. And a plan for one life of the server says nothing of
the next, nor one whose save took long of the server as it is now; so each step is looked up in the newest, and none is
taken from one that comes late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from lora_sidecar.core.outcomes import Accepted, Failure, Retired
from lora_sidecar.engines.base import Engine
from lora_sidecar.files.preflight import Preflight
from lora_sidecar.reconcile.replacement import Retire
from lora_sidecar.reconcile.state import Plan

FRESH: Final = 1.0
"""Seconds that a plan's listing may be old when the plan comes: meanwhile somebody may have replaced an adapter."""


class Retirer:
    """The retirements of one server. `offer` and `drain` are for its watch, `run` is its task."""

    def __init__(
        self,
        engine: Engine,
        now: Callable[[], float],
        finished: Callable[[], None],
        preflight: Preflight,
    ) -> None:
        """`finished` is called when only a new listing can say more; `preflight` looks at what is to be loaded next."""
        self._engine = engine
        self._now = now
        self._finished = finished
        self._preflight = preflight
        self._plan: Plan | None = None
        self._offered = asyncio.Event()
        self._ended: list[Retired] = []
        self._ended_at: dict[str, float] = {}

    def offer(self, plan: Plan) -> None:
        """Replace the plan."""
        if self._plan is not None and self._plan.incarnation != plan.incarnation:
            self._ended_at.clear()
        if self._now() - plan.observed_at > FRESH:
            plan = replace(plan, retires=())
        self._plan = plan
        if plan.retires:
            self._offered.set()

    def cancel_pending(self) -> None:
        """Retire nothing more until the next plan, since what is wanted has changed."""
        if self._plan is not None:
            self._plan = replace(self._plan, retires=())

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
            result: Accepted | Failure | None = await self._refusal(retire)
            if result is None and await self._engine.halted():
                return ended
            if self._step() != step:
                # Meanwhile the server may have gone, or the config have changed.
                continue
            result = result or await self._engine.unload(retire.name)
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

    async def _refusal(self, retire: Retire) -> Failure | None:
        """Why the successor must not be expected to load; None where there is none, or nothing speaks against it."""
        if retire.successor is None:
            return None
        looked = await self._preflight.inspect(retire.successor)
        refusal = looked.refusal or await self._preflight.absence(retire.successor)
        return refusal and replace(refusal, message=f"nothing is unloaded for it; {refusal.message}")
