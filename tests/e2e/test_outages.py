from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import PATIENCE, NewSidecar, answers, told, until_listed
from tests.support.http_client import Api
from tests.support.servers import RunningServer
from tests.support.sidecar import Line, Sidecar

pytestmark = pytest.mark.asyncio(loop_scope="session")

GONE = 20.0
"""Seconds that a dead server may take to be gone: vLLM looks for a dead engine every 5 s."""


async def guarded(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path]
) -> tuple[Sidecar, dict[str, str]]:
    """One adapter declared, two loaded behind the sidecar's back; the sidecar, and what each model answers."""
    sidecar = new_sidecar(vllm.url, [{"name": "declared", "path": str(adapters[0]), "required": True}])
    await sidecar.start()
    await until_listed(api, "declared")
    for known, (name, path) in enumerate((("learned-1", adapters[1]), ("learned-2", adapters[2])), start=2):
        assert (await api.load(name, path)).status == 200
        await sidecar.event("adapter.adopted", adapter=name)
        # It is told before it is durable, and only what is durable outlives the sidecar.
        await sidecar.event("checkpoint.written", adapters=known)
    said = await answers(api, ["base", "declared", "learned-1", "learned-2"])
    assert len(set(said.values())) == 4, "each model must answer in its own way for the proof to hold"
    return sidecar, said


async def recovered(sidecar: Sidecar, api: Api, said: Mapping[str, str], since: int) -> Line:
    """Wait for the recovery; the server must list and serve everything as before."""
    line = await sidecar.event("recovery.completed", since=since, within=PATIENCE)
    print(f"\n    {told(line)}")
    await until_listed(api, *(name for name in said if name != "base"))
    assert await answers(api, list(said)) == said
    return line


async def test_the_whole_server_is_killed(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path]
) -> None:
    """After SIGKILL of every process, declared and learned adapters serve as before, with nobody's help."""
    sidecar, said = await guarded(new_sidecar, vllm, api, adapters)
    since = sidecar.mark()
    await vllm.sigkill_all()
    await sidecar.event("server.down", since=since)
    await sidecar.answers("/readyz", 503)
    await vllm.restart()
    line = await recovered(sidecar, api, said, since)
    assert (line["lost"], line["restored"], line["failed"], line["restarts"]) == (3, 3, 0, 1)
    await sidecar.answers("/readyz", 200)
    assert (await sidecar.terminate()).status == 0


async def test_the_engine_alone_is_killed(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path]
) -> None:
    """While the listing still answers for a dead engine nothing is loaded; after the restart everything is back."""
    sidecar, said = await guarded(new_sidecar, vllm, api, adapters)
    since = sidecar.mark()
    vllm.sigkill_engine()
    await sidecar.event("server.down", since=since, within=GONE)
    assert await vllm.ended(GONE) == 0
    assert sidecar.named("restore.started", since) == []
    await vllm.restart()
    line = await recovered(sidecar, api, said, since)
    assert (line["lost"], line["restored"]) == (3, 3)


async def test_the_server_is_stopped_and_started(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path], broken: Mapping[str, Path]
) -> None:
    """After SIGTERM the good adapters are back; the bad ones hold up nobody and their reasons are in the log."""
    sidecar, said = await guarded(new_sidecar, vllm, api, adapters)
    bad = {"missing": "No adapter found", "truncated": "and its header", "rank_64": "max_lora_rank"}
    config: list[dict[str, Any]] = [{"name": "declared", "path": str(adapters[0]), "required": True}]
    config += [{"name": name, "path": str(broken[name]), "priority": 100} for name in bad]
    sidecar.declare(config)
    for name, reason in bad.items():
        failed = await sidecar.event("restore.failed", adapter=name)
        assert reason in failed["message"]
    since = sidecar.mark()
    vllm.terminate()
    assert await vllm.ended(GONE) == 0
    await sidecar.event("server.down", since=since)
    await vllm.restart()
    line = await recovered(sidecar, api, said, since)
    assert (line["restored"], line["failed"]) == (3, 3)
    for name, reason in bad.items():
        assert reason in line["failed_adapters"][name]
    verbose = await sidecar.get("/readyz?verbose")
    assert verbose.status == 200
    assert "adapter rank_64 (declared): parked" in verbose.text


async def test_a_second_kill_during_the_restore(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path]
) -> None:
    """Killed again while forty adapters are being restored: all forty are back in the third life, told once."""
    sidecar = new_sidecar(vllm.url)
    await sidecar.start()
    await sidecar.event("server.up")
    for path in adapters:
        assert (await api.load(path.name, path)).status == 200
    await sidecar.event("adapter.adopted", count=len(adapters))
    since = sidecar.mark()
    await vllm.sigkill_all()
    vllm.start()
    await sidecar.event("restore.started", since=since, within=PATIENCE)
    await vllm.sigkill_all()
    await sidecar.event("server.down", since=since, count=2, within=GONE)
    await vllm.restart()
    line = await sidecar.event("recovery.completed", since=since, within=PATIENCE)
    print(f"\n    {told(line)}")
    await until_listed(api, *(path.name for path in adapters))
    assert (line["lost"], line["restored"], line["failed"], line["restarts"]) == (40, 40, 0, 2)
    await sidecar.beats(5, "steady")
    assert len(sidecar.named("recovery.completed", since)) == 1


async def test_a_server_that_is_frozen_and_goes_on(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path]
) -> None:
    """After SIGSTOP and SIGCONT it is the same life: an outage is told, and nothing is loaded again."""
    sidecar, said = await guarded(new_sidecar, vllm, api, adapters)
    since = sidecar.mark()
    vllm.stop()
    down = await sidecar.event("server.down", since=since, within=60)
    assert down["reason"] == "timeout"
    vllm.cont()
    line = await recovered(sidecar, api, said, since)
    await sidecar.beats(3, "steady")
    assert (line["lost"], line["restarts"]) == (0, 0)
    assert sidecar.named("restore.started", since) == []
    assert sidecar.named("server.restarted", since) == []


async def test_a_deliberate_unload_is_respected(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path]
) -> None:
    """What somebody unloads stays unloaded: while we watch, and while we are down; what is declared comes back."""
    sidecar, _ = await guarded(new_sidecar, vllm, api, adapters)
    assert (await api.unload("learned-1")).status == 200
    await sidecar.event("adapter.forgotten", adapter="learned-1", evidence="start_time")
    await sidecar.kill()
    assert (await api.unload("learned-2")).status == 200
    assert (await api.unload("declared")).status == 200
    await sidecar.start()
    await sidecar.event("adapter.forgotten", adapter="learned-2", evidence="start_time")
    await until_listed(api, "declared")
    await sidecar.beats(3, "steady")
    assert set(await api.listed()) == {"declared"}
    await sidecar.kill()
    await sidecar.start()
    await sidecar.beats(3, "steady")
    assert set(await api.listed()) == {"declared"}


async def test_our_own_death_during_an_outage(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path]
) -> None:
    """Server and sidecar killed together: what the checkpoint remembers is restored by the next sidecar."""
    sidecar, said = await guarded(new_sidecar, vllm, api, adapters)
    await sidecar.kill()
    await vllm.sigkill_all()
    await sidecar.start()
    await sidecar.event("probe.failed", reason="refused")
    await vllm.restart()
    line = await recovered(sidecar, api, said, 0)
    assert (line["lost"], line["restored"]) == (3, 3)


async def test_loading_is_switched_off(
    new_sidecar: NewSidecar, own_vllm: Callable[..., Any], adapters: Sequence[Path], session: aiohttp.ClientSession
) -> None:
    """Without the load route nothing is tried: a condition names the variable to set, and readiness waits."""
    server = await own_vllm(runtime_lora=False)
    sidecar = new_sidecar(server.url, [{"name": "declared", "path": str(adapters[0]), "required": True}])
    await sidecar.start()
    raised = await sidecar.event("condition.raised", condition="RuntimeLoadingDisabled")
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in raised["hint"]
    await sidecar.beats(3, "waiting")
    await sidecar.answers("/readyz?verbose", 503, "RuntimeLoadingDisabled")
    assert sidecar.named("restore.failed") == []
    assert await Api(session, server.url).listed() == {}


async def test_a_server_with_a_key(
    new_sidecar: NewSidecar,
    own_vllm: Callable[..., Any],
    adapters: Sequence[Path],
    session: aiohttp.ClientSession,
    tmp_path: Path,
) -> None:
    """With a wrong key everything is unknown and nothing is done; once the key's file is right, work begins."""
    server = await own_vllm(api_key="the-right-key")
    key = tmp_path / "key"
    key.write_text("the-wrong-key\n")
    servers = [{"name": "vllm", "url": server.url, "api_key_file": str(key)}]
    sidecar = new_sidecar(server.url, [{"name": "declared", "path": str(adapters[0])}], servers=servers)
    await sidecar.start()
    await sidecar.event("probe.failed", reason="unauthorized")
    await sidecar.beats(2, "unknown")
    key.write_text("the-right-key\n")
    await until_listed(Api(session, server.url, "the-right-key"), "declared")
    assert "the-right-key" not in sidecar.log
    assert "the-wrong-key" not in sidecar.log


async def test_a_dead_sidecar_takes_nothing_with_it(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path]
) -> None:
    """The server neither notices that the sidecar is frozen, nor that it dies in the middle of a load."""
    sidecar, said = await guarded(new_sidecar, vllm, api, adapters)
    os.kill(sidecar.pid, signal.SIGSTOP)
    assert await answers(api, list(said)) == said
    os.kill(sidecar.pid, signal.SIGCONT)
    await sidecar.kill()
    await asyncio.sleep(0)
    assert await answers(api, list(said)) == said
