from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path

import pytest

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.reconcile.state import Verdict
from tests.fakes.vllm import FakeConfig, canned
from tests.simulation.conftest import LOAD, Pod, PodMaker
from tests.support.adapters import SMALL, write_adapter
from tests.support.disk_errors import failing

pytestmark = pytest.mark.looptime

OLD = "adapters: [{name: sql, path: /adapters/old}, {name: chat, path: /adapters/chat}]"
NEW = "adapters: [{name: sql, path: /adapters/new}, {name: chat, path: /adapters/chat}]"


def mutations(pod: Pod) -> list[str]:
    """What the server was told to load and unload in this life, in order."""
    told = []
    for request in pod.server.requests:
        if request.method == "POST" and "lora_adapter" in request.path:
            body = json.loads(request.body)
            told.append(f"load {body['lora_path']}" if "lora_path" in body else f"unload {body['lora_name']}")
    return told


async def steady(pod: Pod) -> None:
    """Wait until both adapters are listed and the sidecar has seen that."""
    await pod.until_listed("sql", "chat")
    await pod.until(lambda: pod.status.verdict is Verdict.STEADY, 6)


async def test_another_path_in_the_config_is_loaded_in_its_place(make_pod: PodMaker) -> None:
    """One unload and one load, with a gap of well under a second; the other adapter is not touched."""
    async with make_pod(OLD) as pod:
        await steady(pod)
        before = len(mutations(pod))
        pod.reconfigure(NEW)
        await pod.until(lambda: pod.server.adapters.get("sql") == "/adapters/new", 6)
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_REPLACED)), 6)
        await asyncio.sleep(60)
        assert mutations(pod)[before:] == ["unload sql", "load /adapters/new"]
        assert pod.status.conditions == ()
        (retired,) = pod.of(EventName.ADAPTER_RETIRED)
        (replaced,) = pod.of(EventName.ADAPTER_REPLACED)
    assert replaced.at - retired.at < 1.0


async def test_a_new_path_that_does_not_load_is_undone(make_pod: PodMaker) -> None:
    """The former adapter serves again at once, and the condition says why."""
    async with make_pod(OLD) as pod:
        await steady(pod)
        before = len(mutations(pod))
        rank = {"error": {"message": "LoRA rank 64 is greater than max_lora_rank 16.", "code": 500}}
        pod.server.override(*LOAD, canned(500, rank), times=1)
        pod.reconfigure(NEW)
        await pod.until(lambda: len(mutations(pod)) == before + 3, 10)
        await steady(pod)
        await asyncio.sleep(300)
        assert mutations(pod)[before:] == ["unload sql", "load /adapters/new", "load /adapters/old"]
        (condition,) = pod.status.conditions
        assert condition.type is ConditionType.ADAPTER_PATH_DIFFERS
        assert "max_lora_rank" in condition.message


async def test_a_new_path_that_fails_its_preflight_costs_nothing(make_pod: PodMaker, tmp_path: Path) -> None:
    """The adapter that serves is not touched, the condition says why, and the mended files are loaded in its place."""
    new = write_adapter(tmp_path / "new", **SMALL)
    weights = (new / "adapter_model.safetensors").read_bytes()
    (new / "adapter_model.safetensors").write_bytes(weights[:-1])
    async with make_pod(OLD) as pod:
        await steady(pod)
        before = len(mutations(pod))
        pod.reconfigure(OLD.replace("/adapters/old", str(new)))
        await asyncio.sleep(100)
        assert mutations(pod)[before:] == []
        (condition,) = pod.status.conditions
        assert condition.type is ConditionType.ADAPTER_PATH_DIFFERS
        assert "preflight" in condition.message
        (new / "adapter_model.safetensors").write_bytes(weights)
        await pod.until(lambda: pod.server.adapters.get("sql") == str(new), 70)
        assert mutations(pod)[before:] == ["unload sql", f"load {new}"]


async def test_a_new_path_that_answers_with_an_error_costs_nothing(make_pod: PodMaker, tmp_path: Path) -> None:
    """Nothing is unloaded for files that nobody can read; once they can be read it is replaced."""
    new = write_adapter(tmp_path / "new", **SMALL)
    async with make_pod(OLD) as pod:
        await steady(pod)
        before = len(mutations(pod))
        with failing(new, errno.EIO):
            pod.reconfigure(OLD.replace("/adapters/old", str(new)))
            await asyncio.sleep(100)
            assert mutations(pod)[before:] == []
        await pod.until(lambda: pod.server.adapters.get("sql") == str(new), 70)
        assert mutations(pod)[before:] == ["unload sql", f"load {new}"]


async def test_a_server_whose_cache_would_go_stale_keeps_what_it_has(make_pod: PodMaker) -> None:
    """On a version that keys its prefix cache by name nothing is replaced, and the ways out are said."""
    async with make_pod(OLD, server=FakeConfig(check_files=False, version="0.20.2")) as pod:
        await steady(pod)
        before = len(mutations(pod))
        pod.reconfigure(NEW)
        await asyncio.sleep(60)
        assert mutations(pod)[before:] == []
        (condition,) = pod.status.conditions
        assert "0.20.2 keys its prefix cache by name" in condition.message


async def test_nothing_is_replaced_or_pruned_while_the_engine_sleeps(make_pod: PodMaker) -> None:
    """What is unloaded could not be loaded again; it is done when the engine is awake."""
    server = FakeConfig(check_files=False, dev_mode=True, gpu=True)
    async with make_pod(OLD, "policy: {prune: true}", server) as pod:
        await steady(pod)
        before = len(mutations(pod))
        pod.server.asleep = 1
        pod.reconfigure("adapters: [{name: sql, path: /adapters/new}]")
        await asyncio.sleep(300)
        assert mutations(pod)[before:] == []
        pod.server.asleep = None
        await pod.until(lambda: pod.server.adapters == {"sql": "/adapters/new"}, 30)
        assert not pod.server.engine.destroyed


async def test_what_is_removed_is_pruned_and_an_emptied_config_prunes_nothing(make_pod: PodMaker) -> None:
    """The removed one goes; when the list is emptied the rest stays, with a condition until it is mended."""
    async with make_pod(OLD, "policy: {prune: true}") as pod:
        await steady(pod)
        pod.reconfigure("adapters: [{name: sql, path: /adapters/old}]")
        await pod.until_listed("sql")
        pod.reconfigure("adapters: []")
        await asyncio.sleep(60)
        assert list(pod.server.adapters) == ["sql"]
        assert [one.type for one in pod.status.conditions] == [ConditionType.PRUNE_REFUSED]
        pod.reconfigure("adapters: [{name: chat, path: /adapters/chat}]")
        await pod.until_listed("chat")
