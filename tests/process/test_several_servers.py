"""Several servers in one pod: one process, one config, and nothing else in common."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.sglang import FakeSglang, SglangConfig
from tests.fakes.vllm import FakeConfig, FakeVllm
from tests.process.conftest import NewSidecar, StartVllm
from tests.support.http_client import Api
from tests.support.sidecar import Sidecar, eventually


@pytest.fixture
async def eight() -> AsyncIterator[list[FakeVllm]]:
    """Eight servers, as data-parallel replicas on ports of their own."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(FakeVllm(FakeConfig(check_files=False))) for _ in range(8)]


def guard(new_sidecar: NewSidecar, servers: Sequence[dict[str, Any]], adapters: Sequence[dict[str, Any]]) -> Sidecar:
    """A sidecar for these servers, not yet started."""
    return new_sidecar("http://127.0.0.1:1", adapters, servers=list(servers))


def on(*urls: str) -> list[dict[str, Any]]:
    """Servers called s0, s1, ... at these addresses."""
    return [{"name": f"s{n}", "url": url} for n, url in enumerate(urls)]


async def until_listed(server: FakeVllm, *names: str) -> None:
    """Wait until the server lists exactly these."""

    async def listed() -> bool:
        return server.running and sorted(server.adapters) == sorted(names)

    await eventually(listed, f"{server.url} lists {names}")


async def test_each_server_has_its_adapters_and_its_own_memory(new_sidecar: NewSidecar, eight: list[FakeVllm]) -> None:
    """Eight servers, one config: shared and limited adapters, a checkpoint each, a restart that is nobody else's."""
    adapters: list[dict[str, Any]] = [
        {"name": "all", "path": "/adapters/all"},
        {"name": "few", "path": "/adapters/few", "servers": ["s1", "s6"]},
    ]
    sidecar = guard(new_sidecar, on(*(server.url for server in eight)), adapters)
    await sidecar.start()
    for n, server in enumerate(eight):
        await until_listed(server, "all", *(["few"] if n in (1, 6) else []))
    eight[6].adapters["learned"] = "/adapters/learned"
    await sidecar.event("adapter.adopted", adapter="learned", server="s6")
    await sidecar.event("checkpoint.written", server="s6", adapters=3)
    await eight[6].restart()
    await until_listed(eight[6], "all", "few", "learned")
    await sidecar.beats(16)
    assert {line["server"] for line in sidecar.named("server.restarted")} == {"s6"}
    assert "learned" not in {name for n, server in enumerate(eight) if n != 6 for name in server.adapters}
    kept = {path.stem for path in (sidecar.folder / "checkpoints").glob("s*.json")}
    assert kept >= {f"s{n}" for n in range(8)}


async def test_a_hung_server_and_a_hung_disk_delay_no_other(
    new_sidecar: NewSidecar, start_vllm: StartVllm, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """With one server frozen and the key of another on a disk that hangs, the third is restored as quickly as ever."""
    frozen, keyless, well = [await start_vllm() for _ in range(3)]
    os.mkfifo(tmp_path / "key")
    servers = on(frozen.url, keyless.url, well.url)
    servers[1]["api_key_file"] = str(tmp_path / "key")
    sidecar = guard(new_sidecar, servers, [{"name": "sql", "path": "/adapters/sql"}])
    frozen.stop()
    try:
        await sidecar.start()
        await sidecar.event("restore.succeeded", server="s2", adapter="sql")
        for _ in range(3):
            seen = sidecar.mark()
            await well.restart()
            up = await sidecar.event("server.up", since=seen, server="s2")
            recovered = await sidecar.event("recovery.completed", since=seen, server="s2")
            assert recovered["total_seconds"] - recovered["outage_seconds"] < 1.0, (up, recovered)
        assert await Api(session, well.url).listed() == {"sql": "/adapters/sql"}
        assert (await sidecar.get("/livez")).status == 200
        assert {line["server"] for line in sidecar.named("restore.succeeded")} == {"s2"}
    finally:
        frozen.cont()
    await sidecar.event("restore.succeeded", server="s0", adapter="sql")


async def test_servers_of_different_engines_in_one_pod(new_sidecar: NewSidecar) -> None:
    """The one is told from the other, and each is asked by its own routes."""
    async with (
        FakeVllm(FakeConfig(check_files=False)) as vllm,
        FakeSglang(SglangConfig(check_files=False)) as sglang,
    ):
        sidecar = guard(new_sidecar, on(vllm.url, sglang.url), [{"name": "sql", "path": "/adapters/sql"}])
        await sidecar.start()
        for server in ("s0", "s1"):
            await sidecar.event("restore.succeeded", server=server, adapter="sql")
        told = {line["server"]: line["engine"] for line in sidecar.named("server.identified")}
        assert told == {"s0": "vllm", "s1": "sglang"}
        await asyncio.gather(vllm.restart(), sglang.restart())
        for server in ("s0", "s1"):
            await sidecar.event("restore.succeeded", server=server, adapter="sql", count=2)
            await sidecar.answers("/metrics", 200, f'lora_sidecar_adapters{{server="{server}",state="listed"}} 1.0')
    assert len(sidecar.named("server.identified")) == 2
