"""Carries out the newest plan's loads: as many at a time as do no harm, reported and never believed.

Four traps are guarded against:

* A plan made for one incarnation of the server must not be carried out in the next. A plan for another incarnation
  ends the loads under way and drops the rest.
* An adapter that was just loaded is still missing from an older listing. What is under way, or ended after the listing
  behind the newest plan was asked for, is not loaded again. After a load whose failure may be the server's, nothing at
  all is loaded until a newer listing.
* Each load is a pause for all inference, and those of several in flight add up. There is more than one only while the
  engine says that this does no harm.
* A load into a sleeping engine destroys it. The engine is asked last of all, and since that may take seconds, whether
  the load may still be sent is decided after its answer.

The next adapter's files are read meanwhile, so that no load waits for a disk; those of a large one once nothing else is
left to send, so that nothing waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal, assert_never

from lora_sidecar.actions.worker import Worker
from lora_sidecar.core.model import Adapter
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, LoadDeferred, Outcome, Result
from lora_sidecar.engines.base import Engine
from lora_sidecar.files.preflight import Inspection, Preflight
from lora_sidecar.reconcile.state import Plan

_POLL_DEADLINE: Final = 0.25
"""Seconds that the question for requests may take: a server that does not answer by then has something to do."""

_Key = tuple[str, int]


class Loader(Worker[Outcome]):
    """The loads of one server."""

    def __init__(
        self, now: Callable[[], float], finished: Callable[[], None], preflight: Preflight | None = None
    ) -> None:
        """Without `preflight` every adapter is sent unread."""
        super().__init__(now, finished)
        self._preflight = preflight
        self._next = 0
        self._large: list[Adapter] = []
        self._under_way: dict[_Key, asyncio.Timeout] = {}
        self._turns: set[_Key] = set()
        self._sending: dict[_Key, Adapter] = {}
        self._turn_ended = asyncio.Event()
        self._accepted_in: int | None = None
        self._sent = False
        self._deferred = False
        self.concurrency: int | Literal["auto"] = "auto"
        self._round_ended_at = float("-inf")

    def offer(self, plan: Plan, engine: Engine) -> None:
        """See `Worker.offer`; a plan of another incarnation also abandons the loads under way."""
        former = self._plan
        self._next = 0
        self._large = []
        super().offer(plan, engine)
        if former is not None and former.incarnation != plan.incarnation:
            for load in self._under_way.values():
                load.reschedule(self._now())
        self._turn_ended.set()

    def loading(self, name: str) -> bool:
        """Whether a load of that name is under way."""
        return any(name == one for one, _ in self._under_way)

    @property
    def in_flight(self) -> tuple[Adapter, ...]:
        """The loads that were sent and that the server has not answered yet."""
        return tuple(self._sending.values())

    def _is_asked_for(self, plan: Plan) -> bool:
        return bool(plan.restores)

    async def _carry_out(self) -> bool:
        self._sent = False
        async with asyncio.TaskGroup() as group:
            loads: set[asyncio.Task[None]] = set()
            while True:
                await self._poll_requests()
                while len(loads) < self._width() + self._ahead and (step := self._step()) is not None:
                    loads.add(group.create_task(self._load(*step), name="load"))
                if not loads:
                    return self._sent
                _, loads = await asyncio.wait(loads, return_when=asyncio.FIRST_COMPLETED)

    @property
    def _ahead(self) -> int:
        """How many adapters are looked at before their turn.

        None, until one was accepted: while the engine sleeps nothing is read that may not be sent for hours.
        """
        return 0 if self._preflight is None or self._accepted_in != self._incarnation() else 1

    def _is_cautious(self) -> bool:
        """Whether one load is sent at a time, whatever the server has to do.

        Until one was accepted: a server that can load nothing, or that is killed by the first adapter, is met with a
        single load. And while a restore starts slowly: one of its adapters may have killed the engine.
        """
        plan = self._plan
        if plan is None or self._accepted_in != plan.incarnation:
            return True
        return plan.state.slow_start.is_slow

    def _width(self) -> int:
        """How many loads may be in flight."""
        if self._is_cautious():
            return 1
        if self.concurrency != "auto":
            return self.concurrency
        return 1 if self._engine is None else self._engine.loads_at_once

    async def _poll_requests(self) -> None:
        """Have the engine's client know how many loads do no harm, where that matters."""
        plan, engine = self._plan, self._engine
        if plan is None or engine is None or self.concurrency != "auto" or self._is_cautious():
            return
        if self._is_waited_for(plan):
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_DEADLINE):
                    await engine.poll_requests()
            self._turn_ended.set()

    def _is_waited_for(self, plan: Plan) -> bool:
        """Whether another load is to be sent after those that have their turn."""
        return self._next < len(plan.restores) or bool(self._large) or len(self._under_way) > len(self._turns)

    def _step(self) -> tuple[Adapter, Plan, Engine, bool] | None:
        """The next adapter to load, the plan that says so, and whether its turn has come however large it is."""
        plan, engine = self._plan, self._engine
        if plan is None or engine is None or plan.observed_at < self._round_ended_at:
            return None
        while self._next < len(plan.restores) or self._large:
            is_last = self._next >= len(plan.restores)
            adapter = self._large.pop(0) if is_last else plan.restores[self._next]
            self._next += not is_last
            key = adapter.name, plan.incarnation
            if key not in self._under_way and self._is_due(adapter.name, plan):
                # From here on it counts as under way: its task may begin only after the next step.
                self._under_way[key] = asyncio.timeout(None)
                return adapter, plan, engine, is_last
        return None

    async def _load(self, adapter: Adapter, plan: Plan, engine: Engine, is_last: bool) -> None:
        key = adapter.name, plan.incarnation
        began = self._now()
        waited = 0.0
        sent = False
        result: Result | None = None
        looked = Inspection()
        try:
            async with self._under_way[key]:
                found = await self._inspect(adapter, is_last=is_last)
                if found is None:
                    return
                looked = found[0]
                if self._is_wanted(adapter, plan):
                    result = found[1]
                while result is None and self._is_wanted(adapter, plan):
                    waited += await self._turn()
                    self._turns.add(key)
                    try:
                        result = await engine.load_blocked(plan.incarnation)
                        # To ask takes seconds where the server hangs: what was decided before it may not hold any more.
                        sent = result is None and self._may_send(adapter, plan)
                        if sent:
                            result = await self._send(adapter, plan.incarnation, engine)
                    finally:
                        self._turns.discard(key)
                        self._turn_ended.set()
        except TimeoutError:
            result = Failure(FailureKind.AMBIGUOUS, "abandoned: the server restarted") if sent else None
        finally:
            del self._under_way[key]
        if result is not None:
            ended = self._now()
            self._note(Outcome(adapter, plan.incarnation, result, ended, ended - began - waited, looked.looked))

    async def _inspect(self, adapter: Adapter, *, is_last: bool) -> tuple[Inspection, Result | None] | None:
        """What was found in its files, and why it is not sent; None where it waits until all others were sent."""
        if self._preflight is None:
            return Inspection(), None
        # An engine that slept a moment ago may do so for hours: the weights are not read over and over.
        looked = await self._preflight.inspect(adapter, warm=not self._deferred)
        if not looked.is_cold:
            return looked, looked.refusal
        if is_last:
            return looked, await self._preflight.warm(adapter)
        self._large.append(adapter)
        return None

    def _note(self, outcome: Outcome) -> None:
        self._ended.append(outcome)
        is_of_this_life = outcome.incarnation == self._incarnation()
        if is_of_this_life:
            self._ended_at[outcome.adapter.name] = outcome.at
        if isinstance(outcome.result, Accepted):
            self._accepted_in = outcome.incarnation
        self._deferred = isinstance(outcome.result, LoadDeferred)
        self._sent = self._sent or not self._deferred
        if is_of_this_life and _ends_round(outcome.result):
            self._round_ended_at = outcome.at

    async def _turn(self) -> float:
        """Wait until another load may be in flight; the seconds that it took."""
        began = self._now()
        while len(self._turns) >= self._width():
            self._turn_ended.clear()
            await self._turn_ended.wait()
        return self._now() - began

    def _may_send(self, adapter: Adapter, plan: Plan) -> bool:
        """Whether a load that has its turn may be sent: it is wanted, and all that have theirs may be in flight."""
        return self._is_wanted(adapter, plan) and len(self._turns) <= self._width()

    def _is_wanted(self, adapter: Adapter, plan: Plan) -> bool:
        """Whether the newest plan still says so: meanwhile the server may have gone."""
        newest = self._plan
        if newest is None or newest.incarnation != plan.incarnation or self._round_ended_at > newest.observed_at:
            return False
        return newest is plan or adapter in newest.restores

    async def _send(self, adapter: Adapter, incarnation: int, engine: Engine) -> Accepted | Failure:
        # Noted here and not before: what kills a server is a load, and no question of ours.
        self._sending[adapter.name, incarnation] = adapter
        try:
            result = await engine.load(adapter)
        finally:
            del self._sending[adapter.name, incarnation]
        return result

    def _incarnation(self) -> int | None:
        return None if self._plan is None else self._plan.incarnation


def _ends_round(result: Result) -> bool:
    """Whether to wait for a new listing before another load is sent: the fault may be the server's."""
    match result:
        case Accepted():
            return False
        case LoadDeferred():
            return True
        case Failure():
            return result.kind not in (FailureKind.FILES, FailureKind.ADAPTER, FailureKind.UNCLASSIFIED)
        case _:
            assert_never(result)
