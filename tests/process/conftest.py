"""Starts sidecars and fake servers as processes, and shows a sidecar's log where a test failed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.http_client import Api
from tests.support.servers import Kind, RunningServer, ServerSpec
from tests.support.sidecar import Sidecar, settings

StartVllm = Callable[..., Awaitable[RunningServer]]
NewSidecar = Callable[..., Sidecar]

_SIDECARS = pytest.StashKey[list[Sidecar]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the log of every sidecar to the report of a test that failed."""
    report = yield
    sidecars: list[Sidecar] = item.stash.get(_SIDECARS, [])
    if report.failed:
        for number, sidecar in enumerate(sidecars):
            report.sections.append((f"log of sidecar {number}", sidecar.log))
            report.sections.append((f"stderr of sidecar {number}", sidecar.stderr))
    return report


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that keeps no connection."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


@pytest.fixture
async def start_vllm(tmp_path: Path) -> AsyncIterator[StartVllm]:
    """Starts fake servers, each a process that answers before it is returned."""
    servers: list[RunningServer] = []

    async def start(*flags: str, check_files: bool = False, **spec: Any) -> RunningServer:
        read = () if check_files else ("--no-check-files",)
        server = RunningServer(
            ServerSpec(kind=Kind.FAKE, model=Path("/models/tiny"), fake_flags=(*read, *flags), **spec),
            tmp_path / f"vllm-{len(servers)}.log",
        )
        servers.append(server)
        server.start()
        await server.until_ready()
        return server

    yield start
    for server in servers:
        await server.sigkill_all()


@pytest.fixture
async def vllm(start_vllm: StartVllm) -> RunningServer:
    """A fake server that accepts every path as an adapter."""
    return await start_vllm()


@pytest.fixture
def api(vllm: RunningServer, session: aiohttp.ClientSession) -> Api:
    """A client of the fake server."""
    return Api(session, vllm.url)


@pytest.fixture
async def new_sidecar(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[NewSidecar]:
    """Makes sidecars for a server's url, not yet started, each with a folder and a checkpoint directory of its own.

    After the test each must have said nothing but its log, and its log nothing but known events.
    """
    made: list[Sidecar] = []
    request.node.stash[_SIDECARS] = made

    def make(url: str, adapters: Sequence[Mapping[str, Any]] = (), **sections: Any) -> Sidecar:
        folder = tmp_path / f"sidecar-{len(made)}"
        checkpoints = folder / "checkpoints"
        checkpoints.mkdir(parents=True)
        made.append(Sidecar(folder, settings(url, checkpoints, adapters, **sections)))
        return made[-1]

    yield make
    for sidecar in made:
        await sidecar.close()
    for sidecar in made:
        assert sidecar.strays == []
        assert not sidecar.quiet or sidecar.stderr == ""


@pytest.fixture
def declared() -> list[dict[str, Any]]:
    """Three declared adapters of which the last is the most urgent."""
    return [
        {"name": "one", "path": "/adapters/one"},
        {"name": "two", "path": "/adapters/two", "required": True},
        {"name": "three", "path": "/adapters/three", "priority": 10},
    ]


@pytest.fixture
async def sidecar(new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]) -> Sidecar:
    """A sidecar that guards the fake server and declares three adapters; started, and nothing waited for."""
    sidecar = new_sidecar(vllm.url, declared)
    await sidecar.start()
    return sidecar
