"""Runs the sidecar as a process of its own, reads its log as it comes, and leaves nothing running.

Two traps are guarded against. A test that sleeps instead of waiting for what it means is slow and still fails on a busy
machine; so every wait is for an event of the log or for a condition, with a generous deadline. And what a process
says besides its log (a lost exception, an unclosed socket) is easily overlooked; so each line must be one of the
log's known events, and stderr is kept for the test to look at.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import yaml
from msgspec import Struct

from lora_sidecar.core.events import EventName
from tests.support.http_client import Api, Reply

DEADLINE = 20.0
"""Seconds that a wait may take on a busy machine before the test has failed."""

_POLL = 0.02
_LONGEST_LINE = 1 << 20
_TELL = """
import json, os
def tell(**fields):
    os.write(1, json.dumps({"event": "daemon.started"} | fields).encode() + b"\\n")
"""
_MAIN = "import sys\nfrom lora_sidecar.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"

Line = Mapping[str, Any]
T = TypeVar("T")


TELL_TASKS = """
import asyncio
from lora_sidecar.api import ops
scrape = ops.OpsServer._scrape
async def counted(self, request):
    response = await scrape(self, request)
    response.body = b"tasks %d\\n" % len(asyncio.all_tasks()) + response.body
    return response
ops.OpsServer._scrape = counted
"""
"""A prelude with which `/metrics` begins with the number of tasks."""


class Ending(Struct, frozen=True):
    """How a process ended: its exit status (negative for a signal), and the seconds from the signal to the end."""

    status: int
    seconds: float


class SidecarFailedError(AssertionError):
    """What was waited for did not come; the message has the end of the log."""


def settings(url: str, directory: Path, adapters: Sequence[Mapping[str, Any]] = (), **sections: Any) -> dict[str, Any]:
    """A config for one server with a quick heartbeat; `sections` are laid over it, key by key."""
    config: dict[str, Any] = {
        "servers": [{"name": "vllm", "url": url}],
        "adapters": [dict(adapter) for adapter in adapters],
        "heartbeat": {
            "interval": "100ms",
            "away_interval": "50ms",
            "probe_timeout": "2s",
            "list_timeout": "2s",
            "liveness": "10s",
        },
        "restore": {"backoff": {"initial": "200ms", "max": "1s"}},
        "checkpoint": {"directory": str(directory), "timeout": "2s"},
        "ops": {"bind": "127.0.0.1:0"},
        "control": {"bind": "127.0.0.1:0"},
        "log": {"level": "debug", "format": "json"},
    }
    for key, value in sections.items():
        config[key] = config[key] | value if isinstance(value, dict) and key in config else value
    return config


async def eventually(look: Callable[[], Awaitable[T]], what: str, within: float = DEADLINE) -> T:
    """The first answer of `look` that is true; connections that fail meanwhile are looked over again."""
    last: object = None
    try:
        async with asyncio.timeout(within):
            while True:
                try:
                    last = answer = await look()
                    if answer:
                        return answer
                except (aiohttp.ClientError, OSError) as error:
                    last = error
                await asyncio.sleep(_POLL)
    except TimeoutError:
        raise SidecarFailedError(f"not within {within} s: {what}; at last {last!r}") from None


class Sidecar:
    """One sidecar with its config and its folder; it may be started again after each of its ends.

    `events` are the lines of the log since the last start. `quiet` is whether stderr has to stay empty.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any] | None = None, config_file: Path | None = None) -> None:
        """`config` is written to `config_file`, which is `sidecar.yaml` in `folder` unless it is given."""
        self.folder = folder
        self.config_file = config_file or folder / "sidecar.yaml"
        self.events: list[Line] = []
        self.strays: list[str] = []
        self.quiet = True
        self._lives: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._stderr = folder / "stderr.log"
        if config is not None:
            self.write_config(config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replace the config file in one step."""
        fresh = self.config_file.with_name("fresh.yaml")
        fresh.write_text(yaml.safe_dump(config, sort_keys=False))
        fresh.replace(self.config_file)

    def declare(self, adapters: Sequence[Mapping[str, Any]]) -> None:
        """Replace the adapters that the config declares."""
        config = yaml.safe_load(self.config_file.read_text())
        self.write_config(config | {"adapters": [dict(adapter) for adapter in adapters]})

    def recoveries(self) -> list[Line]:
        """Every recovery told in any of its lives."""
        lines = [line for text in self._lives for line in text.splitlines() if '"recovery.completed"' in line]
        return [json.loads(line) for line in lines]

    async def start(
        self,
        *,
        prelude: str = "",
        wrap: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        stdout: int = asyncio.subprocess.PIPE,
    ) -> None:
        """Start the process and return at once.

        `prelude` is Python that runs in it before the command line does, and may `tell` the reader of its log something
        in one write, which no other thread's line gets into; `wrap` is the program that starts it, `stdout` a
        descriptor to log to instead of being read here.
        """
        if self._process is not None and self._process.returncode is None:
            raise RuntimeError("the sidecar runs already")
        self.events = []
        program = ["-c", _TELL + prelude + "\n" + _MAIN] if prelude else ["-m", "lora_sidecar"]
        with self._stderr.open("ab") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                *(*wrap, sys.executable, "-W", "always::ResourceWarning", *program),
                *("run", "--config", str(self.config_file)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **(environment or {})},
                limit=_LONGEST_LINE,
                start_new_session=True,
            )
        if self._process.stdout is not None:
            self._reading = asyncio.create_task(self._read(self._process.stdout))

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while text := (await stream.readline()).decode():
            self._lives.append(text)
            try:
                line = json.loads(text)
                EventName(line["event"])
            except (ValueError, KeyError, TypeError):
                self.strays.append(text)
            else:
                self.events.append(line)
            self._news.set()

    @property
    def pid(self) -> int:
        """The process that was started: the sidecar, or what `wrap` names."""
        if self._process is None:
            raise RuntimeError("the sidecar was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    def mark(self) -> int:
        """The present end of the log, for `since`."""
        return len(self.events)

    def named(self, name: str, since: int = 0, **fields: Any) -> list[Line]:
        """The lines of that event so far whose fields have these values."""
        return [e for e in self.events[since:] if e["event"] == name and all(e.get(k) == v for k, v in fields.items())]

    async def event(
        self, name: str, *, since: int = 0, count: int = 1, within: float = DEADLINE, **fields: Any
    ) -> Line:
        """Wait for the `count`-th line of that event whose fields have these values, looked for from `since` on.

        Raises `SidecarFailedError` where it does not come, at once if the process has ended.
        """
        try:
            async with asyncio.timeout(within):
                while len(found := self.named(name, since, **fields)) < count:
                    if self._reading is None or self._reading.done():
                        raise SidecarFailedError(f"the sidecar ended without {name} {fields}{self.tail()}")
                    self._news.clear()
                    news = asyncio.create_task(self._news.wait())
                    await asyncio.wait({news, self._reading}, return_when=asyncio.FIRST_COMPLETED)
                    news.cancel()
                return found[count - 1]
        except TimeoutError:
            raise SidecarFailedError(f"{name} {fields} did not come within {within} s{self.tail()}") from None

    async def beats(self, count: int = 1, verdict: str | None = None) -> None:
        """Wait for that many more heartbeats, of that verdict where one is named."""
        fields: dict[str, Any] = {} if verdict is None else {"verdict": verdict}
        await self.event("heartbeat.completed", since=self.mark(), count=count, **fields)

    async def ops_url(self) -> str:
        """Where the ops port listens."""
        loaded = await self.event("config.loaded")
        return f"http://{loaded['ops'][0]}"

    async def control_url(self) -> str:
        """Where the control port listens."""
        loaded = await self.event("config.loaded")
        return f"http://{loaded['control'][0]}"

    async def get(self, path: str, within: float = DEADLINE) -> Reply:
        """Ask the ops port; raises `aiohttp.ClientError` and `TimeoutError`."""
        url = await self.ops_url()
        async with aiohttp.ClientSession() as session:
            return await Api(session, url).get(path, within=within)

    async def answers(self, path: str, status: int, text: str = "", within: float = DEADLINE) -> Reply:
        """Wait until the ops port answers so, with `text` somewhere in it."""
        last: list[Reply] = []

        async def look() -> bool:
            last[:] = [await self.get(path)]
            return last[0].status == status and text in last[0].text

        await eventually(look, f"{path} answers {status} with {text!r}", within)
        return last[0]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    async def terminate(self, number: signal.Signals = signal.SIGTERM) -> Ending:
        """Ask it to end, and wait until it has."""
        began = asyncio.get_running_loop().time()
        self.send(number)
        status = await self.ended()
        return Ending(status, asyncio.get_running_loop().time() - began)

    async def kill(self) -> None:
        """End it as the kernel does when memory is short, and wait until it is gone."""
        self.send(signal.SIGKILL)
        await self.ended()

    async def ended(self, within: float = DEADLINE) -> int:
        """Wait for the end and read the log to its last line; the exit status."""
        if self._process is None:
            raise RuntimeError("the sidecar was not started")
        try:
            async with asyncio.timeout(within):
                status = await self._process.wait()
                if self._reading is not None:
                    await asyncio.shield(self._reading)
                return status
        except TimeoutError:
            raise SidecarFailedError(f"the sidecar did not end within {within} s{self.tail()}") from None

    async def close(self) -> None:
        """Kill whatever is left of it."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        if self._reading is not None:
            await self._reading

    @property
    def stderr(self) -> str:
        """All that it said besides its log, over all its lives."""
        return self._stderr.read_text(errors="replace") if self._stderr.exists() else ""

    @property
    def log(self) -> str:
        """The log of all its lives."""
        return "".join(self._lives)

    def tail(self, lines: int = 30) -> str:
        """The end of log and stderr, for a failure's message."""
        log = [line for line in self._lives if '"heartbeat.completed"' not in line]
        return f"\n{''.join(log[-lines:])}{self.stderr}"
