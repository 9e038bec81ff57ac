from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
from aiohttp import web

from lora_sidecar.core.events import EventName
from lora_sidecar.reconcile.outage import Phase
from tests.fakes.vllm import Answer, FakeConfig
from tests.simulation.conftest import Pod, PodMaker
from tests.support.adapters import SMALL, WEIGHTS, write_adapter

pytestmark = pytest.mark.looptime

TWO = "adapters: [{name: one, path: /adapters/one}, {name: two, path: /adapters/two}]"
PROBE = "verify: {by: probe, interval: 20s}\nserver_health: {hung_after: 60s}"
COMPLETE = ("POST", "/v1/completions")


def conditions(pod: Pod) -> dict[str, str]:
    """The conditions that hold, type to message."""
    return {one.type.value: one.message for status in pod.board.statuses() for one in status.conditions}


def probes(pod: Pod) -> list[str]:
    """The models in the completions that the server received in this life, in order."""
    return [json.loads(request.body)["model"] for request in pod.server.requests if request[:2] == COMPLETE]


async def proven(pod: Pod, count: int = 1) -> None:
    """Wait until everything listed was decided so many times."""
    await pod.until(lambda: len(pod.of(EventName.VERIFICATION_COMPLETED)) >= count, 120)


def dies_of(pod: Pod, name: str) -> Answer:
    """Completions of a server whose engine dies when one adapter is asked."""

    async def deadly(request: web.Request) -> web.StreamResponse:
        if (await request.json())["model"] == name:
            pod.server.engine.die()
            return web.json_response({"error": {"message": "EngineCore encountered an issue."}}, status=500)
        answer: web.StreamResponse = await pod.server.routes._complete(request)
        return answer

    return deadly


async def test_nothing_is_asked_of_the_engine_unless_it_is_wanted(make_pod: PodMaker) -> None:
    """By default no completion is ever sent."""
    async with make_pod(TWO) as pod:
        await pod.until_listed("one", "two")
        await asyncio.sleep(3600)
        assert probes(pod) == []


async def test_every_adapter_is_proven_after_a_restore_and_then_in_turn(make_pod: PodMaker) -> None:
    """Quickly once, each after the base model; then one adapter every interval, round and round."""
    async with make_pod(TWO, PROBE) as pod:
        await pod.until_listed("one", "two")
        await proven(pod)
        assert probes(pod) == ["base", "one", "base", "two"]
        assert pod.of(EventName.VERIFICATION_COMPLETED)[0].fields["proven"] == 2
        began = len(probes(pod))
        took = await pod.until(lambda: len(probes(pod)) >= began + 8, 2000)
        # Never quicker; slower at times, since virtual time goes on while a real socket is waited for.
        assert took >= 3 * 20
        later = probes(pod)[began:]
        assert min(later.count("one"), later.count("two")) >= 1
        assert later[0] == "base"
        assert later.count("base") >= later.count("one") + later.count("two")
        await pod.server.restart()
        await pod.until_listed("one", "two")
        await proven(pod, 2)


async def test_a_listed_adapter_that_answers_nothing_is_named(make_pod: PodMaker) -> None:
    """AdapterDead names it with what the server said, and only it; cleared when it answers again."""

    async def dead(request: web.Request) -> web.StreamResponse:
        if (await request.json())["model"] == "two":
            return web.json_response({"error": {"message": "its weights are gone"}}, status=500)
        answer: web.StreamResponse = await pod.server.routes._complete(request)
        return answer

    async with make_pod(TWO, PROBE) as pod:
        pod.server.override(*COMPLETE, dead, times=None)
        await pod.until(lambda: "AdapterDead" in conditions(pod), 60)
        assert conditions(pod)["AdapterDead"] == "two: its weights are gone"
        assert pod.status.failing == ""
        pod.server.behave()
        await pod.until(lambda: "AdapterDead" not in conditions(pod), 60)


async def test_an_adapter_that_is_listed_and_not_applied_is_named(make_pod: PodMaker) -> None:
    """After a wake-up it answers with the base model's numbers: named after three prompts, and cleared by a reload."""
    async with make_pod(TWO, PROBE, FakeConfig(check_files=False, dev_mode=True, gpu=True)) as pod:
        await pod.until_listed("one", "two")
        await proven(pod)
        pod.server.asleep = 1
        before = len(probes(pod))
        await asyncio.sleep(120)
        assert len(probes(pod)) == before
        pod.server.engine.unapplied.add("/adapters/two")
        pod.server.asleep = None
        await pod.until(lambda: "AdapterNotApplied" in conditions(pod), 120)
        assert conditions(pod)["AdapterNotApplied"].startswith("two: ")
        pod.server.engine.unapplied.clear()
        await pod.until(lambda: "AdapterNotApplied" not in conditions(pod), 60)


async def test_a_busy_engine_is_not_probed(make_pod: PodMaker) -> None:
    """With more requests than the limit under way no probe is sent; when they are done it begins."""
    async with make_pod(TWO, PROBE) as pod:
        pod.server.engine.requests = 5
        await pod.until_listed("one", "two")
        await asyncio.sleep(300)
        assert probes(pod) == []
        pod.server.engine.requests = 4
        await proven(pod)


async def test_a_server_that_does_not_tell_its_requests_is_not_probed(make_pod: PodMaker) -> None:
    """What is not known to be idle is left alone, and a condition says why nothing is proven."""
    async with make_pod(TWO, PROBE) as pod:
        pod.server.override("GET", "/metrics", lambda _: asyncio.sleep(0, web.Response(status=404)), times=None)
        await pod.until(lambda: "VerificationWithheld" in conditions(pod), 60)
        assert probes(pod) == []


async def test_a_hung_engine_is_found_by_a_probe(make_pod: PodMaker) -> None:
    """With nothing to load a probe finds it: ServerHung, nobody blamed, and all well again when it goes on."""
    async with make_pod(TWO, PROBE) as pod:
        await pod.until_listed("one", "two")
        await proven(pod)
        pod.server.hung = True
        await pod.until(lambda: "ServerHung" in conditions(pod), 100)
        assert set(conditions(pod)) == {"ServerHung"}
        await asyncio.sleep(300)
        assert set(conditions(pod)) == {"ServerHung"}
        assert pod.status.failing
        pod.server.hung = False
        await pod.until(lambda: conditions(pod) == {}, 30)


async def test_an_adapter_whose_folder_is_gone_is_not_asked_for(make_pod: PodMaker, tmp_path: Path) -> None:
    """A probe of an evicted adapter without files would kill the engine: what is seen to be gone is left out."""
    names = ("here", "gone")
    folders = {name: write_adapter(tmp_path / "adapters" / name, **SMALL) for name in names}
    adapters = ", ".join(f"{{name: {name}, path: {folder}}}" for name, folder in folders.items())
    async with make_pod(f"adapters: [{adapters}]", PROBE) as pod:
        await pod.until_listed(*names)
        shutil.rmtree(folders["gone"])
        pod.server.requests.clear()
        await asyncio.sleep(200)
        assert "here" in probes(pod)
        assert "gone" not in probes(pod)


async def test_an_adapter_whose_files_are_spoilt_is_not_asked_for(make_pod: PodMaker, tmp_path: Path) -> None:
    """Weights that were cut short, or are gone from their folder, kill the engine once it has evicted them."""
    names = ("here", "cut", "bare")
    folders = {name: write_adapter(tmp_path / "adapters" / name, **SMALL) for name in names}
    adapters = ", ".join(f"{{name: {name}, path: {folder}}}" for name, folder in folders.items())
    async with make_pod(f"adapters: [{adapters}]", PROBE) as pod:
        await pod.until_listed(*names)
        await proven(pod)
        os.truncate(folders["cut"] / WEIGHTS, 100)
        (folders["bare"] / WEIGHTS).unlink()
        await asyncio.sleep(10)
        before = len(probes(pod))
        await asyncio.sleep(300)
        assert "here" in probes(pod)[before:]
        assert {"cut", "bare"}.isdisjoint(probes(pod)[before:])


@pytest.mark.parametrize("also_the_sidecar", [False, True])
async def test_a_probe_that_kills_the_server_is_no_crash_loop(make_pod: PodMaker, *, also_the_sidecar: bool) -> None:
    """An adapter that is loaded well and kills the engine when it is asked is held back after the second death."""
    async with make_pod(TWO, PROBE) as pod:
        for _ in range(2):
            pod.server.override(*COMPLETE, dies_of(pod, "two"), times=None)
            await pod.server.engine.death()
            await pod.until(lambda: pod.status.work.server.phase is Phase.DOWN, 10)
            await pod.server.kill()
            if also_the_sidecar:
                await pod.die()
                await pod.start()
            await asyncio.sleep(10)
            await pod.server.start()
        pod.server.override(*COMPLETE, dies_of(pod, "two"), times=None)
        await pod.until(lambda: "AdapterQuarantined" in conditions(pod), 60)
        await asyncio.sleep(1200)
        assert not pod.server.engine.dead
        assert set(pod.server.adapters) == {"one"}
        assert conditions(pod)["AdapterQuarantined"].startswith("two: the server died twice")


async def test_a_probe_that_fails_under_a_living_server_accuses_nobody(make_pod: PodMaker) -> None:
    """An adapter that answers nothing is dead and no suspect, also when the server is killed a while later."""

    async def dead(request: web.Request) -> web.StreamResponse:
        if (await request.json())["model"] == "two":
            return web.json_response({"error": {"message": "its weights are gone"}}, status=500)
        answer: web.StreamResponse = await pod.server.routes._complete(request)
        return answer

    async with make_pod(TWO, PROBE) as pod:
        pod.server.override(*COMPLETE, dead, times=None)
        await pod.until(lambda: "AdapterDead" in conditions(pod), 60)
        await asyncio.sleep(10)
        pod.server.behave()
        await pod.server.restart()
        await pod.until_listed("one", "two")
        await asyncio.sleep(10)
        assert pod.status.desired.suspects == {}


async def test_a_probe_of_a_former_path_that_kills_the_server_accuses_nobody(make_pod: PodMaker) -> None:
    """What is listed from elsewhere than the config says is not what will be loaded after the death."""
    async with make_pod("", f"{PROBE}\npolicy: {{replace: never}}") as pod:
        await pod.until(lambda: pod.status.beats > 0, 10)
        await pod.somebody_loads("two", "/adapters/former")
        pod.reconfigure(TWO)
        pod.server.override(*COMPLETE, dies_of(pod, "two"), times=None)
        await pod.server.engine.death()
        await pod.until(lambda: pod.status.work.server.phase is Phase.DOWN, 10)
        await pod.server.kill()
        pod.server.behave()
        await pod.server.start()
        await pod.until_listed("one", "two")
        assert pod.status.desired.suspects == {}
        assert pod.of(EventName.RESTORE_SUSPECTED) == []
