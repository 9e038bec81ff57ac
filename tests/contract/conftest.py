"""Starts the servers under contract, few of them since a real one takes most of a minute, and holds them to recordings.

The suite is run against a real vLLM, whose answers `--record` writes down (`make record VLLM=0.24.0`), and against the
fake as each version that was recorded. Both must answer as the recording of their version says, word for word; a test
asserts besides what holds for every version.
"""

from __future__ import annotations

import asyncio
import difflib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from msgspec import Struct

from tests.contract.transcript import (
    HeardApi,
    Recording,
    Transcript,
    read_recording,
    recorded_versions,
    write_recording,
)
from tests.support.adapters import write_adapter, write_broken_adapters
from tests.support.http_client import Api
from tests.support.servers import Kind, RunningServer, ServerSpec, real_version
from tests.support.tiny_model import write_tiny_model

KEY = "a-key"
NewApi = Callable[..., HeardApi]

_TRANSCRIPT = pytest.StashKey[Transcript]()
_HEARD = pytest.StashKey[dict[str, list[dict[str, Any]]]]()


class Subject(Struct, frozen=True):
    """Which server is under contract, and as which version of vLLM."""

    kind: Kind
    version: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.version}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what makes a recording."""
    parser.addoption(
        "--record", action="store_true", help="write down what the real vLLM answers, instead of comparing it"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin with nothing heard."""
    config.stash[_HEARD] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Test the fake as each version, and the real server where there is one; without, its half does not exist.

    A test that writes nothing down is about what is the same in all versions, so one of the fake is enough.
    """
    if "subject" not in metafunc.fixturenames:
        return
    versions = recorded_versions() if "transcript" in metafunc.fixturenames else recorded_versions()[-1:]
    subjects = [pytest.param(Subject(Kind.FAKE, version), id=f"fake-{version}") for version in versions]
    if (version := real_version()) is not None:
        real = Subject(Kind.REAL, version)
        subjects.append(pytest.param(real, id=str(real), marks=pytest.mark.vllm))
    metafunc.parametrize("subject", subjects, indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Once a test has passed, hold what it heard to the recording, or record it."""
    yield
    if (transcript := item.stash.get(_TRANSCRIPT, None)) is None or not isinstance(item, pytest.Function):
        return
    subject = item.funcargs["subject"]
    assert isinstance(subject, Subject)
    key = _key(item.name, subject)
    if subject.kind is Kind.REAL and item.config.getoption("--record"):
        item.config.stash[_HEARD][key] = transcript.entries
    elif different := _difference(read_recording(subject.version).answers.get(key, []), transcript.entries):
        raise AssertionError(f"not as vLLM {subject.version} answered when it was recorded:\n{different}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was recorded into the version's file; a test that was not run keeps what it had."""
    heard = session.config.stash[_HEARD]
    version = real_version()
    if not heard or version is None:
        return
    before = read_recording(version).answers if version in recorded_versions() else {}
    answers = dict(sorted((before | heard).items()))
    write_recording(Recording(vllm=version, day=f"{datetime.now(UTC):%Y-%m-%d}", answers=answers))


def _difference(recorded: list[dict[str, Any]], heard: list[dict[str, Any]]) -> str:
    was, now = (json.dumps(entries, indent=1, ensure_ascii=False).splitlines() for entries in (recorded, heard))
    return "\n".join(difflib.unified_diff(was, now, "recorded", "heard", n=2, lineterm=""))


def _key(name: str, subject: Subject) -> str:
    """A test's name without the server that it is run against."""
    function, _, case = name.removesuffix("]").partition("[")
    case = f"-{case}-".replace(f"-{subject}-", "-").strip("-")
    return f"{function.removeprefix('test_')}[{case}]" if case else function.removeprefix("test_")


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


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest) -> Subject:
    """Which server is under contract."""
    subject: Subject = request.param
    return subject


@pytest.fixture(scope="session")
def model(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that the server serves; the fake only repeats its name."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return write_tiny_model(folder) if subject.kind is Kind.REAL else folder


@pytest.fixture(scope="session")
def new_spec(subject: Subject, model: Path) -> Callable[..., ServerSpec]:
    """Describes a server of the kind and version under contract."""

    def spec(*fake_flags: str, **fields: Any) -> ServerSpec:
        flags = ("--version", subject.version, *fake_flags)
        return ServerSpec(kind=subject.kind, model=model, fake_flags=flags, **fields)

    return spec


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that keeps no connection."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def opened(
    new_spec: Callable[..., ServerSpec],
    folders: Folders,
    session: aiohttp.ClientSession,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[RunningServer, Opening]]:
    """A server with runtime loading and no key, watched from its start on."""
    spec = new_spec("--start-delay", "0.5", "--load-delay", "0.02")
    server = RunningServer(spec, tmp_path_factory.mktemp("open") / "server.log")
    try:
        server.start()
        yield server, await _watch_opening(server, Api(session, server.url), folders.whole)
    finally:
        await server.sigkill_all()


async def _watch_opening(server: RunningServer, api: Api, adapter: Path) -> Opening:
    refused = 0
    async with asyncio.timeout(600):
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


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    """Numbers that make names unique."""
    return itertools.count()


@pytest.fixture
def name(numbers: Iterator[int]) -> str:
    """An adapter name that no other test uses."""
    return f"adapter-{next(numbers)}"


@pytest.fixture
def transcript(
    request: pytest.FixtureRequest, subject: Subject, model: Path, folders: Folders, name: str, tmp_path: Path
) -> Transcript:
    """What this test asks and is answered; it is held to the recording once the test has passed."""
    words = {
        str(folders.whole): "{whole}",
        str(folders.other): "{other}",
        str(folders.broken["missing"].parent): "{broken}",
        str(model): "{model}",
        str(tmp_path): "{folder}",
        name: "{name}",
    }
    transcript = Transcript(words, mine=(name, "static", "base"))
    request.node.stash[_TRANSCRIPT] = transcript
    del subject
    return transcript


@pytest.fixture
def new_api(session: aiohttp.ClientSession, transcript: Transcript) -> NewApi:
    """Makes clients whose answers are written down."""

    def make(server: RunningServer, key: str | None = None) -> HeardApi:
        transcript.call(server.url, "{url}")
        return HeardApi(session, server.url, transcript, key)

    return make


@pytest.fixture
def api(server: RunningServer, new_api: NewApi) -> HeardApi:
    """A client of the shared server."""
    return new_api(server)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def guarded(
    new_spec: Callable[..., ServerSpec], folders: Folders, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningServer]:
    """A server with a key and a static adapter, and without runtime loading."""
    spec = new_spec(api_key=KEY, runtime_lora=False, lora_modules=(("static", folders.whole),))
    async with RunningServer(spec, tmp_path_factory.mktemp("guarded") / "server.log") as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def victim(
    new_spec: Callable[..., ServerSpec], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningServer]:
    """A server in developer mode, with a small cache, that tests freeze and kill."""
    spec = new_spec("--engine-watchdog", "1", dev_mode=True, max_loras=2, max_cpu_loras=3)
    async with RunningServer(spec, tmp_path_factory.mktemp("victim") / "server.log") as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def mortal(victim: RunningServer) -> RunningServer:
    """The server in developer mode, alive and awake, whatever the test before did to it."""
    if not await victim.answers():
        await victim.restart()
    return victim


@pytest.fixture
def mortal_api(mortal: RunningServer, new_api: NewApi) -> HeardApi:
    """A client of the server that may be killed."""
    return new_api(mortal)
