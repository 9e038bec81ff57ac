"""What a sidecar with 100 adapters keeps in memory while nothing happens."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count as counting
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import pods
from benchmarks.figures import Figures
from tests.support.servers import Kind, RunningServer
from tests.support.sidecar import Sidecar

ADAPTERS = 100
MODES = {"image": "2", "plain": ""}
"""How Python runs it: without docstrings and assertions as in the image, or as it is."""

# What a pod's neighbours ask of the ops port, and how often in seconds at a heartbeat of 5 s.
_ASKED = {"/metrics": 15.0, "/readyz": 10.0, "/livez": 10.0}

WHOLE = "import aiohttp, aiohttp.web, jinja2, msgspec, prometheus_client, structlog, tenacity, yaml"
SAME = "import lora_sidecar.cli.main, lora_sidecar.daemon, idna"
"""The modules of the daemon."""


async def hour(folder: Path, minutes: int) -> Figures:
    """Memory of a real daemon at a heartbeat of 5 s, each minute; scraped and probed meanwhile."""
    rows: list[tuple[object, ...]] = []
    async with RunningServer(pods.spec(Kind.FAKE, folder, delay="0"), folder / "server.log") as server:
        await pods.load_all(server.url, pods.imaginary(ADAPTERS), 8)
        async with AsyncExitStack() as stack:
            some = [await stack.enter_async_context(resting(folder / mode, [server.url], mode, 5.0)) for mode in MODES]
            began = asyncio.get_running_loop().time()
            for minute in counting(1):
                await asyncio.sleep(began + minute * 60 - asyncio.get_running_loop().time())
                rows.append((minute, *(size for one in some for size in memory(one.pid))))
                print(*rows[-1], flush=True)
                if minute >= minutes:
                    break
    columns = ("minute", *(f"{mode} {what}, MB" for mode in MODES for what in ("RSS", "PSS", "anonymous")))
    return Figures("hour", "Memory over an hour of heartbeats, 100 adapters", columns, tuple(rows))


@asynccontextmanager
async def resting(folder: Path, urls: list[str], mode: str, interval: float) -> AsyncIterator[Sidecar]:
    """A sidecar that has adopted what its servers hold, and is asked what a pod is asked."""
    folder.mkdir(exist_ok=True)
    environment = await pods.compiled(folder, urls[0], optimize=MODES[mode])
    sections: dict[str, Any] = {
        "servers": [{"name": f"vllm-{number}", "url": url} for number, url in enumerate(urls)],
        "heartbeat": {"interval": f"{interval * 1000:g}ms", "away_interval": "100ms", "liveness": "30s"},
        "log": {"level": "info"},
    }
    async with (
        pods.sidecar(
            folder / "sidecar", urls[0], prelude=pods.AS_IN_PRODUCTION, environment=environment, **sections
        ) as one,
        asyncio.TaskGroup() as group,
    ):
        await one.event("adapter.adopted", count=ADAPTERS * len(urls))
        url = await one.ops_url()
        asking = [group.create_task(_ask(url + path, every * interval / 5)) for path, every in _ASKED.items()]
        yield one
        for task in asking:
            task.cancel()


async def _ask(url: str, every: float) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(url) as reply:
                    await reply.read()
            await asyncio.sleep(every)


def memory(pid: int) -> tuple[float, float, float]:
    """RSS, PSS and anonymous memory of a process in MB.

    PSS counts a page that n processes share as an nth. Anonymous memory is what the process itself took: pages of
    programs and libraries come and go with what else is run on the machine.
    """
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith("kB"):
            sizes[name] = int(rest.split()[0]) / 1024
    return sizes["Rss"], sizes["Pss"], sizes["Anonymous"]


async def imported(program: str, environment: Mapping[str, str]) -> float:
    """RSS in MB of an interpreter that has imported something, and does nothing more."""
    program = f"{pods.AS_IN_PRODUCTION}\n{program}\nprint(flush=True)\nsys.stdin.read()"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        stdin=pipe,
        stdout=pipe,
        env={**os.environ, **environment},
        # As sidecars are started: the scheduler may share the processor out by session.
        start_new_session=True,
    )
    if process.stdout is None or process.stdin is None:
        raise RuntimeError("the interpreter was started without pipes")
    await process.stdout.readline()
    size = memory(process.pid)[0]
    process.stdin.close()
    await process.wait()
    return size
