from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

from lora_sidecar.checkpoint.decode import Checkpoint, decode
from lora_sidecar.checkpoint.store import read_file
from lora_sidecar.core.model import Origin
from tests.fakes.vllm import FakeConfig, FakeVllm
from tests.process.conftest import NewSidecar, StartVllm
from tests.support.adapters import write_adapter
from tests.support.http_client import Api
from tests.support.servers import RunningServer
from tests.support.sidecar import Sidecar, eventually

PATHS = {"three": "/adapters/three", "two": "/adapters/two", "one": "/adapters/one"}
"""The declared adapters, in the order in which they are to be loaded."""


def remembered(sidecar: Sidecar) -> Checkpoint:
    """What is in the checkpoint file now."""
    found = decode(read_file(str(sidecar.folder / "checkpoints" / "vllm.json")))
    assert isinstance(found, Checkpoint)
    return found


async def settled(sidecar: Sidecar) -> None:
    """Wait until nothing is missing, and for one more heartbeat, in which that is on disk."""
    await sidecar.beats(2, verdict="steady")


async def with_learned(sidecar: Sidecar, api: Api) -> None:
    """Have an adapter loaded by somebody else, and wait until it is remembered and was seen listed."""
    await sidecar.event("restore.completed")
    await api.load("learned", "/adapters/learned")
    await sidecar.event("adapter.adopted", adapter="learned")
    await settled(sidecar)


async def test_first_start_adopts_what_is_listed_and_loads_what_is_declared(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, declared: list[dict[str, Any]]
) -> None:
    """Without a checkpoint, what others loaded is remembered and what the config declares is loaded, urgent first."""
    await api.load("learned", "/adapters/learned")
    sidecar = new_sidecar(vllm.url, declared)
    await sidecar.start()

    adopted = await sidecar.event("adapter.adopted")
    completed = await sidecar.event("restore.completed")
    await settled(sidecar)

    assert (adopted["adapter"], adopted["path"]) == ("learned", "/adapters/learned")
    assert (completed["lost"], completed["restored"], completed["failed"]) == (3, 3, 0)
    assert list((await api.listed()).items()) == [("learned", "/adapters/learned"), *PATHS.items()]
    desired = remembered(sidecar).desired
    assert {name: adapter.origin for name, adapter in desired.adapters.items()} == {
        "learned": Origin.ADOPTED,
        "one": Origin.DECLARED,
        "two": Origin.DECLARED,
        "three": Origin.DECLARED,
    }
    assert sidecar.named("recovery.completed") == []


async def test_server_killed_and_back(sidecar: Sidecar, vllm: RunningServer, api: Api) -> None:
    """After a restart of the server everything is loaded again, urgent first, and one line tells the whole story."""
    await with_learned(sidecar, api)
    mark = sidecar.mark()

    await vllm.sigkill_all()
    down = await sidecar.event("server.down", since=mark)
    vllm.start()
    recovery = await sidecar.event("recovery.completed", since=mark)
    await settled(sidecar)

    assert down["reason"] in {"refused", "reset"}
    assert list((await api.listed()).items()) == [
        ("three", PATHS["three"]),
        ("two", PATHS["two"]),
        ("learned", "/adapters/learned"),
        ("one", PATHS["one"]),
    ]
    assert len(sidecar.named("recovery.completed")) == 1
    assert len(sidecar.named("server.down", since=mark)) == 1
    assert len(sidecar.named("server.up", since=mark)) == 1
    restarted = sidecar.named("server.restarted")
    assert [(line["evidence"], line["lost"]) for line in restarted] == [("start_time", 4)]
    assert recovery["server"] == "vllm"
    assert recovery["reason"] == down["reason"]
    assert recovery["restarts"] == 1
    assert (recovery["lost"], recovery["restored"], recovery["failed"]) == (4, 4, 0)
    assert recovery["restored_adapters"] == ["learned", "one", "three", "two"]
    assert recovery["failed_adapters"] == {}
    assert recovery["down_at"] < recovery["up_at"] <= recovery["timestamp"]
    assert 0 < recovery["outage_seconds"] <= recovery["total_seconds"]
    assert abs(recovery["outage_seconds"] + recovery["restore_seconds"] - recovery["total_seconds"]) < 0.01


async def test_one_adapter_cannot_be_loaded_again(
    new_sidecar: NewSidecar, start_vllm: StartVllm, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """An adapter whose files are gone does not hold up the others, and the recovery says what failed and why."""
    vllm = await start_vllm(check_files=True)
    whole, doomed = write_adapter(tmp_path / "whole", layers=1), write_adapter(tmp_path / "doomed", layers=1)
    adapters = [{"name": "doomed", "path": str(doomed), "priority": 1}, {"name": "whole", "path": str(whole)}]
    sidecar = new_sidecar(vllm.url, adapters)
    await sidecar.start()
    await sidecar.event("restore.completed")

    await vllm.sigkill_all()
    doomed.rename(tmp_path / "elsewhere")
    vllm.start()
    recovery = await sidecar.event("recovery.completed")

    assert (recovery["lost"], recovery["restored"], recovery["failed"]) == (2, 1, 1)
    assert recovery["restored_adapters"] == ["whole"]
    assert "No adapter found" in recovery["failed_adapters"]["doomed"]
    assert recovery["level"] == "warning"
    assert await Api(session, vllm.url).listed() == {"whole": str(whole)}

    (tmp_path / "elsewhere").rename(doomed)
    restored = await sidecar.event("restore.succeeded", since=sidecar.events.index(recovery), adapter="doomed")
    assert restored["previous_errors"] >= 1


async def test_unload_on_purpose_is_respected(sidecar: Sidecar, vllm: RunningServer, api: Api) -> None:
    """A learned adapter that somebody unloaded is forgotten, and a restart of the server does not bring it back."""
    await with_learned(sidecar, api)

    await api.unload("learned")
    forgotten = await sidecar.event("adapter.forgotten")
    await vllm.restart()
    await sidecar.event("recovery.completed")
    await settled(sidecar)

    assert (forgotten["adapter"], forgotten["evidence"]) == ("learned", "start_time")
    assert await api.listed() == PATHS


async def test_unload_of_a_declared_adapter_is_made_good(sidecar: Sidecar, api: Api) -> None:
    """An adapter that the config declares is loaded again, whoever unloaded it."""
    await sidecar.event("restore.completed")
    await settled(sidecar)
    mark = sidecar.mark()

    await api.unload("one")
    await sidecar.event("restore.succeeded", since=mark, adapter="one")

    assert sorted(await api.listed()) == ["one", "three", "two"]


async def test_unload_is_respected_across_our_own_death(sidecar: Sidecar, vllm: RunningServer, api: Api) -> None:
    """Once forgotten, an adapter stays so through a SIGKILL and a SIGTERM of the sidecar and restarts of the server."""
    await with_learned(sidecar, api)
    await api.unload("learned")
    await sidecar.event("adapter.forgotten")
    await sidecar.event("checkpoint.written", since=sidecar.events.index(sidecar.named("adapter.forgotten")[0]))

    await sidecar.kill()
    await sidecar.start()
    await settled(sidecar)
    await vllm.restart()
    await sidecar.event("recovery.completed")
    assert (await sidecar.terminate()).status == 0
    await sidecar.start()
    await vllm.restart()
    await sidecar.event("recovery.completed")
    await settled(sidecar)

    assert await api.listed() == PATHS


async def test_unload_while_the_sidecar_is_down(sidecar: Sidecar, api: Api) -> None:
    """An unload that nobody watched is told from a restart by the server's start time, and respected."""
    await with_learned(sidecar, api)

    await sidecar.kill()
    await api.unload("learned")
    await sidecar.start()
    forgotten = await sidecar.event("adapter.forgotten")
    await settled(sidecar)

    assert (forgotten["adapter"], forgotten["evidence"]) == ("learned", "start_time")
    assert sorted(await api.listed()) == ["one", "three", "two"]
    assert sidecar.named("server.restarted") == []


async def test_server_restarts_while_the_sidecar_is_down(sidecar: Sidecar, vllm: RunningServer, api: Api) -> None:
    """A restart that nobody watched is told from an unload by the server's start time, and made good."""
    await with_learned(sidecar, api)

    assert (await sidecar.terminate()).status == 0
    await vllm.restart()
    await sidecar.start()
    restarted = await sidecar.event("server.restarted")
    await sidecar.event("recovery.completed")

    assert (restarted["evidence"], restarted["lost"]) == ("start_time", 4)
    assert sorted(await api.listed()) == ["learned", "one", "three", "two"]


async def test_both_killed_at_once(sidecar: Sidecar, vllm: RunningServer, api: Api) -> None:
    """A node's memory running out takes both containers; afterwards everything is back."""
    await with_learned(sidecar, api)

    vllm.kill_now()
    await sidecar.kill()
    await vllm.sigkill_all()
    vllm.start()
    await sidecar.start()
    loaded = await sidecar.event("checkpoint.loaded")
    await sidecar.event("recovery.completed")

    assert (loaded["source"], loaded["adapters"]) == ("current", 4)
    assert sorted(await api.listed()) == ["learned", "one", "three", "two"]


async def test_killed_in_the_middle_of_a_restore(new_sidecar: NewSidecar) -> None:
    """The next start goes on where the last one was killed, and loads nothing that is listed."""
    names = [f"adapter-{number}" for number in range(6)]
    async with FakeVllm(FakeConfig(check_files=False, load_delay=0.1)) as fake:
        declared = [{"name": name, "path": f"/adapters/{name}"} for name in names]
        sidecar = new_sidecar(fake.url, declared, restore={"concurrency": 1})
        await sidecar.start()
        await eventually(lambda: _true(len(fake.adapters) >= 3), "half of the adapters are loaded")
        await sidecar.kill()
        listed = set(fake.adapters)
        before = len(fake.requests)
        await sidecar.start()
        await sidecar.event("restore.completed")

        asked = Counter(r.body for r in fake.requests[before:] if r.path == "/v1/load_lora_adapter" and r.body)
        assert sorted(fake.adapters) == names
        assert max(asked.values()) == 1
        assert not any(name.encode() in body for name in listed for body in asked)


async def _true(value: object) -> bool:
    await asyncio.sleep(0)
    return bool(value)


async def test_server_frozen_and_let_go(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, declared: list[dict[str, Any]]
) -> None:
    """A server that stood still is down, then up again in the same life: nothing is restored."""
    quick = {"probe_timeout": "150ms", "list_timeout": "150ms", "interval": "100ms"}
    sidecar = new_sidecar(vllm.url, declared, heartbeat=quick)
    await sidecar.start()
    await sidecar.event("restore.completed")
    await settled(sidecar)
    mark = sidecar.mark()

    vllm.stop()
    down = await sidecar.event("server.down", since=mark)
    vllm.cont()
    await sidecar.event("server.up", since=mark)
    recovery = await sidecar.event("recovery.completed", since=mark)

    assert down["reason"] == "timeout"
    assert (recovery["restarts"], recovery["lost"]) == (0, 0)
    assert sidecar.named("restore.started", since=mark) == []
    assert await api.listed() == PATHS


async def test_frozen_sidecar_finds_a_new_life(sidecar: Sidecar, vllm: RunningServer, api: Api) -> None:
    """A sidecar that stood still through a whole restart of the server still notices it, and restores."""
    await with_learned(sidecar, api)

    sidecar.send(signal.SIGSTOP)
    await vllm.restart()
    sidecar.send(signal.SIGCONT)
    await sidecar.event("recovery.completed")

    assert sorted(await api.listed()) == ["learned", "one", "three", "two"]
