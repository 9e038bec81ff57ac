from __future__ import annotations

import asyncio
import random

import pytest

from lora_sidecar.fleet.api import Verb
from lora_sidecar.fleet.changes import ACCEPT_ANNOTATION, accept_token
from lora_sidecar.fleet.codec import decode, encode
from lora_sidecar.fleet.document import Entry, FleetDocument
from lora_sidecar.fleet.publisher import FleetPublisher, NotPublished, Published
from lora_sidecar.fleet.writes import Put, Refused, TakeOut
from tests.fakes.kube_api.store import Store
from tests.support.kube_direct import NAME, DirectApi

pytestmark = pytest.mark.looptime

KEY = "vllm.json"
SQL = Entry("sql", "/adapters/sql", "base", 1)
CHAT = Entry("chat", "/adapters/chat", "base", 2)
BOTH = FleetDocument(2, (SQL, CHAT))


def put(name: str) -> Put:
    """A wish for an adapter."""
    return Put(name, f"/adapters/{name}", "base", "pod-1", "2026-01-01T00:00:00Z")


def store_with(document: FleetDocument | None) -> Store:
    """A store with the fleet's ConfigMap, and this document in it."""
    store = Store()
    store.create(NAME, None if document is None else {KEY: encode(document)})
    return store


def publisher(api: DirectApi, chance: random.Random | None = None) -> FleetPublisher:
    """A pod's publisher."""
    jitter = (lambda: 0.5) if chance is None else chance.random
    return FleetPublisher(api, KEY, clock=asyncio.get_running_loop().time, jitter=jitter)


def names(store: Store) -> list[str]:
    """What the store's document lists."""
    found = decode(store.get(NAME)["data"][KEY])
    assert isinstance(found, FleetDocument)
    return [entry.name for entry in found.entries]


async def test_the_first_write_makes_the_document() -> None:
    """The manifest ships no data: whoever publishes first writes version, serial and the entry."""
    store = store_with(None)
    assert await publisher(DirectApi(store)).publish(put("sql"), None) == Published(1, wrote=True)
    written = decode(store.get(NAME)["data"][KEY])
    assert isinstance(written, FleetDocument)
    assert written.entries == (Entry("sql", "/adapters/sql", "base", 1, "pod-1", "2026-01-01T00:00:00Z"),)
    assert (written.serial, len(written.writes)) == (1, 1)


async def test_a_write_keeps_what_others_wrote_meanwhile() -> None:
    """It starts from what the API server says now, not from what this pod remembers."""
    store = store_with(BOTH)
    old = FleetDocument(1, (SQL,))
    assert await publisher(DirectApi(store)).publish(put("new"), old) == Published(3, wrote=True)
    assert names(store) == ["sql", "chat", "new"]


async def test_what_is_there_already_is_not_written() -> None:
    """A script may repeat itself: no write, no event, the same serial."""
    store = store_with(BOTH)
    version = store.version
    result = await publisher(DirectApi(store)).publish(put("sql"), BOTH)
    assert (result, store.version) == (Published(2, wrote=False), version)


async def test_an_adapter_is_taken_out() -> None:
    """Every replica then unloads it, those that are away now as well."""
    store = store_with(BOTH)
    assert await publisher(DirectApi(store)).publish(TakeOut("sql", "base"), BOTH) == Published(3, wrote=True)
    assert names(store) == ["chat"]


async def test_many_writers_at_once_lose_nothing_that_was_answered() -> None:
    """Compare-and-swap orders them; who does not get through in time is told so."""
    store, chance = store_with(None), random.Random(7)

    async def write(number: int) -> tuple[str, object, float]:
        api = DirectApi(store)
        api.latency = 0.01
        began = asyncio.get_running_loop().time()
        result = await publisher(api, chance).publish(put(f"a-{number}"), None)
        return f"a-{number}", result, asyncio.get_running_loop().time() - began

    results = await asyncio.gather(*(write(number) for number in range(100)))
    published = [name for name, result, _ in results if isinstance(result, Published)]
    assert sorted(names(store)) == sorted(published)
    assert len(published) > 30
    assert all(isinstance(result, Published | NotPublished) for _, result, _ in results)
    assert max(seconds for *_, seconds in results) <= 5.02


async def test_a_lost_answer_is_looked_up_and_not_written_twice() -> None:
    """The write took effect: one document, one serial, 200."""
    store = store_with(BOTH)
    api = DirectApi(store)
    api.answers_lost = 1
    assert await publisher(api).publish(put("new"), BOTH) == Published(3, wrote=False)
    assert names(store) == ["sql", "chat", "new"]


async def test_a_last_answer_that_is_lost_leaves_doubt() -> None:
    """Whether it took effect nobody knows: it says so, and the watch tells later."""
    store = store_with(BOTH)
    api = DirectApi(store)
    api.answers_lost = 100
    writer = publisher(api)
    task = asyncio.create_task(writer.publish(put("new"), BOTH))
    await asyncio.sleep(0.0001)
    api.is_down = True
    result = await task
    assert isinstance(result, NotPublished)
    assert result.in_doubt
    assert names(store) == ["sql", "chat", "new"]


async def test_away_it_is_given_up_within_five_seconds() -> None:
    """As `kubectl` would: nothing is queued, and the caller hears why."""
    api = DirectApi(store_with(BOTH))
    api.is_down = True
    began = asyncio.get_running_loop().time()
    result = await publisher(api).publish(put("new"), BOTH)
    assert isinstance(result, NotPublished)
    assert "cannot connect" in result.reason
    assert not result.in_doubt
    assert asyncio.get_running_loop().time() - began <= 5.0
    assert len(api.asked) > 1


async def test_stuck_it_is_given_up_within_five_seconds() -> None:
    """A stopped API server answers nothing: the deadline is ours."""
    api = DirectApi(store_with(BOTH))
    api.is_stuck = True
    began = asyncio.get_running_loop().time()
    result = await publisher(api).publish(put("new"), BOTH)
    assert isinstance(result, NotPublished)
    assert asyncio.get_running_loop().time() - began == pytest.approx(5.0, abs=0.01)


async def test_a_write_that_comes_back_after_a_moment_gets_through() -> None:
    """An API server that is replaced is gone for a second or two."""
    api = DirectApi(store_with(BOTH))
    api.is_down = True
    asyncio.get_running_loop().call_later(1.0, setattr, api, "is_down", False)  # noqa: FBT003
    assert await publisher(api).publish(put("new"), BOTH) == Published(3, wrote=True)


@pytest.mark.parametrize("verb", [Verb.LIST, Verb.PATCH])
async def test_denied_it_is_not_tried_again(verb: Verb) -> None:
    """No waiting changes a Role; the hint names the verb."""
    api = DirectApi(store_with(BOTH))
    api.denied = frozenset({verb})
    result = await publisher(api).publish(put("new"), BOTH)
    assert result == NotPublished(f"cannot {verb}", f"give it {verb}")


async def test_without_a_configmap_nothing_is_written() -> None:
    """Sidecars never create it, since a Role with `resourceNames` cannot allow that."""
    result = await publisher(DirectApi(Store())).publish(put("new"), None)
    assert isinstance(result, NotPublished)
    assert "does not exist" in result.reason


@pytest.mark.parametrize("text", ['{"version": 2}', "{half"])
async def test_what_cannot_be_read_is_not_overwritten(text: str) -> None:
    """Garbage may be somebody's edit under way, and a newer version somebody's newer sidecar."""
    store = store_with(None)
    store.patch(NAME, {"data": {KEY: text}})
    result = await publisher(DirectApi(store)).publish(put("new"), BOTH)
    assert isinstance(result, NotPublished)
    assert store.get(NAME)["data"][KEY] == text


async def test_a_write_while_a_wiped_document_is_held_puts_back_what_was_lost() -> None:
    """The fleet's memory is what its pods know, once somebody writes."""
    store = store_with(BOTH)
    store.replace(NAME, {})
    assert await publisher(DirectApi(store)).publish(put("new"), BOTH) == Published(3, wrote=True)
    assert names(store) == ["sql", "chat", "new"]


async def test_a_wish_that_is_in_force_while_its_document_is_held_puts_it_back() -> None:
    """What is asked for is loaded here, and still has to be written."""
    store = store_with(BOTH)
    store.replace(NAME, {})
    assert await publisher(DirectApi(store)).publish(put("sql"), BOTH) == Published(3, wrote=True)
    assert names(store) == ["sql", "chat"]


async def test_a_write_over_an_old_copy_has_a_serial_that_everybody_takes_over() -> None:
    """Above both serials: pods that hold the old copy and pods that know no other go on together."""
    store = store_with(FleetDocument(1, (Entry("old", "/adapters/old", "base", 1),)))
    in_force = FleetDocument(9, (SQL,))
    assert await publisher(DirectApi(store)).publish(put("new"), in_force) == Published(10, wrote=True)
    assert names(store) == ["sql", "old", "new"]


async def test_an_accepted_document_is_what_a_write_starts_from() -> None:
    """What a person emptied on purpose stays empty, and the annotation goes with its purpose."""
    store = store_with(FleetDocument(2))
    uid = store.get(NAME)["metadata"]["uid"]
    token = accept_token(uid, KEY, encode(FleetDocument(2)))
    store.patch(NAME, {"metadata": {"annotations": {ACCEPT_ANNOTATION: f"other {token}"}}})
    assert await publisher(DirectApi(store)).publish(put("new"), BOTH) == Published(3, wrote=True)
    assert names(store) == ["new"]
    assert store.get(NAME)["metadata"]["annotations"] == {ACCEPT_ANNOTATION: "other"}


async def test_what_the_api_server_will_never_take_is_refused() -> None:
    """Other keys fill the ConfigMap: 422, and no further try."""
    store = store_with(BOTH)
    store.patch(NAME, {"data": {"other": "x" * (1024 * 1024 - 400)}})
    api = DirectApi(store)
    result = await publisher(api).publish(put("n" * 200), BOTH)
    assert isinstance(result, Refused)
    assert "422" in result.reason
    assert [verb for verb, _ in api.asked] == [Verb.LIST, Verb.PATCH]


async def test_what_no_reader_would_take_is_refused_before_it_is_sent() -> None:
    """A name that does not print would make the whole document unreadable for everybody."""
    api = DirectApi(store_with(BOTH))
    assert isinstance(await publisher(api).publish(put("a\nb"), BOTH), Refused)
    assert [verb for verb, _ in api.asked] == [Verb.LIST]


async def test_a_configmap_that_goes_between_reading_and_writing() -> None:
    """Gone is gone: the hint says what to apply."""
    store = store_with(BOTH)
    api = DirectApi(store)
    api.latency = 0.1
    task = asyncio.create_task(publisher(api).publish(put("new"), BOTH))
    await asyncio.sleep(0.15)
    store.delete(NAME)
    result = await task
    assert isinstance(result, NotPublished)
    assert "apply" in result.hint


async def test_changes_of_one_pod_wait_for_each_other() -> None:
    """They would only conflict with themselves."""
    api = DirectApi(store_with(None))
    api.latency = 0.1
    writer = publisher(api)
    results = await asyncio.gather(*(writer.publish(put(f"a-{number}"), None) for number in range(10)))
    assert results == [Published(number, wrote=True) for number in range(1, 11)]
    assert len(api.asked) == 20


async def test_one_that_waits_too_long_for_its_turn_is_told() -> None:
    """Five seconds in all, whoever is to blame."""
    api = DirectApi(store_with(None))
    api.latency = 2.0
    writer = publisher(api)
    first, second, third = await asyncio.gather(*(writer.publish(put(f"a-{number}"), None) for number in range(3)))
    assert first == Published(1, wrote=True)
    assert isinstance(second, NotPublished)
    assert isinstance(third, NotPublished)
    assert "other changes" in third.reason
