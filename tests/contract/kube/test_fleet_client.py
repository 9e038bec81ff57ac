"""The product's client, source and publisher on an API server: the fake and, where it was built, a real one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme

from lora_sidecar.fleet.api import Conflict, Denied, Listed, Missing, Patched, Rejected, Unreachable, Verb
from lora_sidecar.fleet.cluster import Cluster
from lora_sidecar.fleet.codec import decode, encode
from lora_sidecar.fleet.document import Entry, FleetDocument, NoDocument
from lora_sidecar.fleet.kubernetes import KubernetesApi
from lora_sidecar.fleet.publisher import FleetPublisher, NotPublished, Published
from lora_sidecar.fleet.source import FleetSource
from lora_sidecar.fleet.writes import Put, TakeOut
from tests.contract.kube.calling import CONFIG_MAPS, Caller, until
from tests.support.kube_api import KubeApi

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]

KEY = "vllm.json"


def now() -> float:
    """The loop's clock."""
    return asyncio.get_running_loop().time()


class Pod:
    """One replica's side of the fleet, and when it was rung."""

    def __init__(self, kube: KubeApi, folder: Path, token: str, name: str) -> None:
        folder.mkdir()
        (folder / "token").write_text(token)
        (folder / "namespace").write_text("default")
        (folder / "ca.crt").write_text(kube.ca)
        chance = random.Random(name)
        self.folder = folder
        self.rung = asyncio.Event()
        self.api = KubernetesApi(Cluster(kube.url, str(folder)), name, asyncio.to_thread)
        self.source = FleetSource(self.api, KEY, clock=now, jitter=chance.random, on_change=self.rung.set)
        self.publisher = FleetPublisher(self.api, KEY, clock=now, jitter=chance.random)

    @property
    def document(self) -> FleetDocument | None:
        """The newest document that it heard of."""
        found = self.source.snapshot.found
        return found.reading if found and isinstance(found.reading, FleetDocument) else None

    def names(self) -> set[str]:
        """What that lists."""
        return {entry.name for entry in self.document.entries} if self.document else set()

    async def put(self, name: str) -> Published | NotPublished:
        """Publish an adapter."""
        result = await self.publisher.publish(Put(name, f"/adapters/{name}", "base", "pod"), self.document)
        assert isinstance(result, Published | NotPublished)
        return result

    async def wait_for(self, is_so: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait until something is so, looking at each change. Raises `TimeoutError`."""
        async with asyncio.timeout(seconds):
            while not is_so():
                self.rung.clear()
                await self.rung.wait()


@asynccontextmanager
async def pods(kube: KubeApi, folder: Path, fleet: str, number: int) -> AsyncIterator[list[Pod]]:
    """Replicas that follow the fleet's document."""
    token = await kube.token(fleet)
    made = [Pod(kube, folder / f"pod-{at}", token, fleet) for at in range(number)]
    tasks = [asyncio.create_task(pod.source.run()) for pod in made]
    try:
        for pod in made:
            await pod.wait_for(lambda pod=pod: pod.source.snapshot.is_known)  # type: ignore[misc]
        yield made
    finally:
        for task in tasks:
            task.cancel()
        for task, pod in zip(tasks, made, strict=True):
            with suppress(asyncio.CancelledError):
                await task
            await pod.api.close()


@pytest.mark.usefixtures("pod")
async def test_what_one_pod_publishes_every_pod_hears(kube: KubeApi, fleet: str, tmp_path: Path) -> None:
    """Into an empty fleet, and out of it again; a repeat is no write."""
    async with pods(kube, tmp_path, fleet, 3) as (one, two, three):
        found = one.source.snapshot.found
        assert found is not None
        assert found.reading == NoDocument()
        assert await one.put("sql") == Published(1, wrote=True)
        for pod in (one, two, three):
            await pod.wait_for(lambda pod=pod: pod.names() == {"sql"}, 5.0)  # type: ignore[misc]
        assert await two.put("sql") == Published(1, wrote=False)
        assert await three.publisher.publish(TakeOut("sql", "base"), three.document) == Published(2, wrote=True)
        for pod in (one, two, three):
            await pod.wait_for(lambda pod=pod: pod.document is not None and not pod.names(), 5.0)  # type: ignore[misc]
        heard = two.source.snapshot.found
        assert heard is not None
        assert heard.changed_by == "lora-sidecar"


@pytest.mark.usefixtures("pod")
async def test_ten_writers_at_once_lose_nothing(kube: KubeApi, fleet: str, tmp_path: Path) -> None:
    """Compare-and-swap with jitter: each is told within its five seconds, and what was published is there."""
    async with pods(kube, tmp_path, fleet, 10) as writers:
        began = now()
        results = await asyncio.gather(*(pod.put(f"a-{at}") for at, pod in enumerate(writers)))
        assert now() - began < 10.0
        published = {f"a-{at}": one.serial for at, one in enumerate(results) if isinstance(one, Published)}
        assert published
        assert len(set(published.values())) == len(published)
        await writers[0].wait_for(lambda: writers[0].names() >= published.keys())


async def test_a_document_of_768_kib_is_written_and_heard(
    pod: Caller, kube: KubeApi, fleet: str, tmp_path: Path
) -> None:
    """As large as one may get: in one write, one list and one event."""
    entries = tuple(Entry(f"a-{number}", "/" + "p" * 3900, "base", 1) for number in range(190))
    await pod.patch(fleet, {"data": {KEY: encode(FleetDocument(1, entries))}})
    async with pods(kube, tmp_path, fleet, 2) as (one, two):
        assert len(one.names()) == 190
        assert await one.put("last") == Published(2, wrote=True)
        await two.wait_for(lambda: len(two.names()) == 191)


async def test_each_answer_to_a_write_is_a_value(
    pod: Caller, admin: Caller, kube: KubeApi, fleet: str, tmp_path: Path
) -> None:
    """Written, conflicting, too much, forbidden, without an object, and nobody there."""
    client = Pod(kube, tmp_path / "pod", pod.token, fleet).api
    version = (await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")).version
    patched = await client.patch(version, {KEY: "1"}, {"a": "b"}, 10)
    assert isinstance(patched, Patched)
    assert (patched.config_map.data, patched.config_map.annotations["a"]) == ({KEY: "1"}, "b")
    assert isinstance(await client.patch(version, {KEY: "2"}, {}, 10), Conflict)
    too_much = await client.patch(patched.config_map.resource_version, {KEY: "x" * 1_048_577}, {}, 10)
    assert isinstance(too_much, Rejected)
    assert too_much.status == 422
    await admin.ask("DELETE", f"{CONFIG_MAPS}/{fleet}")
    assert isinstance(await client.patch(version, {KEY: "2"}, {}, 10), Missing)
    listed = await client.list(10)
    assert isinstance(listed, Listed)
    assert listed.config_map is None
    await kube.revoke(fleet)
    await until(403, lambda: pod.ask("GET", f"{CONFIG_MAPS}/{fleet}"))
    denied = await client.patch(version, {KEY: "2"}, {}, 10)
    assert isinstance(denied, Denied)
    assert (denied.status, denied.verb) == (403, Verb.PATCH)
    await client.close()


async def test_a_token_that_is_not_known_is_denied(kube: KubeApi, fleet: str, tmp_path: Path) -> None:
    """401, and the hint is about the token; the right one in its file is used at once."""
    one = Pod(kube, tmp_path / "pod", "no-such-token", fleet)
    denied = await one.api.list(10)
    assert isinstance(denied, Denied)
    assert denied.status == 401
    (one.folder / "token").write_text(kube.admin_token)
    assert isinstance(await one.api.list(10), Listed)
    await one.api.close()


async def test_another_ca_is_not_trusted(kube: KubeApi, fleet: str, tmp_path: Path) -> None:
    """Whoever answers at that address gets no token."""
    one = Pod(kube, tmp_path / "pod", kube.admin_token, fleet)
    (one.folder / "ca.crt").write_bytes(trustme.CA().cert_pem.bytes())
    answer = await one.api.list(10)
    assert isinstance(answer, Unreachable)
    assert "ca.crt" in answer.hint
    await one.api.close()


async def test_a_watch_that_begins_too_early_is_begun_anew(
    pod: Caller, kube: KubeApi, fleet: str, tmp_path: Path
) -> None:
    """Its version was forgotten while the pod was cut off: a list tells, and nothing is lost."""
    await pod.patch(fleet, {"data": {KEY: encode(FleetDocument(1, (Entry("sql", "/adapters/sql", "base", 1),)))}})
    async with pods(kube, tmp_path, fleet, 1) as (one,):
        await kube.forget()
        await until(200, lambda: pod.ask("GET", f"{CONFIG_MAPS}/{fleet}"))
        await pod.patch(fleet, {"data": {KEY: encode(FleetDocument(2, (Entry("chat", "/adapters/chat", "base"),)))}})
        await one.wait_for(lambda: one.names() == {"chat"}, 60.0)


async def test_an_api_server_that_is_killed_costs_nothing_but_time(
    pod: Caller, kube: KubeApi, fleet: str, tmp_path: Path
) -> None:
    """Meanwhile the document stays what it was, a write fails within its time, and afterwards both go on."""
    await pod.patch(fleet, {"data": {KEY: encode(FleetDocument(1, (Entry("sql", "/adapters/sql", "base", 1),)))}})
    async with pods(kube, tmp_path, fleet, 2) as (one, two):
        await kube.kill()
        began = now()
        refused = await one.put("chat")
        assert isinstance(refused, NotPublished)
        assert not refused.in_doubt
        assert now() - began < 7.0
        assert one.names() == {"sql"}
        await kube.start()
        await until(200, lambda: pod.ask("GET", f"{CONFIG_MAPS}/{fleet}"))
        assert isinstance(await one.put("chat"), Published)
        for each in (one, two):
            await each.wait_for(lambda each=each: each.names() == {"sql", "chat"}, 60.0)  # type: ignore[misc]


async def test_a_stopped_api_server_answers_a_write_within_its_time(
    pod: Caller, kube: KubeApi, fleet: str, tmp_path: Path
) -> None:
    """Nothing is refused and nothing answered: the deadline is ours, and the watch goes on afterwards."""
    async with pods(kube, tmp_path, fleet, 1) as (one,):
        kube.pause()
        try:
            began = now()
            assert isinstance(await one.put("sql"), NotPublished)
            assert 4.5 < now() - began < 7.0
        finally:
            kube.resume()
        await until(200, lambda: pod.ask("GET", f"{CONFIG_MAPS}/{fleet}"))
        assert isinstance(await one.put("sql"), Published)
        await one.wait_for(lambda: one.names() == {"sql"}, 60.0)


async def test_what_a_pod_writes_anybody_can_read(pod: Caller, kube: KubeApi, fleet: str, tmp_path: Path) -> None:
    """The document stands in the object as text, an adapter a line."""
    async with pods(kube, tmp_path, fleet, 1) as (one,):
        await one.put("sql")
        text = (await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")).body["data"][KEY]
        assert '\n{"name":"sql","path":"/adapters/sql","base":"base","serial":1,"by":"pod"}\n' in text
        assert isinstance(decode(text), FleetDocument)
