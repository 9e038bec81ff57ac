"""How soon a death is known, and how soon adapters are back."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from benchmarks import pods, polling
from benchmarks.figures import Figures, median
from tests.support.servers import Kind, RunningServer


async def detection(kind: Kind, folder: Path, rounds: int) -> Figures:
    """From the kernel's FIN on a connection of ours to the sidecar's `server.down`, and to the 5 s poller's notice.

    The server dies at moments spread evenly over the poller's sleep.
    """
    fins: list[float] = []
    downs: list[float] = []
    polls: list[float] = []
    async with RunningServer(pods.spec(kind, folder), folder / "server.log") as server:
        for number in range(rounds):
            if number:
                await server.restart()
            async with pods.sidecar(folder / "sidecar", server.url) as one, pods.poller(server.url, {}) as told:
                await one.event("server.up")
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                up, _ = _notice(await told.readline())
                if up != "up":
                    raise RuntimeError("the poller did not find the server")
                await asyncio.sleep(1.0 + 5.0 * (number + 0.5) / rounds)
                killed = time.clock_gettime(time.CLOCK_REALTIME)
                server.kill_now()
                await reader.read()
                fin = time.clock_gettime(time.CLOCK_REALTIME)
                writer.close()
                fins.append(fin - killed)
                downs.append(max(0.0, pods.logged_at(await one.event("server.down")) - fin))
                polls.append(_notice(await told.readline())[1] - fin)
    ours = median(downs) * 1e3
    # The log's times are whole milliseconds, of which the middle is meant where it says none.
    ratio = median(polls) * 1e3 / max(0.5, ours)
    row = (rounds, median(fins) * 1e3, ours, max(downs) * 1e3, median(polls) * 1e3, max(polls) * 1e3, ratio)
    columns = (
        "deaths",
        "SIGKILL to FIN, ms",
        "FIN to server.down, ms",
        "worst, ms",
        "5 s poll, ms",
        "worst of the poll, ms",
        "poll / ours",
    )
    return Figures("detection", "Detection of a death", columns, (row,))


def _notice(line: bytes) -> tuple[str, float]:
    """What the poller found, and when, Unix seconds."""
    found, at = line.decode().split()
    return found, float(at)


async def first_load(kind: Kind, folder: Path, rounds: int) -> Figures:
    """From the first accepted connection to the first adapter listed, against a bare loop that waits for the port."""
    wanted = pods.adapters(folder, 1)
    ours: list[float] = []
    bare: list[float] = []
    async with RunningServer(pods.spec(kind, folder), folder / "server.log") as server:
        async with pods.sidecar(folder / "sidecar", server.url, wanted) as one:
            await one.event("restore.completed")
            for _ in range(rounds):
                await server.sigkill_all()
                server.start()
                ours.append((await pods.first_and_last(server, 1))[0])
                await one.event("recovery.completed", count=len(ours))
        for _ in range(rounds):
            await server.sigkill_all()
            server.start()
            began = await pods.accepting(server)
            await pods.load_all(server.url, wanted)
            bare.append(asyncio.get_running_loop().time() - began)
    row = (rounds, median(bare) * 1e3, median(ours) * 1e3, max(ours) * 1e3, (median(ours) - median(bare)) * 1e3)
    columns = ("restarts", "bare loop, ms", "sidecar, ms", "worst, ms", "added, ms")
    return Figures("first_load", "Port open to first adapter listed", columns, (row,))


async def restore(kind: Kind, folder: Path, counts: tuple[int, ...], rounds: int) -> Figures:
    """Adapters that an idle server lacks: the sidecar's restore against bare loops and the poller's."""
    async with RunningServer(pods.spec(kind, folder), folder / "server.log") as server:
        rows = [await restored(server, folder, pods.adapters(folder, count), rounds) for count in counts]
    return Figures("restore", "Restore of a server without traffic", RESTORED, tuple(rows))


async def restored(server: RunningServer, folder: Path, wanted: dict[str, str], rounds: int) -> tuple[object, ...]:
    """One row of it; see `RESTORED`."""
    names = list(wanted)
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for lanes in (1, 4, 8):
            times.setdefault(f"bare {lanes}", []).append(await pods.load_all(server.url, wanted, lanes))
            await pods.unload_all(server.url, names)
        began = asyncio.get_running_loop().time()
        await asyncio.to_thread(polling.once, server.url, wanted)
        times.setdefault("poller", []).append(asyncio.get_running_loop().time() - began)
        await pods.unload_all(server.url, names)
        async with pods.sidecar(folder / "sidecar", server.url, wanted) as one:
            ended = pods.logged_at(await one.event("restore.completed", within=60))
            times.setdefault("sidecar", []).append(ended - pods.logged_at(await one.event("restore.started")))
        await pods.unload_all(server.url, names)
    middle = {name: median(values) for name, values in times.items()}
    best = min(middle["bare 1"], middle["bare 4"], middle["bare 8"])
    ours = middle["sidecar"]
    return (len(wanted), *middle.values(), ours / middle["bare 1"], ours / best, ours / middle["poller"])


RESTORED = (
    "adapters",
    "bare 1, s",
    "bare 4, s",
    "bare 8, s",
    "poller, s",
    "sidecar, s",
    "/ bare 1",
    "/ best",
    "/ poller",
)


async def outage(kind: Kind, folder: Path, counts: tuple[int, ...], rounds: int) -> Figures:
    """From the first accepted connection after a kill to everything listed, the sidecar against the poller."""
    rows: list[tuple[object, ...]] = []
    async with RunningServer(pods.spec(kind, folder), folder / "server.log") as server:
        for count in counts:
            wanted = pods.adapters(folder, count)
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(rounds):
                # Each time another one: a server that restarts over and over gets one adapter a heartbeat.
                await pods.unload_all(server.url, list(wanted))
                async with pods.sidecar(folder / "sidecar", server.url, wanted) as one:
                    await one.event("restore.completed", within=60)
                    await server.sigkill_all()
                    server.start()
                    ours.append((await pods.first_and_last(server, count))[1])
                    await one.event("recovery.completed")
            async with pods.poller(server.url, wanted):
                for number in range(rounds):
                    await server.sigkill_all()
                    # Pollers meet a server at any moment of their sleep.
                    await asyncio.sleep(1.0 + number)
                    server.start()
                    theirs.append((await pods.first_and_last(server, count))[1])
            rows.append((count, median(theirs), median(ours), median(ours) / median(theirs)))
    columns = ("adapters", "poller, s", "sidecar, s", "ratio")
    return Figures("outage", "Port open to everything back after a kill", columns, tuple(rows))
