from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lora_sidecar.checkpoint.decode import Checkpoint, decode
from lora_sidecar.checkpoint.store import read_file
from tests.process.conftest import NewSidecar, StartVllm
from tests.support.http_client import Api
from tests.support.servers import RunningServer, free_port
from tests.support.sidecar import Sidecar, eventually, settings

SOON = {"timeout": "300ms"}
STUCK_SAVE = """
import threading
from lora_sidecar.checkpoint.disk import Disk
Disk.fsync = lambda self, file: threading.Event().wait()
"""
STUCK_CONFIG = """
import threading
from lora_sidecar.cli import main as cli
from lora_sidecar import reload
def read(path):
    tell(reading=True)
    threading.Event().wait()
reload.read = read
"""
STUCK_NAMES = """
import socket, threading
def getaddrinfo(*arguments, **more):
    tell(asked=True)
    threading.Event().wait()
socket.getaddrinfo = getaddrinfo
"""
SLOW_SAVE = """
import os, threading
from lora_sidecar.checkpoint.disk import Disk
def fsync(self, file):
    tell(saving=True)
    threading.Event().wait(1.0)
    os.fsync(file)
Disk.fsync = fsync
"""
LONG_LOCK_WAIT = """
from lora_sidecar.checkpoint import manager as keeper
keeper.LOCK_WAIT = 60.0
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_idle(sidecar: Sidecar, number: signal.Signals) -> None:
    """Told to stop with nothing to do, it is gone within a second with status 0, and says which signal it was."""
    await sidecar.event("restore.completed")
    await sidecar.beats(2)

    ending = await sidecar.terminate(number)

    assert ending.status == 0
    assert ending.seconds < 1
    last = sidecar.events[-1]
    assert (last["event"], last["signal"], last["exit_code"]) == ("daemon.stopped", number.name, 0)
    assert [line["signal"] for line in sidecar.named("daemon.stopping")] == [number.name]
    assert sidecar.named("daemon.failed") == []


async def test_server_away(new_sidecar: NewSidecar) -> None:
    """A server that is not there does not delay the end."""
    sidecar = new_sidecar(f"http://127.0.0.1:{free_port()}")
    await sidecar.start()
    await sidecar.beats(3)

    ending = await sidecar.terminate()

    assert (ending.status, ending.seconds < 1) == (0, True)


async def test_load_in_flight(new_sidecar: NewSidecar, start_vllm: StartVllm, declared: list[dict[str, Any]]) -> None:
    """A load that takes half a minute is abandoned, and not waited for."""
    vllm = await start_vllm("--load-delay", "30")
    sidecar = new_sidecar(vllm.url, declared)
    await sidecar.start()
    await sidecar.event("restore.started")
    await sidecar.beats(3)

    ending = await sidecar.terminate()

    assert ending.status == 0
    assert ending.seconds < 5


async def test_server_hung(sidecar: Sidecar, vllm: RunningServer) -> None:
    """A server that accepts connections and never answers does not delay the end."""
    await sidecar.event("restore.completed")
    await sidecar.beats(2)
    vllm.stop()
    await eventually(lambda: _heartbeat_hangs(sidecar), "a heartbeat waits for the server")

    ending = await sidecar.terminate()

    assert ending.status == 0
    assert ending.seconds < 5


async def _heartbeat_hangs(sidecar: Sidecar) -> bool:
    age = re.search(r'heartbeat_age_seconds{server="vllm"} (\S+)', (await sidecar.get("/metrics")).text)
    return age is not None and float(age[1]) > 0.5


async def test_disk_hung(new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]) -> None:
    """A thread that hangs in a save is left behind."""
    sidecar = new_sidecar(vllm.url, declared, checkpoint=SOON)
    await sidecar.start(prelude=STUCK_SAVE)
    await sidecar.event("checkpoint.write_failed")

    ending = await sidecar.terminate()

    assert ending.status == 0
    assert ending.seconds < 5


async def test_config_volume_hung(new_sidecar: NewSidecar, vllm: RunningServer) -> None:
    """A thread that hangs in reading the config is left behind."""
    sidecar = new_sidecar(vllm.url)
    await sidecar.start(prelude=STUCK_CONFIG)
    await sidecar.event("daemon.started", reading=True)
    await sidecar.beats(2)

    ending = await sidecar.terminate()

    assert (ending.status, ending.seconds < 5) == (0, True)


async def test_name_resolution_hung(new_sidecar: NewSidecar) -> None:
    """A thread that hangs in the system's resolver, which no deadline can end, is left behind."""
    sidecar = new_sidecar("http://vllm.example:8000")
    await sidecar.start(prelude=STUCK_NAMES)
    await sidecar.event("daemon.started", asked=True)

    ending = await sidecar.terminate()

    assert (ending.status, ending.seconds < 5) == (0, True)


async def test_every_disk_of_many_servers_hung(new_sidecar: NewSidecar) -> None:
    """Stuck saves of several servers are not waited for one after the other."""
    servers = [{"name": f"vllm-{number}", "url": f"http://127.0.0.1:{free_port()}"} for number in range(8)]
    sidecar = new_sidecar("", [{"name": "one", "path": "/adapters/one"}], servers=servers, checkpoint=SOON)
    await sidecar.start(prelude=STUCK_SAVE)
    await sidecar.event("checkpoint.write_failed", count=8)

    ending = await sidecar.terminate()

    assert sidecar.events[-1]["event"] == "daemon.stopped"
    assert (ending.status, ending.seconds < 4) == (0, True)


async def test_save_under_way_is_finished(
    new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]
) -> None:
    """A save that has begun comes to its end before the process does."""
    sidecar = new_sidecar(vllm.url, declared)
    await sidecar.start(prelude=SLOW_SAVE)
    await sidecar.event("daemon.started", saving=True)

    ending = await sidecar.terminate()

    assert (ending.status, ending.seconds < 5) == (0, True)
    found = decode(read_file(str(sidecar.folder / "checkpoints" / "vllm.json")))
    assert isinstance(found, Checkpoint)
    assert sorted(found.desired.adapters) == ["one", "three", "two"]


async def test_second_signal(new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]) -> None:
    """Whoever asks twice does not wait: the second signal ends a shutdown that waits for a save, which stays sound."""
    sidecar = new_sidecar(vllm.url, declared)
    await sidecar.start()
    await sidecar.event("restore.completed")
    await sidecar.beats(2)
    assert (await sidecar.terminate()).status == 0
    more = [*declared, {"name": "four", "path": "/adapters/four"}]
    sidecar.write_config(settings(vllm.url, sidecar.folder / "checkpoints", more))
    await sidecar.start(prelude=STUCK_SAVE)
    await sidecar.event("adapter.declared")
    await sidecar.event("restore.started")

    sidecar.send(signal.SIGTERM)
    await sidecar.event("daemon.stopping")
    ending = await sidecar.terminate()

    assert (ending.status, ending.seconds < 1) == (0, True)
    assert sidecar.named("daemon.stopped") == []
    await sidecar.start()
    assert (await sidecar.event("checkpoint.loaded"))["source"] == "current"


async def test_while_waiting_for_the_lock(new_sidecar: NewSidecar, sidecar: Sidecar, vllm: RunningServer) -> None:
    """Told to stop before it has started, it stops at once; the holder of the lock is left alone."""
    await sidecar.event("restore.completed")
    second = new_sidecar(vllm.url, checkpoint={"directory": str(sidecar.folder / "checkpoints")})
    await second.start(prelude=LONG_LOCK_WAIT)
    await second.event("config.loaded")

    ending = await second.terminate()

    assert (ending.status, ending.seconds < 1) == (0, True)
    assert second.events[-1]["event"] == "daemon.stopped"
    await sidecar.beats(2)


async def test_before_the_log_begins(new_sidecar: NewSidecar) -> None:
    """A signal that comes while the program is still being loaded ends it with status 0 as well."""
    sidecar = new_sidecar(f"http://127.0.0.1:{free_port()}")
    # Nothing tells from outside how far the loading is: so the signal is sent at its first step.
    await sidecar.start(
        prelude="""
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "lora_sidecar.daemon":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
"""
    )

    assert await sidecar.ended() == 0


async def test_ops_connections_held_open(sidecar: Sidecar) -> None:
    """Scrapers with an idle connection, and clients that send half a request, do not delay the end."""
    url = await sidecar.ops_url()
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as half, socket.create_connection((host, int(port))):
        half.sendall(b"GET /livez HTTP/1.1\r\nHost: ")
        async with aiohttp.ClientSession() as session, session.get(url + "/metrics") as idle:
            assert idle.status == 200
            await idle.read()

            ending = await sidecar.terminate()

    assert ending.status == 0
    assert ending.seconds < 2


async def test_as_process_1(new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]) -> None:
    """As the first process of a container, for which SIGTERM has no default action, it ends by it all the same."""
    sidecar = new_sidecar(vllm.url, declared)
    await sidecar.start(wrap=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"))
    assert (await sidecar.event("daemon.started"))["pid"] == 1
    await sidecar.event("restore.completed")
    child = only_child(sidecar.pid)

    began = asyncio.get_running_loop().time()
    os.kill(child, signal.SIGTERM)
    status = await sidecar.ended()

    assert status == 0
    assert asyncio.get_running_loop().time() - began < 1
    assert sidecar.events[-1]["event"] == "daemon.stopped"


def only_child(pid: int) -> int:
    """The one child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


async def test_nothing_is_sent_after_the_end(
    sidecar: Sidecar, vllm: RunningServer, session: aiohttp.ClientSession
) -> None:
    """Stopping unloads nothing: the server keeps every adapter."""
    await sidecar.event("restore.completed")

    await sidecar.terminate()

    assert sorted(await Api(session, vllm.url).listed()) == ["one", "three", "two"]
