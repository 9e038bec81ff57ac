from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from lora_sidecar.fleet.api import Missing, Verb
from lora_sidecar.fleet.changes import ACCEPT_ANNOTATION
from lora_sidecar.fleet.codec import encode
from lora_sidecar.fleet.document import Entry, FleetDocument, Newer, NoDocument, Unreadable
from lora_sidecar.fleet.source import FleetSource, Snapshot
from tests.fakes.kube_api.store import Store
from tests.support.kube_direct import NAME, DirectApi

pytestmark = pytest.mark.looptime

KEY = "vllm.json"


def text(serial: int, *names: str) -> str:
    """A document's text."""
    return encode(FleetDocument(serial, tuple(Entry(name, f"/adapters/{name}", "base") for name in names)))


class Running:
    """A source that runs, and what it rang for."""

    def __init__(self, store: Store, jitter: Callable[[], float]) -> None:
        self.store = store
        self.api = DirectApi(store)
        self.rung: list[tuple[float, Snapshot]] = []
        clock = asyncio.get_running_loop().time
        self.source = FleetSource(
            self.api,
            KEY,
            clock=clock,
            jitter=jitter,
            on_change=lambda: self.rung.append((clock(), self.source.snapshot)),
        )

    def now(self) -> Snapshot:
        """What is known now."""
        return self.source.snapshot

    def names(self) -> tuple[str, ...] | None:
        """The adapters of the newest document that could be read, None where there never was one."""
        found = self.now().found
        return (
            tuple(e.name for e in found.reading.entries) if found and isinstance(found.reading, FleetDocument) else None
        )

    def write(self, serial: int, *names: str) -> None:
        """Another document."""
        self.store.patch(NAME, {"data": {KEY: text(serial, *names)}}, "kubectl-edit")

    def asked(self, verb: Verb) -> list[float]:
        """When requests of a verb were made."""
        return [at for asked, at in self.api.asked if asked is verb]


@asynccontextmanager
async def running(store: Store | None = None, jitter: Callable[[], float] = lambda: 0.5) -> AsyncIterator[Running]:
    """A source beside a store that has a document of one adapter."""
    if store is None:
        store = Store()
        store.create(NAME, {KEY: text(1, "sql")})
    one = Running(store, jitter)
    task = asyncio.create_task(one.source.run())
    try:
        await asyncio.sleep(0.001)
        yield one
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_the_first_list_rings_and_a_watch_follows() -> None:
    """A new pod knows the document after one request, and is told of changes from there on."""
    async with running() as one:
        assert one.names() == ("sql",)
        assert one.now().is_watching
        assert [verb for verb, _ in one.api.asked] == [Verb.LIST, Verb.WATCH]
        assert len(one.rung) == 1


async def test_a_change_rings_at_once() -> None:
    """What another pod wrote is here with the event, and so is who wrote it."""
    async with running() as one:
        await asyncio.sleep(10)
        at = asyncio.get_running_loop().time()
        one.write(2, "sql", "chat")
        await asyncio.sleep(0.001)
        assert one.names() == ("sql", "chat")
        assert one.rung[-1][0] - at < 0.001
        found = one.now().found
        assert found is not None
        assert found.changed_by == "kubectl-edit"


async def test_another_key_of_the_same_configmap_rings_for_nobody() -> None:
    """Ranks with keys of their own share the object, and wake each other for nothing."""
    async with running() as one:
        one.store.patch(NAME, {"data": {"other.json": text(9, "x")}}, "test")
        await asyncio.sleep(1)
        assert len(one.rung) == 1


@pytest.mark.parametrize(
    ("wiped", "problem"),
    [
        pytest.param("{not JSON", Unreadable, id="garbage by hand"),
        pytest.param('{"version": 2}', Newer, id="a newer version"),
    ],
)
async def test_what_cannot_be_read_leaves_the_newest_good_document(wiped: str, problem: type) -> None:
    """Garbage is told, and what was good before stays known; mended, it is taken over."""
    async with running() as one:
        one.store.patch(NAME, {"data": {KEY: wiped}})
        await asyncio.sleep(0.001)
        assert isinstance(one.now().problem, problem)
        assert one.names() == ("sql",)
        one.write(2, "sql", "chat")
        await asyncio.sleep(0.001)
        assert one.now().problem is None
        assert one.names() == ("sql", "chat")


async def test_a_configmap_that_is_deleted_and_made_again_empty() -> None:
    """First it is gone, then it has no document: two different things, and neither is an empty one."""
    async with running() as one:
        one.store.delete(NAME)
        await asyncio.sleep(0.001)
        assert isinstance(one.now().problem, Missing)
        assert one.names() == ("sql",)
        one.store.create(NAME)
        await asyncio.sleep(0.001)
        assert one.now().problem is None
        found = one.now().found
        assert found is not None
        assert found.reading == NoDocument()


async def test_a_configmap_that_was_never_there_is_known_as_such() -> None:
    """That is told like a change, so that a new pod need not wait for a document that cannot come."""
    async with running(Store()) as one:
        assert one.now().is_known
        assert isinstance(one.now().problem, Missing)
        assert one.now().found is None
        assert len(one.rung) == 1


async def test_the_annotation_accepts_the_document_that_it_names() -> None:
    """The token is of this text in this object: after the next write it says nothing any more."""
    async with running() as one:
        found = one.now().found
        assert found is not None
        one.store.patch(NAME, {"metadata": {"annotations": {ACCEPT_ANNOTATION: f"x, {found.token}"}}})
        await asyncio.sleep(0.001)
        accepted = one.now().found
        one.write(2)
        await asyncio.sleep(0.001)
        later = one.now().found
        assert [one is not None and one.accepted for one in (found, accepted, later)] == [False, True, False]


async def test_a_watch_whose_connection_breaks_goes_on_from_the_last_version() -> None:
    """Nothing that happened meanwhile is missed, and no list is needed."""
    async with running() as one:
        await asyncio.sleep(5)
        one.api.break_watches()
        one.write(2, "sql", "chat")
        await asyncio.sleep(2)
        assert one.names() == ("sql", "chat")
        assert len(one.asked(Verb.LIST)) == 1
        assert one.now().is_watching


async def test_a_watch_whose_time_is_up_goes_on_without_a_pause() -> None:
    """An API server ends each watch after some minutes: that is no failure."""
    async with running(jitter=lambda: 0.9) as one:
        opened = one.asked(Verb.WATCH)[0]
        await asyncio.sleep(571)
        assert one.asked(Verb.WATCH)[1] == pytest.approx(opened + 570)
        assert one.now().failure is None
        assert len(one.asked(Verb.LIST)) == 1


async def test_a_silent_watch_is_left_after_130_seconds_and_a_list_tells() -> None:
    """SIGSTOP, or a connection that only one end knows of: what was missed is there once it answers again."""
    async with running() as one:
        await asyncio.sleep(61)
        one.api.is_stuck = True
        one.write(2, "sql", "chat")
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(120)
        assert one.names() == ("sql",)
        one.api.is_stuck = False
        # The connection is dead all the same.
        for watch in one.api.watches:
            watch.api = DirectApi(Store())
            watch.api.is_stuck = True
        await asyncio.sleep(15)
        assert one.names() == ("sql", "chat")
        assert one.rung[-1][0] - began < 132


async def test_a_version_in_the_future_is_left_by_the_silence() -> None:
    """A restored etcd counts from before: a watch from our version hears nothing, not even a bookmark."""
    async with running() as one:
        one.store.rewind(50)
        one.write(2, "sql", "chat")
        await asyncio.sleep(129)
        assert one.names() == ("sql",)
        await asyncio.sleep(4)
        assert one.names() == ("sql", "chat")


async def test_there_is_a_list_now_and_then_whatever_the_watch_says() -> None:
    """Every 5 to 15 minutes; the watch goes on from what the list says."""
    chances = iter([0.0, 0.9, 0.999, 0.9, *([0.5] * 50)])
    async with running(jitter=lambda: next(chances)) as one:
        await asyncio.sleep(2000)
        first, second, third, *_ = one.asked(Verb.LIST)
        assert second - first == pytest.approx(300, abs=1)
        assert third - second == pytest.approx(900, abs=1)
        assert len(one.rung) == 1


async def test_a_list_that_fails_beside_a_good_watch_takes_nothing_away() -> None:
    """An overloaded API server refuses lists first; what the watch hears counts."""
    async with running() as one:
        one.api.denied = frozenset({Verb.LIST})
        await asyncio.sleep(700)
        assert len(one.asked(Verb.LIST)) > 1
        assert one.now().is_watching
        one.write(2, "sql", "chat")
        await asyncio.sleep(0.001)
        assert one.names() == ("sql", "chat")
        assert not one.now().is_away(asyncio.get_running_loop().time())


async def test_a_list_without_an_answer_beside_a_good_watch_is_no_absence() -> None:
    """It is told as the last failure, and the watch says that the API server is there."""
    chances = iter([0.0, 0.9, *([0.5] * 50)])
    async with running(jitter=lambda: next(chances)) as one:
        one.api.is_down = True
        await asyncio.sleep(400)
        assert one.now().failure is not None
        assert not one.now().is_away(asyncio.get_running_loop().time())
        one.write(2, "sql", "chat")
        await asyncio.sleep(0.001)
        assert one.names() == ("sql", "chat")
        assert one.now().failure is None


async def test_what_cannot_be_listed_is_watched_all_the_same() -> None:
    """A refused list between two watches does not end the watching."""
    async with running() as one:
        one.api.denied = frozenset({Verb.LIST})
        await asyncio.sleep(800)
        one.api.break_watches()
        await asyncio.sleep(100)
        one.write(2, "sql", "chat")
        await asyncio.sleep(0.001)
        assert one.names() == ("sql", "chat")


@pytest.mark.parametrize("by_event", [False, True])
async def test_a_forgotten_version_is_listed_within_a_second(by_event: bool) -> None:
    """410 Gone for a thousand pods at once: each lists after a time of its own, and nothing is lost."""
    async with running(jitter=lambda: 0.7) as one:
        one.api.expires_by_event = by_event
        one.api.break_watches()
        one.write(2, "sql", "chat")
        one.store.forget()
        await asyncio.sleep(1.4)
        expired = one.asked(Verb.WATCH)[-1]
        await asyncio.sleep(0.75)
        assert one.names() == ("sql", "chat")
        assert one.asked(Verb.LIST)[-1] - expired == pytest.approx(0.7)


async def test_failures_are_spread_ever_further_up_to_half_a_minute() -> None:
    """0.8 s doubling to 30 s, and as much again by chance."""
    async with running() as one:
        one.api.is_down = True
        one.api.break_watches()
        await asyncio.sleep(300)
        times = [at for _, at in one.api.asked][2:]
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert pauses[:5] == pytest.approx([2.4, 4.8, 9.6, 19.2, 38.4])
        assert max(pauses) == pytest.approx(45)


async def test_back_after_an_hour_it_follows_again() -> None:
    """A pod that was cut off goes on with what it knew, and has the newest as soon as it may ask."""
    async with running() as one:
        one.api.is_down = True
        one.api.break_watches()
        await asyncio.sleep(3600)
        assert one.names() == ("sql",)
        assert one.now().is_away(asyncio.get_running_loop().time())
        one.write(2, "sql", "chat")
        one.api.is_down = False
        await asyncio.sleep(45)
        assert one.names() == ("sql", "chat")
        assert one.now().failure is None
        assert not one.now().is_away(asyncio.get_running_loop().time())


async def test_away_is_told_after_half_a_minute() -> None:
    """An API server that is replaced is gone for some seconds, which concerns nobody."""
    async with running() as one:
        one.api.is_down = True
        one.api.break_watches()
        await asyncio.sleep(29)
        assert not one.now().is_away(asyncio.get_running_loop().time())
        assert one.now().failure is not None
        await asyncio.sleep(2)
        assert one.now().is_away(asyncio.get_running_loop().time())


async def test_one_refusal_is_not_believed() -> None:
    """401 comes and goes while an API server restarts: two of them ten seconds apart are a fact."""
    async with running() as one:
        one.api.denied = frozenset(Verb)
        one.api.break_watches()
        await asyncio.sleep(2)
        assert one.now().denied is not None
        assert not one.now().is_denied
        await asyncio.sleep(20)
        assert one.now().is_denied
        assert not one.now().is_away(asyncio.get_running_loop().time())
        one.api.denied = frozenset()
        await asyncio.sleep(45)
        assert not one.now().is_denied


async def test_an_open_watch_hears_changes_while_requests_are_denied() -> None:
    """A RoleBinding that is taken away does not end the watch: changes count, and the refusal stays told."""
    chances = iter([0.0, 0.9, *([0.5] * 50)])
    async with running(jitter=lambda: next(chances)) as one:
        one.api.denied = frozenset(Verb)
        await asyncio.sleep(400)
        assert one.now().is_denied
        one.write(2, "sql", "chat")
        await asyncio.sleep(0.001)
        assert one.names() == ("sql", "chat")
        assert one.now().is_denied


async def test_retry_after_is_heeded() -> None:
    """An overloaded API server says when it wants to be asked again."""
    async with running() as one:
        one.api.retry_after = 20.0
        one.api.break_watches()
        await asyncio.sleep(100)
        _, _, first, second, *_ = [at for _, at in one.api.asked]
        assert second - first == pytest.approx(20.5)


async def test_a_source_that_is_cancelled_lets_go_of_its_watch() -> None:
    """No connection outlives the daemon."""
    async with running() as one:
        pass
    assert [watch.is_closed for watch in one.api.watches] == [True]
