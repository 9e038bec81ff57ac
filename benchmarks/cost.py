"""What a heartbeat and the process cost."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from benchmarks import memory, pods
from benchmarks.figures import Figures, median
from lora_sidecar.checkpoint.manager import CheckpointManager
from lora_sidecar.checkpoint.store import Store
from lora_sidecar.config.load import parse
from lora_sidecar.controller import Clock, ServerController
from lora_sidecar.core.events import Event
from lora_sidecar.engines.detect import Detector
from lora_sidecar.status.board import Board
from lora_sidecar.threads import BlockingCall
from tests.support.servers import Kind, RunningServer

T = TypeVar("T")


class _Inline(BlockingCall):
    """Saves where it is asked for, so that the CPU it takes is measured with the rest."""

    async def run(self, function: Callable[[], T], deadline: float) -> T:
        """Call the function at once."""
        del deadline
        return function()


class _Card(Struct):
    id: str
    root: str | None = None
    parent: str | None = None


class _Models(Struct):
    data: list[_Card]


async def heartbeat(folder: Path, counts: tuple[int, ...], rounds: int) -> Figures:
    """CPU of a steady heartbeat against fetching and decoding the same listing bare, in one process, taken in turn."""
    rows: list[tuple[object, ...]] = []
    decoder = msgspec.json.Decoder(_Models)
    for count in counts:
        async with RunningServer(pods.spec(Kind.FAKE, folder, delay="0"), folder / "server.log") as server:
            await pods.load_all(server.url, pods.imaginary(count), 8)
            watch, detector = await _watch(folder / f"beat-{count}", server.url)
            connector = aiohttp.TCPConnector(force_close=True)
            async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
                size = 0
                ours: list[float] = []
                bare: list[float] = []
                for number in range(rounds + 2):
                    began = time.process_time()
                    await watch.heartbeat()
                    middle = time.process_time()
                    async with session.get(f"{server.url}/v1/models") as reply:
                        body = await reply.read()
                    decoder.decode(body)
                    ended = time.process_time()
                    size = len(body)
                    # The first two beats learn what there is.
                    if number > 1:
                        ours.append(middle - began)
                        bare.append(ended - middle)
            await detector.close()
        beat = median(ours)
        rows.append((count, size, median(bare) * 1e3, beat * 1e3, beat / median(bare), beat * 3600 / 5, beat / 5 * 100))
    columns = ("adapters", "bytes", "bare, ms", "heartbeat, ms", "ratio", "CPU s per hour at 5 s", "% of a core")
    return Figures("heartbeat", "CPU of a steady heartbeat", columns, tuple(rows))


async def _watch(folder: Path, url: str) -> tuple[ServerController, Detector]:
    folder.mkdir(parents=True, exist_ok=True)
    text = f"servers: [{{name: vllm, url: '{url}', engine: vllm}}]\npolicy: {{adopt: {{max: 10000}}}}"
    config = parse(text.encode(), "bench")
    clock = asyncio.get_running_loop().time
    keeper = CheckpointManager(Store(str(folder), "vllm", "json"), 5.0, clock, _Inline("checkpoint"))

    def report(*facts: Event) -> None:
        del facts

    detector = Detector(config.servers[0], config, clock, report)
    watch = ServerController("vllm", config, detector, keeper, Board(("vllm",)), report, Clock(clock, lambda: 0.5))
    await watch.open()
    return watch, detector


async def footprint(folder: Path, servers: tuple[int, ...], beats: int) -> Figures:
    """RSS after the first heartbeats and after many, CPU over them, and the time to the first heartbeat.

    Heartbeats are 0.1 s apart, and what asks the ops port asks it as much more often.
    """
    rows: list[tuple[object, ...]] = []
    for mode in memory.MODES:
        for count in servers:
            async with AsyncExitStack() as stack:
                spec = pods.spec(Kind.FAKE, folder, delay="0")
                urls = [
                    (await stack.enter_async_context(RunningServer(spec, folder / f"server-{number}.log"))).url
                    for number in range(count)
                ]
                for url in urls:
                    await pods.load_all(url, pods.imaginary(memory.ADAPTERS), 8)
                environment = await pods.compiled(folder, urls[0], optimize=memory.MODES[mode])
                whole, same = [await memory.imported(what, environment) for what in (memory.WHOLE, memory.SAME)]
                one = await stack.enter_async_context(memory.resting(folder, urls, mode, 0.1))
                # As many heartbeats as the first minute has at 5 s.
                await asyncio.sleep(12 * 0.1)
                (early, *_), cpu = memory.memory(one.pid), _cpu(one.pid)
                await asyncio.sleep(beats * 0.1)
                (late, *_), spent = memory.memory(one.pid), _cpu(one.pid) - cpu
            rows.append((count, mode, whole, same, early, late, late - early, late / same, spent / beats / 5 * 100))
    columns = (
        "servers",
        "Python",
        "libraries whole, MB",
        "same imports, MB",
        "RSS, MB",
        f"after {beats} beats, MB",
        "growth, MB",
        "/ same imports",
        "% of a core at 5 s",
    )
    return Figures("footprint", "Memory and idle CPU with 100 adapters a server", columns, tuple(rows))


async def startup(folder: Path, counts: tuple[int, ...], rounds: int) -> Figures:
    """From the start of the process to the end of its first good heartbeat, against one that imports alone."""
    rows: list[tuple[object, ...]] = []
    clock = asyncio.get_running_loop().time
    for count in counts:
        times: dict[str, list[float]] = {"whole": [], "same": [], "ours": []}
        async with RunningServer(pods.spec(Kind.FAKE, folder, delay="0"), folder / "server.log") as server:
            await pods.load_all(server.url, pods.imaginary(count), 8)
            environment = await pods.compiled(folder, server.url, optimize="2")
            for _ in range(rounds):
                for name, program in (("whole", memory.WHOLE), ("same", memory.SAME)):
                    began = clock()
                    await memory.imported(program, environment)
                    times[name].append(clock() - began)
                began = clock()
                async with pods.sidecar(
                    folder / "sidecar", server.url, prelude=pods.AS_IN_PRODUCTION, environment=environment
                ) as one:
                    await one.event("heartbeat.completed", verdict="steady")
                    times["ours"].append(clock() - began)
        whole, same, ours = (median(times[name]) * 1e3 for name in ("whole", "same", "ours"))
        rows.append((count, whole, same, ours, max(times["ours"]) * 1e3, ours / same))
    columns = ("adapters", "libraries whole, ms", "same imports, ms", "first heartbeat, ms", "worst, ms", "ratio")
    return Figures("startup", "Start of the process to its first heartbeat", columns, tuple(rows))


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
