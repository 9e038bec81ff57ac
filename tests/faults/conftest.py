"""A watch with short deadlines beside a rude server, beaten by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from lora_sidecar.checkpoint.manager import CheckpointManager
from lora_sidecar.checkpoint.store import Store
from lora_sidecar.config.load import parse
from lora_sidecar.config.settings import Config
from lora_sidecar.controller import Clock, ServerController
from lora_sidecar.core.events import Event
from lora_sidecar.engines.detect import Detector
from lora_sidecar.engines.vllm import Vllm
from lora_sidecar.status.board import Board
from tests.faults.rude import RudeServer

CONFIG = """
servers: [{{name: vllm, url: "{url}", engine: vllm}}]
adapters: [{{name: sql, path: /adapters/sql}}]
heartbeat: {{probe_timeout: 500ms, list_timeout: 700ms}}
restore: {{timeout: 1s}}
"""


@pytest_asyncio.fixture
async def rude() -> AsyncIterator[RudeServer]:
    """A server that misbehaves when told to."""
    async with RudeServer() as server:
        server.listed = ("sql", "chat")
        yield server


@pytest.fixture
def config(rude: RudeServer) -> Config:
    """A config of one declared adapter, with short deadlines."""
    return parse(CONFIG.format(url=rude.url).encode(), "sidecar.yaml")


@pytest_asyncio.fixture
async def engine(config: Config) -> AsyncIterator[Vllm]:
    """The client under test."""
    engine = Vllm(config.servers[0], config, asyncio.get_running_loop().time)
    yield engine
    await engine.close()


@pytest_asyncio.fixture
async def watch(config: Config, tmp_path: Path) -> AsyncIterator[ServerController]:
    """A watch whose heartbeats the test makes itself; it never gets to load anything by itself."""
    now = asyncio.get_running_loop().time
    keeper = CheckpointManager(Store(str(tmp_path), "vllm", "json"), config.checkpoint.timeout, now)

    def report(*facts: Event) -> None:
        del facts

    detector = Detector(config.servers[0], config, now, report)
    watch = ServerController("vllm", config, detector, keeper, Board(("vllm",)), report, Clock(now, lambda: 0.5))
    await watch.open()
    yield watch
    await detector.close()
    await keeper.close(1.0)
