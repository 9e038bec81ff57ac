"""Carries out the newest plan: one load at a time, reported and never believed.

Three traps are guarded against. A long load must not hold up a heartbeat; so loads have a task of their own, and the
newest plan wins. A plan made for one life of the server must not be carried out in the next; so a plan of another
incarnation ends the load under way and drops the rest. And an adapter that was just loaded is still missing from the
listing that the newest plan was made from; so what ended after that listing was asked for is not loaded again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import assert_never

from lora_sidecar.engines import Engine
from lora_sidecar.model import Accepted, Adapter, Failure, FailureKind, Outcome, Result, Withheld
from lora_sidecar.work import Plan


class Restorer:
    """The loads of one server. `offer` and `drain` are for its watch, `run` is its task."""

    def __init__(self, engine: Engine, now: Callable[[], float], finished: Callable[[], None]) -> None:
        """`finished` is called when a round of loads has ended and only a new listing can say more."""
        self._engine = engine
        self._now = now
        self._finished = finished
        self._plan: Plan | None = None
        self._next = 0
        self._offered = asyncio.Event()
        self._outcomes: list[Outcome] = []
        self._ended_at: dict[str, float] = {}
        self._under_way: asyncio.Timeout | None = None

    def offer(self, plan: Plan) -> None:
        """Replace the plan; one of another incarnation also abandons the load under way."""
        former = self._plan
        self._plan, self._next = plan, 0
        if former is not None and former.incarnation != plan.incarnation:
            self._ended_at.clear()
            if self._under_way is not None:
                self._under_way.reschedule(self._now())
        if plan.restores:
            self._offered.set()

    def drain(self) -> tuple[Outcome, ...]:
        """The outcomes since the last call."""
        outcomes, self._outcomes = tuple(self._outcomes), []
        return outcomes

    async def run(self) -> None:
        """Carry out plans for ever."""
        while True:
            await self._offered.wait()
            self._offered.clear()
            if await self._carry_out():
                self._finished()

    async def _carry_out(self) -> bool:
        """Load what the newest plan says until nothing is left of it; whether anything was sent."""
        sent = False
        while (step := self._step()) is not None:
            outcome = await self._load(*step)
            self._outcomes.append(outcome)
            if outcome.incarnation == self._incarnation():
                self._ended_at[outcome.adapter.name] = outcome.at
            sent = sent or not isinstance(outcome.result, Withheld)
            if _ends_round(outcome.result):
                self._drop(outcome.incarnation)
        return sent

    def _step(self) -> tuple[Adapter, int] | None:
        """The next adapter to load, and the incarnation to load it into."""
        plan = self._plan
        while plan is not None and self._next < len(plan.restores):
            adapter = plan.restores[self._next]
            self._next += 1
            if self._ended_at.get(adapter.name, float("-inf")) <= plan.observed_at:
                return adapter, plan.incarnation
        return None

    async def _load(self, adapter: Adapter, incarnation: int) -> Outcome:
        began = self._now()
        result: Result
        try:
            async with asyncio.timeout(None) as self._under_way:
                result = await self._engine.load(adapter, incarnation)
        except TimeoutError:
            result = Failure(FailureKind.AMBIGUOUS, "abandoned: the server restarted")
        finally:
            self._under_way = None
        ended = self._now()
        return Outcome(adapter, incarnation, result, ended, ended - began)

    def _incarnation(self) -> int | None:
        return None if self._plan is None else self._plan.incarnation

    def _drop(self, incarnation: int) -> None:
        """Give up the rest of the plan, unless a plan for another life has come meanwhile."""
        if self._plan is not None and self._plan.incarnation == incarnation:
            self._next = len(self._plan.restores)


def _ends_round(result: Result) -> bool:
    """Whether to wait for a new listing before another load is sent: the fault may be the server's."""
    match result:
        case Accepted():
            return False
        case Withheld():
            return True
        case Failure():
            return result.kind not in (FailureKind.FILES, FailureKind.ADAPTER, FailureKind.UNCLASSIFIED)
        case _:
            assert_never(result)
