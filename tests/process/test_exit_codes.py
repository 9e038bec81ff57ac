from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.process.conftest import NewSidecar, StartVllm
from tests.support.programs import run
from tests.support.servers import RunningServer, free_port
from tests.support.sidecar import Sidecar

BUGS = {
    "the heartbeat": """
from lora_sidecar import controller as watch
def reconcile(*arguments, **more):
    raise RuntimeError("a planted bug")
watch.reconcile = reconcile
""",
    "the loads": """
from lora_sidecar.actions.loader import Loader
def step(self):
    raise RuntimeError("a planted bug")
Loader._step = step
""",
    "the reading of the config": """
from lora_sidecar.reload import Reloader
async def look(self):
    raise RuntimeError("a planted bug")
Reloader.look = look
""",
    "the start": """
from lora_sidecar.controller import ServerController
async def open(self):
    raise RuntimeError("a planted bug")
ServerController.open = open
""",
    "a thread": """
from lora_sidecar.checkpoint.store import Store
def save(self, checkpoint):
    raise RuntimeError("a planted bug")
Store.save = save
""",
}


async def test_bad_config_names_every_problem(new_sidecar: NewSidecar) -> None:
    """A config that cannot be used ends it with status 78 and a line on stderr for each problem."""
    sidecar = new_sidecar("http://127.0.0.1:1")
    sidecar.quiet = False
    sidecar.config_file.write_text(
        "servers:\n  - name: Upper\n    url: ftp://x\nadapters:\n  - path: a/b/c\nheartbeat: {interval: 5}\nlogs: {}\n"
    )
    await sidecar.start()

    assert await sidecar.ended() == 78
    lines = sidecar.stderr.splitlines()
    assert all(line.startswith(f"{sidecar.config_file}: line ") for line in lines)
    for key in (
        "servers[0].name",
        "servers[0].url",
        "adapters[0].name",
        "adapters[0].path",
        "heartbeat.interval",
        "logs",
    ):
        assert any(f": {key}: " in line for line in lines), key
    assert sidecar.events == []


async def test_config_missing(new_sidecar: NewSidecar) -> None:
    """A config that is not there ends it with status 78 and says which file was looked for."""
    sidecar = new_sidecar("http://127.0.0.1:1")
    sidecar.quiet = False
    sidecar.config_file.unlink()
    await sidecar.start()

    assert await sidecar.ended() == 78
    assert sidecar.stderr == f"{sidecar.config_file}: cannot be read: No such file or directory (is it mounted?)\n"


async def test_ops_port_taken(new_sidecar: NewSidecar) -> None:
    """An ops port that another process has ends it with status 78, and the log names the port and the key to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        sidecar = new_sidecar("http://127.0.0.1:1", ops={"bind": address})
        await sidecar.start()

        assert await sidecar.ended() == 78
    (failed,) = sidecar.named("daemon.failed")
    assert (failed["exit_code"], failed["attempted"], failed["target"]) == (78, "listen on", address)
    assert "ops.bind" in failed["hint"]


async def test_ops_host_that_does_not_exist(new_sidecar: NewSidecar) -> None:
    """An ops address that is not of this machine ends it with status 78."""
    sidecar = new_sidecar("http://127.0.0.1:1", ops={"bind": "192.0.2.1:0"})
    await sidecar.start()

    assert await sidecar.ended() == 78
    assert sidecar.named("daemon.failed")[0]["target"] == "192.0.2.1:0"


async def test_certificate_missing(new_sidecar: NewSidecar, tmp_path: Path) -> None:
    """A TLS file that cannot be used ends it with status 78, and the log names the file."""
    missing = str(tmp_path / "ca.pem")
    servers = [{"name": "vllm", "url": "https://127.0.0.1:1", "tls": {"ca_file": missing}}]
    sidecar = new_sidecar("", servers=servers)
    await sidecar.start()

    assert await sidecar.ended() == 78
    assert sidecar.named("daemon.failed")[0]["target"] == missing


async def test_unknown_command() -> None:
    """A command that does not exist ends it with status 64 and the usage."""
    status, said = await _command("fly")

    assert status == 64
    assert "usage:" in said
    assert "fly" in said


async def test_no_command() -> None:
    """No command at all is a wrong usage too."""
    assert (await _command())[0] == 64


async def _command(*arguments: str) -> tuple[int, str]:
    status, _, said = await run(sys.executable, "-m", "lora_sidecar", *arguments)
    return status, said


@pytest.mark.parametrize("place", BUGS)
async def test_bug(new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]], place: str) -> None:
    """A bug in any task ends the whole process with status 70, and is told once, with its traceback."""
    sidecar = new_sidecar(vllm.url, declared)
    await sidecar.start(prelude=BUGS[place])

    assert await sidecar.ended() == 70
    (failed,) = sidecar.named("daemon.failed")
    assert failed["exit_code"] == 70
    assert failed["exception"].count("RuntimeError: a planted bug") == 1
    assert "Traceback (most recent call last)" in failed["exception"]
    assert sidecar.events[-1] is failed
    assert sidecar.named("daemon.stopped") == []


async def test_bug_while_everything_hangs(new_sidecar: NewSidecar, start_vllm: StartVllm) -> None:
    """A bug ends the process within five seconds, whatever hangs: a load, a save, the system's resolver."""
    vllm = await start_vllm("--load-delay", "30")
    servers = [
        {"name": "loads", "url": vllm.url},
        {"name": "unresolved", "url": "http://vllm.example:8000"},
        {"name": "away", "url": f"http://127.0.0.1:{free_port()}"},
    ]
    sidecar = new_sidecar(
        "", [{"name": "one", "path": "/adapters/one"}], servers=servers, checkpoint={"timeout": "300ms"}
    )
    await sidecar.start(
        prelude="""
import asyncio, signal, socket, threading
from lora_sidecar.checkpoint.disk import Disk
from lora_sidecar.reload import Reloader
fsync = Disk.fsync
def stuck(self, file):
    tell(saving=True)
    threading.Event().wait()
def getaddrinfo(*arguments, **more):
    threading.Event().wait()
async def run(self):
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, fail.set)
    await fail.wait()
    raise RuntimeError("a planted bug")
fail = asyncio.Event()
Disk.fsync = stuck
socket.getaddrinfo = getaddrinfo
Reloader.run = run
"""
    )
    await sidecar.event("daemon.started", saving=True)
    await sidecar.event("checkpoint.write_failed", server="loads")
    await sidecar.event("heartbeat.completed", server="loads", verdict="restoring")

    ending = await sidecar.terminate(signal.SIGUSR1)

    assert ending.status == 70
    assert ending.seconds < 5
    assert len(sidecar.named("daemon.failed")) == 1


async def test_lock_held(new_sidecar: NewSidecar, sidecar: Sidecar, vllm: RunningServer) -> None:
    """A second sidecar for the same server and directory waits, then ends with status 75; the first is unharmed."""
    await sidecar.event("restore.completed")
    before = sidecar.mark()
    second = new_sidecar(vllm.url, checkpoint={"directory": str(sidecar.folder / "checkpoints")})
    await second.start(prelude="from lora_sidecar.checkpoint import manager as keeper\nkeeper.LOCK_WAIT = 1.0\n")

    assert await second.ended() == 75
    (failed,) = second.named("daemon.failed")
    assert (failed["exit_code"], failed["attempted"]) == (75, "lock")
    assert failed["target"].endswith("/vllm.lock")
    assert "another lora-sidecar" in failed["hint"]
    await sidecar.beats(2)
    assert sidecar.named("checkpoint.write_failed") == []
    assert [line for line in sidecar.events[before:] if line["level"] != "debug"] == []
