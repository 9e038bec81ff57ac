"""What a look at the ops port costs: how long it takes, and how long it holds the loop, on which heartbeats wait.

The trap guarded against is a scrape that is timed alone: in a thread it shares the interpreter with the loop, so what
counts is the longest time for which the loop did not come to its turn. On a machine with other work that is a matter of
luck; what the loop's own thread computed meanwhile is not.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp

from benchmarks import pods
from benchmarks.figures import Figures, median
from lora_sidecar.api.metrics import Metrics
from lora_sidecar.api.ops import OpsServer
from lora_sidecar.config.process import OpsConfig
from lora_sidecar.status.board import Board
from tests.support.snapshots import a_status

COUNTS = (100, 1000, 10_000)
ROUNDS = 15
_PATHS = ("/livez", "/metrics", "/status", "/", "/?limit=1000")


async def scrape(folder: Path) -> Figures:
    """Each path of the ops port, asked again and again while the loop counts how long it was held."""
    del folder
    rows: list[tuple[object, ...]] = []
    for count in COUNTS:
        names = list(pods.imaginary(count))
        board = Board(("vllm",))
        board.publish(a_status(adapters=names, listed=names))
        server = OpsServer(OpsConfig("127.0.0.1:0"), lambda board=board: board.snapshot(60.0, 30.0), Metrics(("vllm",)))  # type: ignore[misc]
        await server.start()
        rows += [(count, path, *await _asked(f"http://{server.addresses[0]}{path}")) for path in _PATHS]
        await server.close()
    columns = ("adapters", "path", "bytes", "answer, ms", "CPU of the loop, ms", "loop held, ms")
    return Figures("scrape", "A look at the ops port", columns, tuple(rows))


async def _asked(url: str) -> tuple[int, float, float, float]:
    """Bytes of an answer, its milliseconds, and the longest for which the loop computed and for which it was held."""
    took: list[float] = []
    computed: list[float] = []
    held: list[float] = []
    size = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        for number in range(ROUNDS + 1):
            ticking = asyncio.create_task(_longest_wait())
            await asyncio.sleep(0.02)
            began = time.perf_counter()
            async with session.get(url) as reply:
                size = len(await reply.read())
            ended = time.perf_counter()
            # So that what ended the answer is still counted.
            await asyncio.sleep(0.01)
            ticking.cancel()
            # The first answer reads what is read but once.
            if number:
                cpu, wall = await ticking
                took.append(ended - began)
                computed.append(cpu)
                held.append(wall)
    return size, median(took) * 1e3, median(computed) * 1e3, median(held) * 1e3


async def _longest_wait() -> tuple[float, float]:
    """The most, until it is cancelled, that the loop's thread computed, and the longest time, between two turns."""
    computed, held = 0.0, 0.0
    cpu, wall = time.thread_time(), time.perf_counter()
    try:
        while True:
            await asyncio.sleep(0.001)
            computed, held = max(computed, time.thread_time() - cpu), max(held, time.perf_counter() - wall - 0.001)
            cpu, wall = time.thread_time(), time.perf_counter()
    except asyncio.CancelledError:
        return computed, held
