"""Carries out the newest plan: as many loads at a time as do no harm, reported and never believed.

Four traps are guarded against. A long load must not hold up a heartbeat; so loads have a task of their own, and the
newest plan wins. A plan made for one life of the server must not be carried out in the next; so a plan of another
incarnation ends the load under way and drops the rest. And an adapter that was just loaded is still missing from the
listing that the newest plan was made from; so what is under way, or ended after that listing was asked for, is not
loaded again, and nothing at all is loaded on such a listing after a load whose failure may be the server's. And each
load is a pause for all inference, and those of several in flight add up; so there is more than one only while the
server was just seen to have no requests. The next adapter's files are read meanwhile, so that no load waits for a disk;
those of a large one once nothing else is left to send, so that nothing waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal, assert_never

from lora_sidecar.core.model import Adapter
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, LoadDeferred, Outcome, Result
from lora_sidecar.engines.base import Engine
from lora_sidecar.files.preflight import Inspection, Preflight
from lora_sidecar.reconcile.state import Plan

_AT_ONCE: Final = 4
"""Loads in flight at a server without requests: on an H100 four took 0.56 of the time of one, eight took longer.

On two cores (vLLM 0.32.0) two to eight took 0.3 to 0.5 of it. Beside one stream, 20 loads of 18 MB made a gap of 27 ms
one at a time, and one of 270 ms with two or more in flight.
"""

_FRESH: Final = 0.25
_THRIFT: Final = 20
"""How long a look for requests counts at least, in seconds, and how many times its own cost until the next."""
_BUSY: Final = 1.0
"""Seconds until the next look at a server that has requests: each look is work for the process that answers them."""
_TRUSTED: Final = 4.0
"""Seconds after which a look counts no more, however long it took: requests arrive unasked."""


class Loader:
    """The loads of one server. `offer`, `drain`, `loading` and `in_flight` are for its watch, `run` is its task."""

    def __init__(
        self,
        engine: Engine,
        now: Callable[[], float],
        finished: Callable[[], None],
        preflight: Preflight | None = None,
    ) -> None:
        """`finished` is called when a round of loads has ended and only a new listing can say more.

        Without `preflight` every adapter is sent unread.
        """
        self._engine = engine
        self._preflight = preflight
        self._now = now
        self._finished = finished
        self._plan: Plan | None = None
        self._next = 0
        self._large: list[Adapter] = []
        self._offered = asyncio.Event()
        self._outcomes: list[Outcome] = []
        self._ended_at: dict[str, float] = {}
        self._under_way: dict[tuple[str, int], asyncio.Timeout] = {}
        self._sending: dict[tuple[str, int], Adapter] = {}
        self._room = asyncio.Event()
        self._accepted_in: int | None = None
        self._trust = 0.0
        self._sent = False
        self._withheld = False
        self.concurrency: int | Literal["auto"] = "auto"
        self._round_ended_at = float("-inf")

    def offer(self, plan: Plan) -> None:
        """Replace the plan; one of another incarnation also abandons the load under way."""
        former = self._plan
        self._plan, self._next = plan, 0
        self._large = []
        # Not cleared by another incarnation: that one may be a guess, and the load may still take effect.
        self._ended_at = {name: at for name, at in self._ended_at.items() if at > plan.observed_at}
        if former is not None and former.incarnation != plan.incarnation:
            for load in self._under_way.values():
                load.reschedule(self._now())
        self._room.set()
        if plan.restores:
            self._offered.set()

    def loading(self, name: str) -> bool:
        """Whether a load of that name is under way."""
        return any(name == one for one, _ in self._under_way)

    def drain(self) -> tuple[Outcome, ...]:
        """The outcomes since the last call."""
        outcomes, self._outcomes = tuple(self._outcomes), []
        return outcomes

    @property
    def in_flight(self) -> tuple[Adapter, ...]:
        """The loads that were sent and that the server has not answered yet."""
        return tuple(self._sending.values())

    async def run(self) -> None:
        """Carry out plans for ever."""
        while True:
            await self._offered.wait()
            self._offered.clear()
            if await self._carry_out():
                self._finished()

    async def _carry_out(self) -> bool:
        """Load what the newest plan says until nothing is left of it; whether anything was sent."""
        self._sent = False
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen_for_traffic(), name="traffic")
            loads: set[asyncio.Task[None]] = set()
            while True:
                while len(loads) < self._width() + self._ahead and (step := self._step()) is not None:
                    loads.add(group.create_task(self._load(*step), name="load"))
                if not loads:
                    break
                _, loads = await asyncio.wait(loads, return_when=asyncio.FIRST_COMPLETED)
            listening.cancel()
        return self._sent

    @property
    def _ahead(self) -> int:
        """How many adapters are looked at before their turn.

        None, until one was accepted: while the engine sleeps nothing is read that may not be sent for hours.
        """
        return 0 if self._preflight is None or self._accepted_in != self._incarnation() else 1

    def _width(self) -> int:
        """How many loads may be in flight.

        One, until one was accepted: a server that can load nothing, or that is killed by the first adapter, is met with
        a single load. And one while a restore starts slowly: one of its adapters may have killed the engine.
        """
        plan = self._plan
        if plan is None or self._accepted_in != plan.incarnation:
            return 1
        if plan.state.slow_start.is_slow:
            return 1
        if self.concurrency == "auto":
            return _AT_ONCE if self._now() < self._engine.quiet_at + self._trust else 1
        return self.concurrency

    async def _listen_for_traffic(self) -> None:
        """Find out again and again, for as long as a round lasts, whether the server has requests to answer."""
        oldest = self._now() - _FRESH
        while True:
            asked_at = self._now()
            if self.concurrency == "auto":
                await self._engine.look_for_requests(oldest)
            is_quiet = self._engine.quiet_at >= oldest
            pause = max(_FRESH if is_quiet else _BUSY, _THRIFT * (self._now() - asked_at))
            self._trust = min(2 * pause, _TRUSTED)
            self._room.set()
            await asyncio.sleep(pause)
            oldest = self._now()

    def _step(self) -> tuple[Adapter, Plan, bool] | None:
        """The next adapter to load, the plan that says so, and whether its turn has come however large it is."""
        plan = self._plan
        if plan is None or plan.observed_at < self._round_ended_at:
            return None
        while self._next < len(plan.restores) or self._large:
            is_last = self._next >= len(plan.restores)
            adapter = self._large.pop(0) if is_last else plan.restores[self._next]
            self._next += not is_last
            under_way = (adapter.name, plan.incarnation) in self._under_way
            if not under_way and self._ended_at.get(adapter.name, float("-inf")) <= plan.observed_at:
                # From here on it counts as under way: its task may begin only after the next step.
                self._under_way[adapter.name, plan.incarnation] = asyncio.timeout(None)
                return adapter, plan, is_last
        return None

    async def _load(self, adapter: Adapter, plan: Plan, is_last: bool) -> None:
        incarnation = plan.incarnation
        began = self._now()
        waited = 0.0
        sent = False
        result: Result
        looked = Inspection()
        try:
            async with self._under_way[adapter.name, incarnation]:
                found = await self._inspect(adapter, is_last=is_last)
                if found is None or not self._is_wanted(adapter, plan):
                    return
                looked, answer = found
                while answer is None:
                    waited += await self._admission()
                    if not self._is_wanted(adapter, plan):
                        return
                    sent = True
                    answer = await self._send(adapter, incarnation)
                    sent = answer is not None
                result = answer
        except TimeoutError:
            if not sent:
                return
            result = Failure(FailureKind.AMBIGUOUS, "abandoned: the server restarted")
        finally:
            del self._under_way[adapter.name, incarnation]
        ended = self._now()
        self._outcomes.append(Outcome(adapter, incarnation, result, ended, ended - began - waited, looked.looked))
        if incarnation == self._incarnation():
            self._ended_at[adapter.name] = ended
        if isinstance(result, Accepted):
            self._accepted_in = incarnation
        self._withheld = isinstance(result, LoadDeferred)
        self._sent = self._sent or not self._withheld
        if _ends_round(result) and incarnation == self._incarnation():
            self._round_ended_at = ended

    async def _inspect(self, adapter: Adapter, *, is_last: bool) -> tuple[Inspection, Result | None] | None:
        """What was found in its files, and why it is not sent; None where it waits until all others were sent."""
        if self._preflight is None:
            return Inspection(), None
        # An engine that slept a moment ago may do so for hours: the weights are not read over and over.
        looked = await self._preflight.inspect(adapter, warm=not self._withheld)
        if not looked.is_cold:
            return looked, looked.refusal
        if is_last:
            return looked, await self._preflight.warm(adapter)
        self._large.append(adapter)
        return None

    async def _admission(self) -> float:
        """Wait until another load may be in flight; the seconds that it took."""
        began = self._now()
        while len(self._sending) >= self._width():
            self._room.clear()
            await self._room.wait()
        return self._now() - began

    def _is_wanted(self, adapter: Adapter, plan: Plan) -> bool:
        """Whether the newest plan still says so: while its files were read, the server may have gone."""
        newest = self._plan
        if newest is None or newest.incarnation != plan.incarnation or self._round_ended_at > newest.observed_at:
            return False
        return newest is plan or adapter in newest.restores

    async def _send(self, adapter: Adapter, incarnation: int) -> Result | None:
        """What came of a load; None where it was not sent, since meanwhile there was no room for it any more."""
        # Noted here and not before: what kills a server is a load, and no reading of ours.
        self._sending[adapter.name, incarnation] = adapter
        try:
            result = await self._engine.load(adapter, incarnation, self._has_room)
        finally:
            del self._sending[adapter.name, incarnation]
            self._room.set()
        return result

    def _has_room(self) -> bool:
        """Whether all that are noted as sent may be in flight: the look that let them in may have become old."""
        return len(self._sending) <= self._width()

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
