"""Starts the servers under contract: few of them, since a real one takes most of a minute."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from msgspec import Struct

from tests.support.adapters import write_adapter, write_broken_adapters
from tests.support.http_client import Api
from tests.support.servers import Kind, RunningServer, ServerSpec, available_kinds, real_python
from tests.support.tiny_model import ensure_tiny_model

KEY = "a-key"
# Without a real vLLM its half of the suite does not exist, rather than being skipped.
KINDS = [
    pytest.param(kind, id=kind.value, marks=[pytest.mark.vllm] if kind is Kind.REAL else [])
    for kind in available_kinds()
]


class Folders(Struct, frozen=True):
    """Adapter folders on disk: whole ones to load, and broken ones by the name of their fault."""

    whole: Path
    other: Path
    broken: Mapping[str, Path]


class Opening(Struct, frozen=True):
    """What happened from the start of a server to the first moment that it took a connection."""

    refused: int
    health: int
    models: int
    load: int


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Adapter folders that no test changes."""
    root = tmp_path_factory.mktemp("adapters")
    return Folders(
        whole=write_adapter(root / "whole", seed=1),
        other=write_adapter(root / "other", seed=2),
        broken=write_broken_adapters(root / "broken"),
    )


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Which server is under contract."""
    kind: Kind = request.param
    return kind


@pytest.fixture(scope="session")
def model(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that the server serves; the fake only repeats its name."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    python = real_python()
    return ensure_tiny_model(python, folder) if kind is Kind.REAL and python is not None else folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that keeps no connection."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def opened(
    kind: Kind, model: Path, folders: Folders, session: aiohttp.ClientSession, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[RunningServer, Opening]]:
    """A server with runtime loading and no key, watched from its start on."""
    spec = ServerSpec(kind=kind, model=model, fake_flags=("--start-delay", "0.5", "--load-delay", "0.02"))
    server = RunningServer(spec, tmp_path_factory.mktemp("open") / "server.log")
    try:
        server.start()
        yield server, await _watch_opening(server, Api(session, server.url), folders.whole)
    finally:
        await server.sigkill_all()


async def _watch_opening(server: RunningServer, api: Api, adapter: Path) -> Opening:
    refused = 0
    async with asyncio.timeout(180):
        while server.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            except ConnectionRefusedError:
                refused += 1
                await asyncio.sleep(0.01)
                continue
            writer.close()
            await writer.wait_closed()
            health, models = await asyncio.gather(api.get("/health"), api.get("/v1/models"))
            load = await api.load("first", adapter)
            return Opening(refused, health.status, models.status, load.status)
    raise RuntimeError(f"the server ended with status {server.returncode}{server.log_tail()}")


@pytest.fixture(scope="session")
def server(opened: tuple[RunningServer, Opening]) -> RunningServer:
    """The server that most tests share."""
    return opened[0]


@pytest.fixture
def api(server: RunningServer, session: aiohttp.ClientSession) -> Api:
    """A client of the shared server."""
    return Api(session, server.url)


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    """Numbers that make names unique."""
    return itertools.count()


@pytest.fixture
def name(numbers: Iterator[int]) -> str:
    """An adapter name that no other test uses."""
    return f"adapter-{next(numbers)}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def guarded(
    kind: Kind, model: Path, folders: Folders, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningServer]:
    """A server with a key and a static adapter, and without runtime loading."""
    static = (("static", folders.whole),)
    spec = ServerSpec(kind=kind, model=model, api_key=KEY, runtime_lora=False, lora_modules=static)
    async with RunningServer(spec, tmp_path_factory.mktemp("guarded") / "server.log") as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def victim(kind: Kind, model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    """A server in developer mode, with a small cache, that tests freeze and kill."""
    spec = ServerSpec(kind=kind, model=model, dev_mode=True, max_loras=2, max_cpu_loras=3)
    async with RunningServer(spec, tmp_path_factory.mktemp("victim") / "server.log") as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def mortal(victim: RunningServer) -> RunningServer:
    """The server in developer mode, alive and awake, whatever the test before did to it."""
    if not await victim.answers():
        await victim.restart()
    return victim


@pytest.fixture
def mortal_api(mortal: RunningServer, session: aiohttp.ClientSession) -> Api:
    """A client of the server that may be killed."""
    return Api(session, mortal.url)
