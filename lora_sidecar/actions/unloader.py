"""Tells the server what to unload, as the newest plan says; reported and never believed.

The trap guarded against is an unload that overtakes a load of the same name: it would find nothing, and the load would
land after it. So a name whose load is under way waits for its end. Unloads do not wait for other loads: vLLM (to 0.33)
only drops the name from a table, so they pause no inference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lora_sidecar.core.outcomes import Unloaded
from lora_sidecar.engines.base import Engine
from lora_sidecar.reconcile.state import Plan


class Unloader:
    """The unloads of one server. `offer` and `drain` are for its watch, `run` is its task."""

    def __init__(
        self,
        engine: Engine,
        now: Callable[[], float],
        loading: Callable[[str], bool],
        finished: Callable[[], None],
    ) -> None:
        """`loading` tells whether a load of a name is under way; `finished` is called when a round has ended."""
        self._engine = engine
        self._now = now
        self._loading = loading
        self._finished = finished
        self._plan: Plan | None = None
        self._next = 0
        self._offered = asyncio.Event()
        self._ended: list[Unloaded] = []
        self._ended_at: dict[str, float] = {}

    def offer(self, plan: Plan) -> None:
        """Replace the plan."""
        if self._plan is not None and self._plan.incarnation != plan.incarnation:
            self._ended_at.clear()
        self._plan, self._next = plan, 0
        if plan.unloads:
            self._offered.set()

    def drain(self) -> tuple[Unloaded, ...]:
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
        sent = False
        while (step := self._step()) is not None:
            name, incarnation = step
            result = await self._engine.unload(name)
            at = self._now()
            self._ended.append(Unloaded(name, incarnation, result, at))
            self._ended_at[name] = at
            sent = True
        return sent

    def _step(self) -> tuple[str, int] | None:
        """The next name of the newest plan that was not unloaded since the listing behind it, and the incarnation."""
        plan = self._plan
        while plan is not None and self._next < len(plan.unloads):
            name = plan.unloads[self._next]
            self._next += 1
            if self._ended_at.get(name, float("-inf")) <= plan.observed_at and not self._loading(name):
                return name, plan.incarnation
        return None
