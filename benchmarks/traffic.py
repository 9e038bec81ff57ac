"""A restore beside a stream of tokens: how long it takes, and the longest gap that it makes in the stream."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

from benchmarks import pods
from benchmarks.figures import Figures, median
from benchmarks.outages import RESTORED, restored
from tests.support.adapters import WEIGHTS, Size, write_adapter
from tests.support.servers import Kind, RunningServer
from tests.support.tiny_model import write_tiny_model

SIZES: tuple[tuple[str, int, Size], ...] = (
    ("73 kB", 200, {"rank": 8, "hidden": 128, "layers": 2}),
    ("18 MB", 200, {"rank": 64, "hidden": 1024, "layers": 8}),
)
"""What an adapter has on disk, how many there are, and its shape, which is that of the model."""

_SINGLE = 3
_AFTER = 0.3


class Stream:
    """When each piece of the stream came, seconds of the loop's clock, which is the system's monotonic one."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._news = asyncio.Event()

    def take(self, time: float) -> None:
        """Note that a piece came."""
        self.times.append(time)
        self._news.set()

    async def reaches(self, time: float) -> None:
        """Wait for a piece that came after `time`."""
        async with asyncio.timeout(60):
            while not self.times or self.times[-1] <= time:
                self._news.clear()
                await self._news.wait()

    async def worst(self, since: float) -> float:
        """The longest gap, in seconds, between two pieces of which the later came after `since`.

        Up to a while from now: what a load holds up may come after its answer.
        """
        await self.reaches(asyncio.get_running_loop().time() + _AFTER)
        return max(b - a for a, b in pairwise(self.times) if b > since)


async def traffic(kind: Kind, folder: Path, rounds: int) -> Figures:
    """Restores beside one stream, the sidecar's against a bare sequential loop, and one load alone."""
    rows: list[tuple[object, ...]] = []
    for number, (size, count, shape) in enumerate(SIZES):
        rows.append(await _row(kind, folder / str(number), size, count, shape, rounds))
        print(*rows[-1], flush=True)
    columns = (
        "size",
        "adapters",
        "no load, gap ms",
        "one load, gap ms",
        "bare 1, s",
        "bare 1, gap ms",
        "sidecar, s",
        "sidecar, gap ms",
        "/ bare 1",
        "gap / one load's",
    )
    return Figures("traffic", "Restore beside one stream of tokens", columns, tuple(rows))


async def large(kind: Kind, folder: Path, rounds: int) -> Figures:
    """Restores of the larger adapters without a stream."""
    _, count, shape = SIZES[-1]
    wanted = await asyncio.to_thread(_adapters, folder, count, shape)
    spec = pods.spec(kind, folder, model=await asyncio.to_thread(_model, kind, folder, shape))
    async with RunningServer(spec, folder / "server.log") as server:
        # What is loaded for the first time is slower.
        await pods.load_all(server.url, wanted)
        await pods.unload_all(server.url, list(wanted))
        row = await restored(server, folder, wanted, rounds)
    return Figures("restore_large", "Restore of adapters of 18 MB without traffic", RESTORED, (row,))


async def _row(kind: Kind, folder: Path, size: str, count: int, shape: Size, rounds: int) -> tuple[object, ...]:
    folder.mkdir()
    wanted = await asyncio.to_thread(_adapters, folder, count, shape)
    spec = pods.spec(kind, folder, model=await asyncio.to_thread(_model, kind, folder, shape))
    clock = asyncio.get_running_loop().time
    gaps: dict[str, list[float]] = {"quiet": [], "one": [], "bare": [], "ours": []}
    bare: list[float] = []
    ours: list[float] = []
    async with RunningServer(spec, folder / "server.log") as server, _stream(server) as stream:
        # What is loaded for the first time is slower.
        await pods.load_all(server.url, wanted)
        await pods.unload_all(server.url, list(wanted))
        for _ in range(rounds):
            began = clock()
            await asyncio.sleep(1.0)
            gaps["quiet"].append(await stream.worst(began))
            for name, path in list(wanted.items())[:_SINGLE]:
                began = clock()
                await pods.load_all(server.url, {name: path})
                gaps["one"].append(await stream.worst(began))
            await pods.unload_all(server.url, list(wanted)[:_SINGLE])
            began = clock()
            bare.append(await pods.load_all(server.url, wanted))
            gaps["bare"].append(await stream.worst(began))
            await pods.unload_all(server.url, list(wanted))
            async with pods.sidecar(folder / "sidecar", server.url, wanted) as one:
                started = pods.logged_at(await one.event("restore.started"))
                ours.append(pods.logged_at(await one.event("restore.completed", within=60)) - started)
                began = clock() - (time.clock_gettime(time.CLOCK_REALTIME) - started)
                gaps["ours"].append(await stream.worst(began))
            await pods.unload_all(server.url, list(wanted))
    middle = {name: median(values) * 1e3 for name, values in gaps.items()}
    return (
        *(size, count, middle["quiet"], middle["one"]),
        *(median(bare), middle["bare"], median(ours), middle["ours"]),
        *(median(ours) / median(bare), middle["ours"] / middle["one"]),
    )


def _adapters(folder: Path, count: int, shape: Size) -> dict[str, str]:
    """So many folders that share one file of weights: each is a name of it, and read as its own."""
    first = write_adapter(folder / "a000", **shape)
    for number in range(1, count):
        other = folder / f"a{number:03}"
        other.mkdir()
        for file in first.iterdir():
            if file.name == WEIGHTS:
                (other / WEIGHTS).hardlink_to(file)
            else:
                (other / file.name).write_bytes(file.read_bytes())
    return {f"a{number:03}": str(folder / f"a{number:03}") for number in range(count)}


def _model(kind: Kind, folder: Path, shape: Size) -> Path:
    if kind is Kind.FAKE:
        return folder
    return write_tiny_model(folder / "model", hidden=shape["hidden"], layers=shape["layers"])


@asynccontextmanager
async def _stream(server: RunningServer) -> AsyncIterator[Stream]:
    """A stream of tokens that has begun."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.tokens", server.url, server.spec.served_model_name),
        stdout=asyncio.subprocess.PIPE,
        env=dict(os.environ),
    )
    if process.stdout is None:
        raise RuntimeError("the stream was started without a pipe")
    stream = Stream()
    lines = process.stdout

    async def read() -> None:
        while line := await lines.readline():
            stream.take(float(line))

    reading = asyncio.create_task(read())
    try:
        await stream.reaches(asyncio.get_running_loop().time() + _AFTER)
        yield stream
    finally:
        process.kill()
        await process.wait()
        await reading
