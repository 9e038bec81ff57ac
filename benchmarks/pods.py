"""Servers, sidecars and bare clients for the benchmarks, all as processes of their own or on plain sockets."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.adapters import write_adapter
from tests.support.servers import Kind, RunningServer, ServerSpec
from tests.support.sidecar import Line, Sidecar, settings
from tests.support.tiny_model import write_tiny_model

LOAD_DELAY = "0.005"
"""Seconds that a load takes in the fake: as long as one of 73 kB in a real vLLM 0.32.0 on this kind of machine."""

# The log's colours come from a library that only the tools of the development environment need.
AS_IN_PRODUCTION = "import sys; sys.modules['rich'] = None"


def spec(kind: Kind, folder: Path, *, delay: str = LOAD_DELAY, port: int = 0, model: Path | None = None) -> ServerSpec:
    """How the server of a benchmark is started; its model is made where it is absent."""
    if model is None:
        model = write_tiny_model(folder / "tiny") if kind is Kind.REAL else folder
    flags = ("--no-check-files", "--load-delay", delay)
    return ServerSpec(
        kind=kind, model=model, port=port, max_cpu_loras=256, max_lora_rank=64, fake_flags=flags, ready_within=240.0
    )


def adapters(folder: Path, count: int) -> dict[str, str]:
    """So many adapter folders of 73 kB, name to path; made where they are absent."""
    root = folder / "adapters"
    first = root / "a00000"
    if not first.exists():
        write_adapter(first)
    paths = {f"a{number:05}": root / f"a{number:05}" for number in range(count)}
    for path in paths.values():
        if not path.exists():
            shutil.copytree(first, path)
    return {name: str(path) for name, path in paths.items()}


def imaginary(count: int) -> dict[str, str]:
    """So many adapters for a fake that reads no files."""
    return {f"adapter-{number:05}": f"/adapters/team-{number % 7}/adapter-{number:05}" for number in range(count)}


@asynccontextmanager
async def sidecar(
    folder: Path,
    url: str,
    declared: Mapping[str, str] | None = None,
    *,
    prelude: str = "",
    environment: Mapping[str, str] | None = None,
    **sections: Any,
) -> AsyncIterator[Sidecar]:
    """A sidecar beside a server, with the intervals of the default config, and an empty memory."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "state").mkdir(parents=True)
    wanted = [{"name": name, "path": path} for name, path in (declared or {}).items()]
    usual = {
        "heartbeat": {"interval": "5s", "away_interval": "100ms", "liveness": "30s"},
        "policy": {"adopt": {"max": 10_000}},
    }
    one = Sidecar(folder, settings(url, folder / "state", wanted, **(usual | sections)))
    await one.start(prelude=prelude, environment=environment)
    try:
        yield one
    finally:
        await one.close()


async def compiled(folder: Path, url: str, *, optimize: str) -> dict[str, str]:
    """The environment of a sidecar whose modules are all compiled already, as those of the image are.

    A process that compiles them itself is larger for good. `optimize` is "2" as in the image, "" as without it.
    """
    environment = {"PYTHONOPTIMIZE": optimize, "PYTHONPYCACHEPREFIX": str(folder / f"compiled-{optimize}")}
    writing = environment | {"PYTHONDONTWRITEBYTECODE": ""}
    async with sidecar(folder / "compiling", url, prelude=AS_IN_PRODUCTION, environment=writing) as one:
        await one.event("server.up")
        await one.get("/metrics")
        await one.terminate()
    return environment


@asynccontextmanager
async def poller(url: str, wanted: Mapping[str, str], seconds: float = 5.0) -> AsyncIterator[asyncio.StreamReader]:
    """The plain poller beside a server, and what it prints."""
    pairs = [f"{name}={path}" for name, path in wanted.items()]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.polling", url, str(seconds), *pairs),
        stdout=asyncio.subprocess.PIPE,
        env=dict(os.environ),
    )
    if process.stdout is None:
        raise RuntimeError("the poller was started without a pipe")
    try:
        yield process.stdout
    finally:
        process.kill()
        await process.wait()


def logged_at(line: Line) -> float:
    """When a line of the log was written, Unix seconds, to the millisecond."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


async def load_all(url: str, wanted: Mapping[str, str], concurrency: int = 1) -> float:
    """The bare loop: post the loads, over one connection for each that is in flight; the seconds it took."""
    clock = asyncio.get_running_loop().time
    left = list(wanted.items())[::-1]

    async def lane(session: aiohttp.ClientSession) -> None:
        while left:
            name, path = left.pop()
            body = {"lora_name": name, "lora_path": path}
            async with session.post(f"{url}/v1/load_lora_adapter", json=body) as reply:
                if reply.status != 200:
                    raise RuntimeError(await reply.text())

    async with aiohttp.ClientSession() as session:
        began = clock()
        await asyncio.gather(*(lane(session) for _ in range(concurrency)))
        async with session.get(f"{url}/v1/models") as reply:
            await reply.read()
        return clock() - began


async def unload_all(url: str, names: Sequence[str]) -> None:
    """Take the adapters out again."""
    async with aiohttp.ClientSession() as session:
        for name in names:
            async with session.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": name}) as reply:
                await reply.read()


async def listed(session: aiohttp.ClientSession, url: str) -> int:
    """How many adapters are listed; 0 while the server is away."""
    try:
        async with session.get(f"{url}/v1/models") as reply:
            return sum(card["parent"] is not None for card in json.loads(await reply.read())["data"])
    except (aiohttp.ClientError, OSError):
        return 0


async def accepting(server: RunningServer) -> float:
    """Wait until the port takes connections; the loop's time of the first one that it took."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        except OSError:
            await asyncio.sleep(0.002)
            continue
        writer.transport.abort()
        return asyncio.get_running_loop().time()


async def first_and_last(server: RunningServer, count: int, within: float = 120.0) -> tuple[float, float]:
    """From the first connection that the port takes: seconds to the first adapter listed, and to all `count`."""
    first = 0.0
    async with asyncio.timeout(within), aiohttp.ClientSession() as session:
        began = await accepting(server)
        while True:
            number = await listed(session, server.url)
            now = asyncio.get_running_loop().time() - began
            first = first or (now if number else 0.0)
            if number >= count:
                return first, now
            # Seldom enough not to be a load of its own.
            await asyncio.sleep(0.005 if not first else 0.02)


def kind_of(*, real: bool) -> Kind:
    """Which server is measured."""
    return Kind.REAL if real else Kind.FAKE
