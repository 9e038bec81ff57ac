from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple, NoReturn

import pytest

from lora_sidecar.actions.loader import Loader
from lora_sidecar.core.model import Adapter, Incarnation
from lora_sidecar.core.outcomes import (
    Accepted,
    Failure,
    FailureKind,
    LoadDeferred,
    Outcome,
    SleepState,
)
from lora_sidecar.engines.activity import IdleDetector
from lora_sidecar.engines.base import Engine, ServerIdentity
from lora_sidecar.engines.http import RequestError
from lora_sidecar.engines.listing import BadListing, Listing
from lora_sidecar.files.peft import Finding, Hold
from lora_sidecar.files.preflight import Inspection, Preflight
from lora_sidecar.reconcile.slow_start import SlowStart
from lora_sidecar.reconcile.state import Plan, State, Verdict
from tests.support.core import adapter, desired

pytestmark = pytest.mark.looptime

NAMES = [f"a{number:02}" for number in range(12)]


def unasked(*arguments: object) -> NoReturn:
    """What a restorer has no business with."""
    raise AssertionError(arguments)


class Slow(Engine):
    """An engine whose loads take `seconds` each; `busy` is whether it has requests, `results` answers by name.

    `asking` are the seconds that it takes to say that it is awake, `telling` those to say whether it has requests.
    """

    def __init__(self) -> None:
        self.seconds = 1.0
        self.busy = False
        self.asking = 0.0
        self.telling = 0.0
        self.results: dict[str, Accepted | Failure] = {}
        self.blocked: LoadDeferred | Failure | None = None
        self.in_flight = 0
        self.most = 0
        self.loaded: list[tuple[str, int]] = []
        self.asked = 0
        self.detector = IdleDetector()
        self._life = 0

    async def load_blocked(self, incarnation: int) -> LoadDeferred | Failure | None:
        """See `Engine`."""
        await asyncio.sleep(self.asking)
        self._life = incarnation
        return self.blocked

    async def load(self, adapter: Adapter) -> Accepted | Failure:
        """Take so long."""
        self.loaded.append((adapter.name, self._life))
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        return self.results.get(adapter.name, Accepted())

    @property
    def loads_at_once(self) -> int:
        """Four without requests."""
        return 4 if self.detector.is_idle(asyncio.get_running_loop().time()) else 1

    async def poll_requests(self) -> None:
        """See `Engine`."""
        now = asyncio.get_running_loop().time()
        if self.detector.is_due(now):
            self.asked += 1
            self.detector.ask(now)
            await asyncio.sleep(self.telling)
            self.hear(now)

    def hear(self, now: float) -> None:
        """Say whether there are requests."""
        self.detector.note(now, 1.0 if self.busy else 0.0, None)

    async def unload(self, name: str) -> Accepted | Failure:
        """See `Engine`."""
        unasked(name)

    async def _check_health(self, *, thorough: bool) -> RequestError | None:
        unasked(thorough)

    def _decode_listing(self, body: bytes) -> Listing | BadListing:
        unasked(body)

    async def _identify(self) -> ServerIdentity | RequestError:
        unasked()


def plan(names: Iterable[str], number: int = 1, at: float = 0.0, batch: int | None = None) -> Plan:
    """A plan that restores these adapters in this order."""
    known = desired(*map(adapter, names), number=number)
    work = State(slow_start=SlowStart(batch))
    assert known.incarnation == Incarnation(number, known.incarnation.start_time)
    return Plan(known, work, Verdict.RESTORING, tuple(known.adapters.values()), observed_at=at)


class Loading(NamedTuple):
    """A loader and the engine that its plans are for."""

    engine: Engine
    loader: Loader

    def offer(self, plan: Plan) -> None:
        """Offer a plan for the engine."""
        self.loader.offer(plan, self.engine)

    def drain(self) -> tuple[Outcome, ...]:
        """What ended since the last call."""
        return self.loader.drain()


@asynccontextmanager
async def restoring(engine: Slow, preflight: Preflight | None = None) -> AsyncIterator[tuple[Loading, asyncio.Event]]:
    """A loader that runs, and what is set when a round has ended."""
    finished = asyncio.Event()
    restorer = Loading(engine, Loader(asyncio.get_running_loop().time, finished.set, preflight))
    task = asyncio.create_task(restorer.loader.run())
    try:
        yield restorer, finished
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def names_of(engine: Slow) -> list[str]:
    """What was loaded, in order."""
    return [name for name, _ in engine.loaded]


async def test_four_at_a_time_without_traffic() -> None:
    """After the first load was accepted, four are in flight: twelve take four rounds and not twelve."""
    engine = Slow()
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES))
        await finished.wait()
        assert asyncio.get_running_loop().time() == pytest.approx(4.0)
    assert engine.most == 4
    assert names_of(engine) == NAMES


async def test_a_server_that_took_its_time_is_met_with_one_load_at_a_time() -> None:
    """Four were let in while it had no requests, and hung at the question whether the engine is awake."""
    engine = Slow()
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES))
        await asyncio.sleep(0.5)
        engine.asking = 5.0
        await asyncio.sleep(1.0)
        engine.asking, engine.busy = 0.0, True
        await asyncio.sleep(5.0)
        assert (engine.in_flight, engine.most) == (1, 1)
        await finished.wait()
    assert engine.most == 1
    assert sorted(names_of(engine)) == sorted(NAMES)


async def test_news_of_a_request_counts_at_once() -> None:
    """A heartbeat hears of the first request just before the next loads are sent: only one of them is."""
    engine = Slow()
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES))
        await asyncio.sleep(1.99)
        assert engine.in_flight == 4
        engine.busy = True
        engine.hear(1.99)
        await asyncio.sleep(0.1)
        assert engine.in_flight == 1
        engine.busy = False
        await finished.wait()
    assert names_of(engine) == NAMES


async def test_a_server_that_is_slow_to_say_counts_as_busy() -> None:
    """It is asked no longer than a quarter of a second, once a second: loads are held up by no more than that."""
    engine = Slow()
    engine.telling = 3.0
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES))
        await finished.wait()
        assert asyncio.get_running_loop().time() == pytest.approx(12 + 11 * 0.25)
    assert engine.most == 1


async def test_a_single_load_needs_no_look_at_requests() -> None:
    """Each look is work for the server: none is made where nothing is left to be sent."""
    engine = Slow()
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES[:1]))
        await finished.wait()
    assert engine.asked == 0


async def test_one_look_a_second_however_many_loads() -> None:
    """Loads that take milliseconds do not make the server tell its requests before each of them."""
    engine = Slow()
    engine.seconds, engine.busy = 0.05, True
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES))
        await finished.wait()
    assert (engine.asked, names_of(engine)) == (1, NAMES)


async def test_nothing_is_sent_into_an_engine_that_sleeps() -> None:
    """The engine is asked before the first load, and its answer ends the round."""
    engine = Slow()
    engine.asking = 0.1
    engine.blocked = asleep = LoadDeferred(SleepState.ASLEEP, "it sleeps")
    async with restoring(engine) as (restorer, _):
        restorer.offer(plan(NAMES))
        await asyncio.sleep(5)
        assert [one.result for one in restorer.drain()] == [asleep]
    assert engine.loaded == []


async def test_one_at_a_time_with_traffic() -> None:
    """Each load is a pause for all inference: a server with requests has one at a time."""
    engine = Slow()
    engine.busy = True
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES))
        await finished.wait()
    assert engine.most == 1
    assert names_of(engine) == NAMES


async def test_traffic_that_comes_meanwhile_is_noticed() -> None:
    """As soon as the server serves, no second load is sent beside one in flight."""
    engine = Slow()
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES))
        await asyncio.sleep(1.2)
        assert engine.in_flight == 4
        engine.busy = True
        await asyncio.sleep(1.0)
        engine.most = 0
        await finished.wait()
        assert asyncio.get_running_loop().time() == pytest.approx(9.0)
    assert engine.most == 1


async def test_nothing_beside_the_first_load() -> None:
    """A server that can load nothing, or that dies of the first adapter, is met with a single load."""
    engine = Slow()
    engine.results = {NAMES[0]: Failure(FailureKind.SERVER_SETUP, "LoRA is not enabled")}
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES))
        await finished.wait()
    assert names_of(engine) == NAMES[:1]


async def test_one_at_a_time_while_a_restore_starts_slowly() -> None:
    """The server may have died of an adapter: the next death should name one alone."""
    engine = Slow()
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES, batch=8))
        await finished.wait()
    assert engine.most == 1


@pytest.mark.parametrize(("concurrency", "seconds"), [(1, 12.0), (3, 5.0), (16, 2.0)])
async def test_a_configured_number_is_kept_to(concurrency: int, seconds: float) -> None:
    """A number in the config holds whatever the traffic, after the first load."""
    engine = Slow()
    engine.busy = True
    async with restoring(engine) as (restorer, finished):
        restorer.loader.concurrency = concurrency
        restorer.offer(plan(NAMES))
        await finished.wait()
        assert asyncio.get_running_loop().time() == pytest.approx(seconds)


async def test_what_is_in_flight_is_not_sent_again_by_a_newer_plan() -> None:
    """A heartbeat during a restore finds adapters missing that are being loaded."""
    engine = Slow()
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES))
        ended: set[str] = set()
        for at in (0.5, 1.5, 2.5):
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            ended |= {outcome.adapter.name for outcome in restorer.drain()}
            restorer.offer(plan([name for name in NAMES if name not in ended], at=at))
        await finished.wait()
    assert sorted(names_of(engine)) == NAMES


async def test_a_new_life_gets_what_was_in_flight_in_the_old_one() -> None:
    """Loads of the former life are abandoned, and sent to the new one at once, carefully again."""
    engine = Slow()
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES[:5]))
        await asyncio.sleep(1.5)
        restorer.offer(plan(NAMES[:5], number=2, at=1.5))
        await finished.wait()
        assert asyncio.get_running_loop().time() == pytest.approx(3.5, abs=0.01)
        abandoned = [o for o in restorer.drain() if o.result == Failure(FailureKind.AMBIGUOUS, _ABANDONED)]
    assert {outcome.incarnation for outcome in abandoned} == {1}
    assert [name for name, number in engine.loaded if number == 2] == NAMES[:5]


async def test_a_plan_for_a_former_life_is_dropped_at_once() -> None:
    """What is left of a plan when the server restarts is not carried out in the next life."""
    engine = Slow()
    engine.busy = True
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES))
        await asyncio.sleep(1.5)
        restorer.offer(plan(NAMES[-1:], number=2, at=1.5))
        await finished.wait()
    assert engine.loaded == [(NAMES[0], 1), (NAMES[1], 1), (NAMES[-1], 2)]


async def test_a_fault_of_the_server_ends_the_round_for_all() -> None:
    """No load is sent after one that may have met a dying server; those in flight end by themselves."""
    engine = Slow()
    engine.results = {NAMES[2]: Failure(FailureKind.ENGINE, "EngineCore encountered an issue")}
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES))
        await finished.wait()
        assert len(restorer.drain()) == 5
    assert names_of(engine) == NAMES[:5]


async def test_nothing_is_sent_on_a_listing_older_than_a_fault_of_the_server() -> None:
    """A heartbeat that was under way when a load broke off has a listing that cannot tell what came of it."""
    engine = Slow()
    engine.results = {NAMES[0]: Failure(FailureKind.AMBIGUOUS, "reset")}
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES[:2]))
        await finished.wait()
        restorer.offer(plan(NAMES[:2], at=0.5))
        await asyncio.sleep(5)
        assert names_of(engine) == NAMES[:1]
        restorer.offer(plan(NAMES[:2], at=5.0))
        await asyncio.sleep(5)
    assert names_of(engine) == [NAMES[0], *NAMES[:1]]


async def test_a_life_that_is_only_guessed_gets_nothing_that_has_just_ended() -> None:
    """An outage may be taken for a restart; a load that ended after the listing may have taken effect all the same."""
    engine = Slow()
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES[:1]))
        await finished.wait()
        restorer.offer(plan(NAMES[:1], number=2, at=0.9))
        await asyncio.sleep(5)
    assert engine.loaded == [(NAMES[0], 1)]


async def test_what_was_loaded_after_the_listing_is_not_sent_again() -> None:
    """A plan may be made from a listing that was asked for before the load ended."""
    engine = Slow()
    async with restoring(engine) as (restorer, finished):
        restorer.offer(plan(NAMES[:1]))
        await finished.wait()
        restorer.offer(plan(NAMES[:1], at=0.9))
        await asyncio.sleep(5)
    assert names_of(engine) == NAMES[:1]


_ABANDONED = "abandoned: the server restarted"


class Reading(Preflight):
    """Takes half a second to look at an adapter's files, and ten more for `large` ones; `refused` are found broken."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.large: set[str] = set()
        self.read: list[tuple[str, float]] = []

    async def inspect(self, adapter: Adapter, *, warm: bool = True) -> Inspection:
        """Take half a second."""
        del warm
        await asyncio.sleep(0.5)
        self.read.append((adapter.name, asyncio.get_running_loop().time()))
        broken = Finding(FailureKind.ADAPTER, "broken", "mend it", Hold.LIMIT)
        return Inspection((broken,) if adapter.name in self.refused else (), is_cold=adapter.name in self.large)

    async def warm(self, adapter: Adapter) -> Failure | None:
        """Take ten seconds; a refused one hangs."""
        await asyncio.sleep(10)
        return Failure(FailureKind.FILES, "the disk hangs") if adapter.name in self.refused else None


async def test_the_next_adapters_files_are_read_while_a_load_is_in_flight() -> None:
    """One load at a time beside traffic, and none waits for the reading, once the server has accepted one."""
    engine, reading = Slow(), Reading()
    engine.busy = True
    async with restoring(engine, reading) as (restorer, finished):
        restorer.offer(plan(NAMES[:4]))
        began = asyncio.get_running_loop().time()
        await finished.wait()
        assert asyncio.get_running_loop().time() - began == pytest.approx(0.5 + 1 + 0.5 + 3)
        outcomes = restorer.drain()
    assert engine.most == 1
    assert [name for name, _ in reading.read] == names_of(engine) == NAMES[:4]
    # Only one ahead: what is read long before its turn may be another file by then.
    assert [at - began for _, at in reading.read] == pytest.approx([0.5, 2.0, 2.0, 3.5])
    # The wait for the load before it is no part of how long a load took.
    assert [one.seconds for one in outcomes] == pytest.approx([1.5] * 4)


async def test_an_adapter_whose_files_are_broken_waits_for_nobody() -> None:
    """Its failure is told when it is known, and takes no turn from the others."""
    engine, reading = Slow(), Reading()
    engine.busy, reading.refused = True, {"a02"}
    async with restoring(engine, reading) as (restorer, finished):
        restorer.offer(plan(NAMES[:4]))
        await finished.wait()
        outcomes = restorer.drain()
    assert names_of(engine) == ["a00", "a01", "a03"]
    assert [one.adapter.name for one in outcomes] == ["a00", "a02", "a01", "a03"]


async def test_a_large_adapter_is_read_once_nothing_else_is_left_to_send() -> None:
    """The others are loaded as if it were not there, and what hangs is not sent."""
    engine, reading = Slow(), Reading()
    engine.busy = True
    reading.large, reading.refused = {"a00", "a02"}, {"a02"}
    async with restoring(engine, reading) as (restorer, finished):
        restorer.offer(plan(NAMES[:5]))
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(6)
        assert names_of(engine) == ["a01", "a03", "a04"]
        await finished.wait()
        assert asyncio.get_running_loop().time() - began < 20
        outcomes = restorer.drain()
    assert names_of(engine) == ["a01", "a03", "a04", "a00"]
    assert {one.adapter.name: type(one.result) for one in outcomes}["a02"] is Failure


async def test_what_was_read_is_not_sent_after_a_load_that_may_have_failed_for_the_server() -> None:
    """The adapter that waited for its turn is left to the next plan."""
    engine, reading = Slow(), Reading()
    engine.busy = True
    engine.results["a01"] = Failure(FailureKind.AMBIGUOUS, "the connection broke")
    async with restoring(engine, reading) as (restorer, finished):
        restorer.offer(plan(NAMES[:3]))
        await finished.wait()
        assert [name for name, _ in reading.read] == NAMES[:3]
        assert names_of(engine) == ["a00", "a01"]
        finished.clear()
        engine.results.clear()
        restorer.offer(plan(NAMES[:3], at=asyncio.get_running_loop().time()))
        await finished.wait()
    assert names_of(engine) == ["a00", "a01", *NAMES[:3]]


async def test_what_was_read_for_a_former_life_is_not_sent_in_the_next_one() -> None:
    """A restart while one load is in flight and another waits: neither is sent again before the new plan says so."""
    engine, reading = Slow(), Reading()
    engine.busy = True
    async with restoring(engine, reading) as (restorer, finished):
        restorer.offer(plan(NAMES[:3]))
        await asyncio.sleep(2.2)
        assert engine.in_flight == 1
        assert [name for name, _ in reading.read] == NAMES[:3]
        restorer.offer(plan(NAMES[:2], number=2, at=2.1))
        await finished.wait()
        outcomes = restorer.drain()
    assert engine.loaded == [("a00", 1), ("a01", 1), ("a00", 2), ("a01", 2)]
    # What was read and never sent came to nothing that anybody has to hear of.
    assert [one.adapter.name for one in outcomes if one.incarnation == 1] == ["a00", "a01"]
