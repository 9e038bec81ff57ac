from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.contract.asking import eventually, lists, raw_connection, refuses, unhealthy
from tests.contract.conftest import Folders
from tests.contract.transcript import HeardApi, Transcript
from tests.support.http_client import Reply
from tests.support.servers import Kind, RunningServer, ServerFailedError

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


async def test_sleeping_engine(mortal_api: HeardApi, folders: Folders, name: str) -> None:
    """Without a GPU, sleep only holds the scheduler: health and loads answer, and /is_sleeping tells."""
    assert (await mortal_api.get("/is_sleeping")).json() == {"is_sleeping": False}
    assert (await mortal_api.ask("POST", "/sleep?level=1")).status == 200
    try:
        assert (await mortal_api.get("/is_sleeping")).json() == {"is_sleeping": True}
        assert (await mortal_api.get("/health")).status == 200
        states = re.findall(r'sleep_state="(\w+)"} (\S+)', (await mortal_api.get("/metrics")).text)
        assert (await mortal_api.load(name, folders.whole)).status == 200
    finally:
        assert (await mortal_api.ask("POST", "/wake_up")).status == 200
    assert (await mortal_api.get("/is_sleeping")).json() == {"is_sleeping": False}
    assert states in ([], [("awake", "0.0"), ("weights_offloaded", "1.0"), ("discard_all", "0.0")])


async def test_paused_engine(mortal_api: HeardApi, folders: Folders, name: str) -> None:
    """A paused engine, where it can be paused, holds completions and takes loads; only /is_paused tells."""
    known = await mortal_api.get("/is_paused")
    paused = await mortal_api.ask("POST", "/pause")
    assert (known.status, paused.status) in ((200, 200), (404, 404))
    try:
        await mortal_api.get("/is_paused")
        assert (await mortal_api.get("/health")).status == 200
        await mortal_api.get("/metrics")
        assert (await mortal_api.load(name, folders.whole)).status == 200
        if paused.status == 200:
            with pytest.raises(TimeoutError):
                await mortal_api.complete("base", within=1)
    finally:
        await mortal_api.ask("POST", "/resume")
    assert (await mortal_api.complete("base")).status == 200


async def test_hung_engine(mortal: RunningServer, mortal_api: HeardApi, folders: Folders, name: str) -> None:
    """While the engine hangs, health and listing answer as ever and a load does not; later it takes effect."""
    mortal.stop_engine()
    try:
        with pytest.raises(TimeoutError):
            await mortal_api.load(name, folders.whole, within=2)
        with pytest.raises(TimeoutError):
            await mortal_api.complete("base", within=1)
        assert (await mortal_api.get("/health")).status == 200
        assert name not in await mortal_api.listed()
    finally:
        mortal.continue_engine()
    await eventually(lambda: lists(mortal_api.quiet, name), within=20)


async def test_death_of_the_engine(
    mortal: RunningServer, mortal_api: HeardApi, transcript: Transcript, folders: Folders, name: str
) -> None:
    """When the engine dies: health says so, the listing stays, loads are refused, and the server ends by itself."""
    assert (await mortal_api.load(name, folders.whole)).status == 200
    mortal.sigkill_engine()
    await eventually(lambda: unhealthy(mortal_api.quiet), within=30)
    assert (await mortal_api.get("/health")).status in (500, 503)
    assert name in await mortal_api.listed()
    assert (await mortal_api.unload(name)).status == 200
    assert (await mortal_api.load(f"{name}-late", folders.whole)).status in (400, 500)
    transcript.note("exit status", await mortal.ended(within=60))
    assert not await mortal.answers()


async def test_load_in_flight_when_the_engine_dies(
    mortal: RunningServer, mortal_api: HeardApi, transcript: Transcript, folders: Folders, name: str
) -> None:
    """A load that the engine dies under may be never answered, and keep a server that is deaf to SIGTERM and closed."""
    mortal.stop_engine()
    load = asyncio.create_task(mortal_api.quiet.load(name, folders.whole, within=120))
    await asyncio.sleep(0.5)
    mortal.sigkill_engine()
    await eventually(lambda: refuses(mortal), within=60)
    transcript.note("the load, once the port is closed", _outcome(load))
    with suppress(ProcessLookupError):
        mortal.terminate()
        await asyncio.sleep(0.5)
        os.kill(mortal.pid, signal.SIGINT)
    with suppress(ServerFailedError):
        await mortal.ended(within=3 if mortal.spec.kind is Kind.FAKE else 15)
    transcript.note("exit status after SIGTERM and SIGINT", mortal.returncode)
    transcript.note("the load after that", _outcome(load))
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    await mortal.sigkill_all()


def _outcome(load: asyncio.Task[Reply]) -> str:
    """What a load has come to."""
    if not load.done():
        return "no answer"
    return "connection lost" if load.exception() else load.result().text


async def test_request_for_an_evicted_adapter_whose_folder_is_gone(
    mortal: RunningServer,
    mortal_api: HeardApi,
    transcript: Transcript,
    folders: Folders,
    name: str,
    tmp_path: Path,
) -> None:
    """A listed adapter is served from memory without its folder, and kills the engine once it was evicted."""
    doomed = shutil.copytree(folders.whole, tmp_path / "doomed")
    assert (await mortal_api.load(name, doomed)).status == 200
    shutil.rmtree(doomed)
    assert (await mortal_api.complete(name)).status == 200
    for number in range(mortal.spec.max_cpu_loras):
        assert (await mortal_api.quiet.load(f"{name}-{number}", folders.other)).status == 200
    assert name in await mortal_api.quiet.listed()
    # Some versions answer an error with status 200.
    assert (await mortal_api.complete(name)).json()["error"]["code"] == 500
    transcript.note("exit status", await mortal.ended(within=60))


async def test_sigterm_ends_an_idle_server(mortal: RunningServer, transcript: Transcript) -> None:
    """A server with nothing in flight ends on SIGTERM, and says goodbye on a silent connection."""
    async with raw_connection(mortal) as (reader, _), asyncio.timeout(10):
        mortal.terminate()
        assert await reader.read() == b""
    transcript.note("exit status", await mortal.ended(within=60))
