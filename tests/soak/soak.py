"""The soak: one real sidecar beside a server that is hurt again and again, for as long as one likes.

The trap guarded against is a leak of a kilobyte an outage, which no short test sees. After every round of trouble there
is a quiet moment, in which everything that was loaded has to be listed, and memory, descriptors, threads and tasks are
read.

    python -m tests.soak.soak --minutes 30
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
from msgspec import Struct

from lora_sidecar.status.adapters import AdapterState
from lora_sidecar.threads import IDLE
from tests.support.http_client import Api
from tests.support.servers import Kind, RunningServer, ServerSpec
from tests.support.sidecar import TELL_TASKS, Sidecar, eventually, settings

_ALWAYS = ("sql", "chat")
_DECLARED: list[dict[str, Any]] = [{"name": n, "path": f"/adapters/{n}", "required": True} for n in _ALWAYS]
_NAMES = [f"learned-{number}" for number in range(12)]
_WARM_UP = 0.2
_ALLOWED = 2.0
_READINGS = 20
"""Over two seconds, so that no request under way is taken for a leak."""


class Sample(Struct, frozen=True):
    """What the process held in one quiet moment: minutes since the start, and the least of several readings.

    `open` is what the descriptors were of, where that was the least.
    """

    minute: float
    rss: float
    descriptors: int
    threads: int
    tasks: int
    open: tuple[str, ...]


class Soak:
    """One sidecar, one server, and what is done to them."""

    def __init__(self, folder: Path, session: aiohttp.ClientSession, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self._chance = Random(seed)
        self._session = session
        self._checkpoints = folder / "checkpoints"
        self._checkpoints.mkdir()
        spec = ServerSpec(kind=Kind.FAKE, model=Path("/models/tiny"), fake_flags=("--no-check-files",))
        self.server = RunningServer(spec, folder / "vllm.log")
        beat = {"interval": "250ms", "away_interval": "50ms"}
        self._config = settings(
            self.server.url,
            self._checkpoints,
            _DECLARED,
            heartbeat=beat,
            # The server dies during loads that are not to blame: a suspect has to be cleared within the round.
            restore={"backoff": {"initial": "200ms", "max": "1s", "reset_after": "1s", "quarantine": "1s"}},
            log={"level": "info", "format": "json"},
        )
        self.sidecar = Sidecar(folder, self._config)
        self.expected = set(_ALWAYS)
        self._began = 0.0

    @property
    def _api(self) -> Api:
        return Api(self._session, self.server.url)

    async def run(self, minutes: float) -> None:
        """Hurt it for so long. Raises `SidecarFailedError` where something is lost."""
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        self.server.start()
        await self.server.until_ready()
        await self.sidecar.start(prelude=TELL_TASKS)
        while loop.time() - self._began < minutes * 60:
            for _ in range(self._chance.randrange(1, 4)):
                name, act = self._chance.choice(list(self._acts().items()))
                self.counts[name] += 1
                await act()
            await self._quiet()
        self.sidecar.events.clear()
        ending = await self.sidecar.terminate()
        if ending.status:
            raise AssertionError(f"it ended with {ending.status}")

    def _acts(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {
            "server killed": self._kill,
            "server killed twice in a row": self._kill_twice,
            "server stopped and started": self._stop,
            "engine killed": self._kill_engine,
            "server frozen": self._freeze,
            "adapter loaded by somebody": self._load,
            "adapter unloaded by somebody": self._unload,
            "config changed": self._configure,
            "config spoiled and mended": self._spoil,
            "scraped by many": self._scrape,
            "garbage on the ops port": self._garbage,
            "checkpoint's directory taken away": self._take_away,
        }

    async def _kill(self) -> None:
        await self.server.sigkill_all()
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        self.server.start()
        await self.server.until_ready()

    async def _kill_twice(self) -> None:
        await self._kill()
        await asyncio.sleep(self._chance.uniform(0.0, 0.1))
        await self._kill()

    async def _stop(self) -> None:
        self.server.terminate()
        with suppress(TimeoutError, AssertionError):
            await self.server.ended(5.0)
        await self._kill()

    async def _kill_engine(self) -> None:
        self.server.sigkill_engine()
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        await self._kill()

    async def _freeze(self) -> None:
        self.server.stop()
        await asyncio.sleep(self._chance.uniform(0.1, 3.0))
        self.server.cont()

    async def _load(self) -> None:
        name = self._chance.choice(_NAMES)
        await self._quiet(sample=False)
        await self._api.load(name, f"/adapters/{name}")
        self.expected.add(name)
        await self._remembered()

    async def _unload(self) -> None:
        await self._quiet(sample=False)
        learned = sorted(self.expected & set(_NAMES))
        if learned:
            name = self._chance.choice(learned)
            # What was loaded and not seen listed yet has failed to load, as far as anybody but us can tell.
            await self._remembered()
            await self._api.unload(name)
            self.expected.discard(name)
            await self._remembered()

    async def _remembered(self) -> None:
        """Wait until the sidecar knows: what happens between two heartbeats may be lost with the server."""

        async def look() -> bool:
            status = (await self.sidecar.get("/status")).json()
            seen = {one["name"]: one["state"] for one in status["adapters"]["items"]}
            return seen == dict.fromkeys(self.expected, AdapterState.LISTED.value)

        await eventually(look, f"the sidecar remembers {sorted(self.expected)}", 30.0)

    async def _configure(self) -> None:
        more = {"name": "more", "path": "/adapters/more"}
        adding = "more" not in self.expected
        # One that is removed is not restored any more: it must have come back before.
        await self._quiet(sample=False)
        self.sidecar.write_config(self._config | {"adapters": [*_DECLARED, *([more] if adding else [])]})
        if adding:
            self.expected.add("more")
            return
        await asyncio.sleep(3.0)
        self.expected.discard("more")
        await self._api.unload("more")

    async def _spoil(self) -> None:
        good = self.sidecar.config_file.read_text()
        self.sidecar.config_file.write_text("servers: [")
        await asyncio.sleep(2.5)
        self.sidecar.config_file.write_text(good)

    async def _scrape(self) -> None:
        for path in ("/metrics", "/status", "/", "/livez", "/readyz?verbose"):
            await asyncio.gather(*(self.sidecar.get(path) for _ in range(5)))

    async def _garbage(self) -> None:
        host, port = (await self.sidecar.ops_url()).removeprefix("http://").rsplit(":", 1)
        for _ in range(10):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(self._chance.randbytes(200))
            writer.close()

    async def _take_away(self) -> None:
        aside = self._checkpoints.with_name("aside")
        self._checkpoints.rename(aside)
        await asyncio.sleep(self._chance.uniform(0.0, 2.0))
        aside.rename(self._checkpoints)

    async def _quiet(self, *, sample: bool = True) -> None:
        """Wait until all is as it should be; read what the process holds then."""

        async def look() -> bool:
            listed = (await self._api.listed()).keys()
            return listed == self.expected

        await eventually(look, f"{sorted(self.expected)} is listed", 60.0)
        if not sample:
            return
        await self.sidecar.answers("/readyz", 200)
        pid = self.sidecar.pid
        readings: list[tuple[float, tuple[str, ...], int, int]] = []
        for _ in range(_READINGS):
            running = int((await self.sidecar.get("/metrics")).text.split()[1])
            # The thread that wrote them stays a moment, for it may be needed again.
            await asyncio.sleep(2 * IDLE)
            readings.append((_rss(pid), _descriptors(pid), _threads(pid), running))
        rss, descriptors, threads, tasks = zip(*readings, strict=True)
        least = min(descriptors, key=len)
        minute = (asyncio.get_running_loop().time() - self._began) / 60
        self.samples.append(Sample(minute, min(rss), len(least), min(threads), min(tasks), least))
        self.counts["recoveries"] += len(self.sidecar.named("recovery.completed"))
        self.counts["adapters forgotten"] += len(self.sidecar.named("adapter.forgotten"))
        # The test's own memory is not the subject, but half an hour of log is a lot of it.
        loaded = self.sidecar.named("config.loaded")
        del self.sidecar.events[:]
        self.sidecar.events += loaded


def _rss(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _descriptors(pid: int) -> tuple[str, ...]:
    """What each descriptor of a process is of, a connection with the port that it goes to."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    ports = {f"socket:[{columns[9]}]": int(columns[2].partition(":")[2], 16) for columns in map(str.split, lines)}
    held = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            what = str(entry.readlink())
            held.append(f"to port {ports[what]}" if what in ports else what.partition("[")[0])
    return tuple(sorted(held))


def report(soak: Soak, minutes: float) -> tuple[str, bool]:
    """What was seen, and whether nothing grew after the warm-up."""
    kept = [one for one in soak.samples if one.minute >= minutes * _WARM_UP]
    lines = ["minute  RSS MB  descriptors  threads  tasks"]
    step = max(1, len(soak.samples) // 24)
    lines += [
        f"{s.minute:6.1f}  {s.rss:6.1f}  {s.descriptors:11}  {s.threads:7}  {s.tasks:5}" for s in soak.samples[::step]
    ]
    lines += [f"{number:6}  {what}" for what, number in sorted(soak.counts.items())]
    if not kept:
        return "\n".join([*lines, "no quiet moment after the warm-up"]), False
    grown = max(one.rss for one in kept[len(kept) // 2 :]) - max(one.rss for one in kept[: len(kept) // 2 + 1])
    steady = all(len({getattr(one, name) for one in kept}) == 1 for name in ("descriptors", "threads", "tasks"))
    lines.append(f"RSS after the warm-up: the second half's most is {grown:+.2f} MB of the first half's")
    lines.append("descriptors, threads and tasks: " + ("the same in every quiet moment" if steady else "NOT the same"))
    usual = Counter(one.open for one in kept).most_common(1)[0][0]
    for one in kept:
        if one.open != usual:
            more, fewer = Counter(one.open) - Counter(usual), Counter(usual) - Counter(one.open)
            lines.append(f"{one.minute:6.1f}  more: {dict(more)}, fewer: {dict(fewer)}")
    return "\n".join(lines), grown < _ALLOWED and steady


async def _main(minutes: float, seed: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with aiohttp.ClientSession() as session:
            soak = Soak(Path(folder), session, seed)
            try:
                await soak.run(minutes)
            finally:
                await soak.sidecar.close()
                await soak.server.sigkill_all()
                told, steady = report(soak, minutes)
                sys.stdout.write(told + "\n")
        if soak.sidecar.stderr or soak.sidecar.strays:
            sys.stdout.write(f"it said besides its log: {soak.sidecar.stderr}{soak.sidecar.strays}\n")
            return 1
    return 0 if steady else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak; the exit status is 1 where something was lost or has grown."""
    parser = argparse.ArgumentParser(description="Hurt one sidecar for a long time, and see whether it grows.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    return asyncio.run(_main(asked.minutes, asked.seed))


if __name__ == "__main__":
    sys.exit(main())
