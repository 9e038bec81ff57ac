"""A real vLLM on the CPU and the real sidecar beside it, both as processes.

The trap guarded against is a proof by the sidecar's own word. What is loaded is asked of the server, and that it serves
is shown by completions that are the same before and after an outage.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.adapters import write_adapter, write_broken_adapters
from tests.support.http_client import Api
from tests.support.servers import Kind, RunningServer, ServerSpec, real_python
from tests.support.sidecar import Line, Sidecar, settings
from tests.support.tiny_model import write_tiny_model

NewSidecar = Callable[..., Sidecar]

# Loading the model takes up to a minute on two cores, and several servers share a test.
PATIENCE = 240.0

_SIDECARS = pytest.StashKey[list[Sidecar]]()
_SERVERS = pytest.StashKey[list[RunningServer]]()
_OUTAGES: list[tuple[str, Line]] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a real vLLM, and the tests of one server share a loop."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(3 * PATIENCE))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the sidecars' logs and the end of the servers' to the report of a test that failed; note every recovery."""
    report = yield
    if report.when == "call":
        for sidecar in item.stash.get(_SIDECARS, []):
            _OUTAGES.extend((item.name, line) for line in sidecar.recoveries())
    if report.failed:
        for sidecar in item.stash.get(_SIDECARS, []):
            report.sections.append(("the sidecar's log", sidecar.tail(200)))
        for server in item.stash.get(_SERVERS, []):
            report.sections.append(("the end of the server's log", server.log_tail(60)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show for each outage what was lost, what was restored, and the seconds."""
    terminalreporter.section("outages of the real vLLM")
    for name, line in _OUTAGES:
        terminalreporter.write_line(f"{name}: {told(line)}")


def told(line: Line) -> str:
    """A recovery in a sentence."""
    failed = f", failed {line['failed']}: {line['failed_adapters']}" if line["failed"] else ""
    return (
        f"{line['reason']}, {line['restarts']} restarts, lost {line['lost']}, restored {line['restored']}"
        f" {line['restored_adapters']}{failed}; away {line['outage_seconds']:.1f} s,"
        f" restored {line['restore_seconds']:.2f} s after the first answer"
    )


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder."""
    assert real_python() is not None, "LORA_SIDECAR_VLLM_PYTHON names no interpreter: run these with `make test-vllm`"
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    """Forty whole adapters, each answering in its own way."""
    root = tmp_path_factory.mktemp("adapters")
    return [write_adapter(root / f"a{seed:02}", seed=seed) for seed in range(40)]


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Adapter folders with one fault each."""
    return write_broken_adapters(tmp_path_factory.mktemp("broken"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that keeps no connection."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    """The server that most tests share, one after the other."""
    spec = ServerSpec(kind=Kind.REAL, model=model, ready_within=PATIENCE)
    async with RunningServer(spec, tmp_path_factory.mktemp("vllm") / "server.log") as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def vllm(request: pytest.FixtureRequest, shared: RunningServer, session: aiohttp.ClientSession) -> RunningServer:
    """The shared server, alive, and with nothing loaded."""
    request.node.stash[_SERVERS] = [shared]
    if not await shared.answers():
        await shared.restart()
    api = Api(session, shared.url)
    for name in await api.listed():
        await api.unload(name)
    return shared


@pytest.fixture
def api(vllm: RunningServer, session: aiohttp.ClientSession) -> Api:
    """A client of the shared server."""
    return Api(session, vllm.url)


@pytest_asyncio.fixture(loop_scope="session")
async def own_vllm(
    request: pytest.FixtureRequest, shared: RunningServer, model: Path, tmp_path: Path
) -> AsyncIterator[Callable[..., Any]]:
    """Starts a server of other flags for one test; the shared one makes room for it."""
    await shared.sigkill_all()
    servers: list[RunningServer] = []
    request.node.stash[_SERVERS] = servers

    async def start(**spec: Any) -> RunningServer:
        server = RunningServer(
            ServerSpec(kind=Kind.REAL, model=model, ready_within=PATIENCE, **spec), tmp_path / "own.log"
        )
        servers.append(server)
        server.start()
        await server.until_ready()
        return server

    yield start
    for server in servers:
        await server.sigkill_all()


@pytest_asyncio.fixture(loop_scope="session")
async def new_sidecar(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[NewSidecar]:
    """Makes sidecars, not yet started, with the heartbeat that the product has by default."""
    made: list[Sidecar] = []
    request.node.stash[_SIDECARS] = made

    def make(url: str, declared: Sequence[Mapping[str, Any]] = (), **sections: Any) -> Sidecar:
        folder = tmp_path / f"sidecar-{len(made)}"
        (folder / "checkpoints").mkdir(parents=True)
        config = settings(url, folder / "checkpoints", declared, **sections)
        config["heartbeat"] = {"interval": "1s", "liveness": "60s"} | sections.get("heartbeat", {})
        made.append(Sidecar(folder, config))
        return made[-1]

    yield make
    for sidecar in made:
        await sidecar.close()
    assert all(sidecar.strays == [] and sidecar.stderr == "" for sidecar in made)


async def answers(api: Api, names: Sequence[str]) -> dict[str, str]:
    """What each model says to the same prompt at temperature 0."""
    said: dict[str, str] = {}
    for name in names:
        body = {"model": name, "prompt": "hello there", "max_tokens": 8, "temperature": 0}
        reply = await api.ask("POST", "/v1/completions", body=body, within=60)
        assert reply.status == 200, reply.text
        said[name] = reply.json()["choices"][0]["text"]
    return said


async def until_listed(api: Api, *names: str, within: float = PATIENCE) -> dict[str, str]:
    """Wait until the server itself lists exactly these adapters."""
    listed: dict[str, str] = {}
    try:
        async with asyncio.timeout(within):
            while set(listed) != set(names):
                await asyncio.sleep(0.05)
                try:
                    listed = await api.listed()
                except (aiohttp.ClientError, TimeoutError, KeyError, ValueError):
                    listed = {}
    except TimeoutError:
        raise AssertionError(f"the server lists {sorted(listed)} and not {sorted(names)}") from None
    return listed
