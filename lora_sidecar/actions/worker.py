"""A task that carries out the newest plan beside the heartbeats.

Two traps are guarded against. What takes minutes must not hold up a heartbeat. So it is a task of its own, and the
newest plan wins. And a plan may be older than what was done: its listing was asked for before that ended, so it asks
for the same again. What ended since the listing is left to the next plan.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from lora_sidecar.engines.base import Engine
from lora_sidecar.reconcile.state import Plan

Ended = TypeVar("Ended")


class Worker(ABC, Generic[Ended]):
    """One such task. `offer` and `drain` are for its controller, `run` is the task."""

    def __init__(self, now: Callable[[], float], finished: Callable[[], None]) -> None:
        """`finished` is called when a plan was carried out and only a new listing can say more."""
        self._now = now
        self._finished = finished
        self._plan: Plan | None = None
        self._engine: Engine | None = None
        self._offered = asyncio.Event()
        self._ended: list[Ended] = []
        self._ended_at: dict[str, float] = {}

    def offer(self, plan: Plan, engine: Engine) -> None:
        """Replace the plan; it is for what `engine` is the client of."""
        self._plan, self._engine = plan, engine
        # Not cleared by another incarnation: that one may be a guess, and what was sent may still take effect.
        self._ended_at = {name: at for name, at in self._ended_at.items() if at > plan.observed_at}
        if self._is_asked_for(plan):
            self._offered.set()

    def drain(self) -> tuple[Ended, ...]:
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

    @abstractmethod
    def _is_asked_for(self, plan: Plan) -> bool:
        """Whether there is something in it to be carried out."""

    @abstractmethod
    async def _carry_out(self) -> bool:
        """Do what the newest plan says until nothing is left of it; whether anything was done."""

    def _is_due(self, name: str, plan: Plan) -> bool:
        """Whether the plan knows what came of the last request about an adapter."""
        return self._ended_at.get(name, float("-inf")) <= plan.observed_at
