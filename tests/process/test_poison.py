from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp

from tests.process.conftest import NewSidecar, StartVllm
from tests.support.http_client import Api
from tests.support.servers import RunningServer
from tests.support.sidecar import eventually

NAMES = [f"a{n:02}" for n in range(20)]
POISON = "a07"
INNOCENT = sorted(set(NAMES) - {POISON})


async def restarted_by_a_kubelet(server: RunningServer, deaths: list[int]) -> None:
    """Kill and start a server that has not answered three times in a row, as a liveness probe does."""
    misses = 0
    while True:
        misses = 0 if await server.answers() else misses + 1
        if misses == 3:
            deaths.append(server.pid)
            await server.restart()
            misses = 0
        await asyncio.sleep(0.1)


async def test_a_poison_among_twenty(
    start_vllm: StartVllm, new_sidecar: NewSidecar, session: aiohttp.ClientSession
) -> None:
    """The server dies twice of the poison, wedged as vLLM is, and then has the other nineteen, though we died, too."""
    server = await start_vllm("--deadly", f"/adapters/{POISON}", "--engine-watchdog", "0.3")
    sidecar = new_sidecar(server.url, [{"name": name, "path": f"/adapters/{name}"} for name in NAMES])
    deaths: list[int] = []
    kubelet = asyncio.create_task(restarted_by_a_kubelet(server, deaths))
    try:
        await sidecar.start()
        await sidecar.event("restore.suspected", within=30, adapter=POISON)
        # The sidecar dies as well: the suspicion is on disk.
        await sidecar.kill()
        await sidecar.start()
        verdict = await sidecar.event("restore.quarantined", within=30)

        async def all_back() -> bool:
            return sorted(await Api(session, server.url).listed()) == INNOCENT

        await eventually(all_back, "nineteen are listed")
        await sidecar.beats(20)
        assert verdict["adapter"] == POISON
        assert len(deaths) == 2
        assert await all_back()
        ready = await sidecar.get("/readyz?verbose")
        assert "AdapterQuarantined" in ready.text
    finally:
        kubelet.cancel()
        with suppress(asyncio.CancelledError):
            await kubelet
