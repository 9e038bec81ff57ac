"""A pod on virtual time: a fake vLLM behind a real socket, and the sidecar's own parts around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
from msgspec import Struct

from lora_sidecar.checkpoint.manager import CheckpointManager
from lora_sidecar.checkpoint.store import Store
from lora_sidecar.config.load import parse
from lora_sidecar.config.settings import Config
from lora_sidecar.controller import Clock, ServerController
from lora_sidecar.core.events import Event, EventName
from lora_sidecar.engines.detect import Detector
from lora_sidecar.status.board import Board, ServerStatus
from lora_sidecar.threads import BlockingCall
from tests.fakes.vllm import FakeConfig, FakeVllm
from tests.support.forwarder import Forwarder

T = TypeVar("T")

LOAD = ("POST", "/v1/load_lora_adapter")
UNLOAD = ("POST", "/v1/unload_lora_adapter")


class Inline(BlockingCall):
    """Runs the call where it is asked for: virtual time does not wait for threads."""

    async def run(self, function: Callable[[], T], deadline: float) -> T:
        """Call the function at once."""
        del deadline
        return function()


class Happening(Struct, frozen=True):
    """A fact, and the virtual second at which it was reported."""

    at: float
    event: EventName
    fields: dict[str, Any]


class Pod:
    """One server and one sidecar. The sidecar may die and be started again on the same checkpoint."""

    def __init__(self, server: FakeVllm, folder: Path, adapters: str, settings: str) -> None:
        self.server = server
        self.happened: list[Happening] = []
        self._folder = folder
        self._adapters = adapters
        self._settings = settings
        self.proxy: Forwarder | None = None
        self.url = ""
        self.more = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._detector: Detector | None = None
        self._keeper: CheckpointManager | None = None

    @property
    def now(self) -> float:
        """The virtual time."""
        return asyncio.get_running_loop().time()

    def config(self) -> Config:
        """The config as its file would be read."""
        server = f"{{name: vllm, url: '{self.url or self.server.url}'{self.more}}}"
        text = f"servers: [{server}]\n{self._adapters}\n{self._settings}\n"
        return parse(text.encode(), "sidecar.yaml")

    async def start(self) -> None:
        """Start the sidecar's parts, as the daemon does."""
        loop = asyncio.get_running_loop()
        config = self.config()
        self.board = Board(("vllm",))
        self._detector = Detector(config.servers[0], config, loop.time, self._report)
        store = Store(str(self._folder), "vllm", "json")
        self._keeper = CheckpointManager(store, config.checkpoint.timeout, loop.time, Inline("checkpoint"))
        clock = Clock(loop.time, lambda: 1.0, Inline)
        self.watch = ServerController("vllm", config, self._detector, self._keeper, self.board, self._report, clock)
        await self.watch.open()
        watch = self.watch
        parts = (
            watch.run,
            watch.loader.run,
            watch.unloader.run,
            watch.prober.run,
            watch.watcher.run,
        )
        self._tasks = [asyncio.create_task(part()) for part in parts]

    async def die(self) -> None:
        """End the sidecar, as a kill does: nothing is written on the way out."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._detector is not None and self._keeper is not None:
            await self._detector.close()
            await self._keeper.close(1.0)

    def reconfigure(self, adapters: str) -> None:
        """Have the sidecar go by another list of adapters."""
        self._adapters = adapters
        self.watch.reconfigure(self.config())

    def _report(self, *facts: Event) -> None:
        self.happened += [Happening(self.now, fact.event, dict(fact.fields)) for fact in facts]

    @property
    def status(self) -> ServerStatus:
        """The newest snapshot."""
        (status,) = self.board.statuses()
        return status

    def of(self, event: EventName) -> list[Happening]:
        """Everything of one kind that happened."""
        return [one for one in self.happened if one.event is event]

    def loads(self) -> list[str]:
        """The names in the load requests that the server received in this life, in order."""
        return [json.loads(request.body)["lora_name"] for request in self.server.requests if request[:2] == LOAD]

    async def until(self, done: Callable[[], bool], within: float) -> float:
        """Let time pass until `done`; returns the virtual seconds that took. Fails after `within`."""
        began = self.now
        while not done():
            assert self.now - began <= within, f"not within {within} s; {self.happened[-8:]}"
            await asyncio.sleep(0.05)
        return self.now - began

    async def until_listed(self, *names: str, within: float = 30.0) -> float:
        """Let time pass until the server lists exactly these adapters."""
        return await self.until(lambda: self.server.running and set(self.server.adapters) == set(names), within)

    async def somebody_loads(self, name: str, path: str | None = None) -> None:
        """Put an adapter into the server, as another client of its API would."""
        self.server.adapters[name] = path or f"/adapters/{name}"

    def somebody_unloads(self, name: str) -> None:
        """Take an adapter out of the server, as another client of its API would."""
        del self.server.adapters[name]


PodMaker = Callable[..., Any]


@pytest.fixture
def make_pod(tmp_path: Path) -> PodMaker:
    """Makes running pods; takes the config's adapters and further settings as YAML, and how the server is started.

    `ca` is the file of its certificate's authority. With `patience` a proxy stands before it: see `Forwarder`.
    `more` is further text of the server's section in the config.
    """

    @asynccontextmanager
    async def make(
        adapters: str = "",
        settings: str = "",
        server: FakeConfig | None = None,
        ca: str | None = None,
        patience: float | Literal["no proxy"] | None = "no proxy",
        more: str = "",
    ) -> AsyncIterator[Pod]:
        async with AsyncExitStack() as stack:
            fake = await stack.enter_async_context(FakeVllm(server or FakeConfig(check_files=False)))
            pod = Pod(fake, tmp_path, adapters, settings)
            pod.more = more + (f", tls: {{ca_file: '{ca}'}}" if ca else "")
            if patience != "no proxy":
                pod.proxy = await stack.enter_async_context(Forwarder(fake.port, patience))
                pod.url = f"http://127.0.0.1:{pod.proxy.port}"
            await pod.start()
            try:
                yield pod
            finally:
                await pod.die()

    return make
