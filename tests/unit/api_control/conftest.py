"""A control port in front of a watched fake server, and the fake itself to compare answers with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lora_sidecar.api.control import ControlServer
from lora_sidecar.checkpoint.manager import CheckpointManager
from lora_sidecar.checkpoint.store import Store
from lora_sidecar.config.load import parse
from lora_sidecar.config.process import ControlConfig
from lora_sidecar.controller import Clock, ServerController
from lora_sidecar.engines.detect import Detector
from lora_sidecar.status.board import Board
from tests.fakes.vllm import FakeConfig, FakeVllm
from tests.support.http_client import Api
from tests.support.sidecar import eventually


class Guarded:
    """Fake servers by name, one sidecar's watches of them, and its control port."""

    def __init__(self, servers: dict[str, FakeVllm], folder: Path, token_file: Path | None) -> None:
        self.servers = servers
        now = asyncio.get_running_loop().time
        listed = ", ".join(f"{{name: {name}, url: '{server.url}', engine: vllm}}" for name, server in servers.items())
        config = parse(f"servers: [{listed}]\nheartbeat: {{interval: 200ms}}\n".encode(), "sidecar.yaml")
        self.board = Board(tuple(servers))
        self._detectors = [Detector(server, config, now, lambda *_: None) for server in config.servers]
        self._keepers = [CheckpointManager(Store(str(folder), name, "json"), 5.0, now) for name in servers]
        self.watches = {
            name: ServerController(name, config, detector, keeper, self.board, lambda *_: None, Clock(now, lambda: 1.0))
            for name, detector, keeper in zip(servers, self._detectors, self._keepers, strict=True)
        }
        desks = {name: watch.requests for name, watch in self.watches.items()}
        control = ControlConfig("127.0.0.1:0", None if token_file is None else str(token_file))
        self.control = ControlServer(control, lambda: self.board.snapshot(now(), 30.0), desks, now, lambda: 30.0)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open everything and run its tasks."""
        await self.control.start()
        for watch in self.watches.values():
            await watch.open()
        runs = [w for watch in self.watches.values() for w in (watch.run, watch.loader.run, watch.unloader.run)]
        self._tasks = [asyncio.create_task(run()) for run in (self.control.run, *runs)]

    async def known(self) -> bool:
        """Whether every server had a heartbeat."""
        return all(status.beats for status in self.board.statuses())

    async def close(self) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.control.close()
        for keeper in self._keepers:
            await keeper.close(1.0)
        for detector in self._detectors:
            await detector.close()

    @property
    def url(self) -> str:
        """Where the control port listens."""
        return f"http://{self.control.addresses[0]}"

    def desired(self, name: str = "vllm") -> dict[str, str]:
        """What is remembered of one server, name to path."""
        found = {status.name: status for status in self.board.statuses()}
        return {a.name: a.path for a in found[name].desired.adapters.values()} if name in found else {}

    async def state(self, api: Api) -> Any:
        """What the port says of everything."""
        return (await api.get("/v1/adapters")).json()


@asynccontextmanager
async def guarding(folder: Path, names: tuple[str, ...], token_file: Path | None = None) -> AsyncIterator[Guarded]:
    """Fake servers that are watched, with a control port."""
    servers = {name: FakeVllm(FakeConfig(check_files=False)) for name in names}
    for server in servers.values():
        await server.start()
    guarded = Guarded(servers, folder, token_file)
    await guarded.start()
    await eventually(guarded.known, "a first heartbeat of every server")
    try:
        yield guarded
    finally:
        await guarded.close()
        for server in servers.values():
            await server.stop()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that keeps no connection."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    """One server, and no token."""
    async with guarding(tmp_path, ("vllm",)) as guarded:
        yield guarded


@pytest.fixture
def api(guarded: Guarded, session: aiohttp.ClientSession) -> Api:
    """A client of the control port."""
    return Api(session, guarded.url)
