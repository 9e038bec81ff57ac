from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_sidecar.checkpoint.decode import Checkpoint, decode
from lora_sidecar.checkpoint.store import read_file
from tests.process.conftest import NewSidecar
from tests.support.http_client import Api
from tests.support.servers import RunningServer
from tests.support.sidecar import Sidecar

CONDITION = "condition CheckpointNotPersisted"
# Permissions bind root, too, once it has lost these capabilities.
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()

HUNG_AT_START = """
import threading
from lora_sidecar.checkpoint import manager as keeper
from lora_sidecar.checkpoint.store import Store
keeper.LOCK_WAIT = 0.2
Store.open = lambda self, wait=0.0: threading.Event().wait()
"""


def checkpoint_in(directory: Path) -> Checkpoint:
    """The checkpoint in that directory."""
    found = decode(read_file(str(directory / "vllm.json")))
    assert isinstance(found, Checkpoint)
    return found


async def runs_in_memory(sidecar: Sidecar) -> None:
    """See that it restores, is ready, and says that it remembers nothing durably."""
    await sidecar.event("restore.completed")
    await sidecar.event("checkpoint.write_failed")
    reply = await sidecar.answers("/readyz?verbose", 200, CONDITION)
    assert str(sidecar.folder) in reply.text
    assert (await sidecar.get("/livez")).status == 200


async def recovers(sidecar: Sidecar) -> None:
    """See that it has written its checkpoint and that the condition has gone."""
    recovered = await sidecar.event("checkpoint.recovered")
    assert recovered["previous_errors"] >= 1
    assert CONDITION not in (await sidecar.answers("/readyz?verbose", 200)).text


async def test_missing_at_start(new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]) -> None:
    """Without its directory it runs in memory and says so; it writes as soon as the directory is there."""
    sidecar = new_sidecar(vllm.url, declared)
    directory = sidecar.folder / "checkpoints"
    directory.rmdir()
    await sidecar.start()
    await runs_in_memory(sidecar)
    assert not directory.exists()

    directory.mkdir()
    await recovers(sidecar)

    assert sorted(checkpoint_in(directory).desired.adapters) == ["one", "three", "two"]


@pytest.mark.parametrize("mode", [0o500, 0o000])
async def test_not_permitted(
    new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]], mode: int
) -> None:
    """A directory that may not be written, or not even read, is no reason to stop; a mended mode is noticed."""
    sidecar = new_sidecar(vllm.url, declared)
    directory = sidecar.folder / "checkpoints"
    directory.chmod(mode)
    await sidecar.start(wrap=UNPRIVILEGED)
    await runs_in_memory(sidecar)
    failed = sidecar.named("checkpoint.write_failed")[0]
    assert "Permission denied" in failed["message"]
    assert "securityContext" in failed["hint"]

    directory.chmod(0o700)
    await recovers(sidecar)


async def test_becomes_unwritable(sidecar: Sidecar, api: Api) -> None:
    """A directory that stops being writable costs durability for a while: what is adopted then is written later."""
    await sidecar.event("restore.completed")
    await sidecar.beats(2)
    await sidecar.terminate()
    await sidecar.start(wrap=UNPRIVILEGED)
    await sidecar.beats(2)
    directory = sidecar.folder / "checkpoints"

    directory.chmod(0o500)
    await api.load("learned", "/adapters/learned")
    await sidecar.event("checkpoint.write_failed")
    directory.chmod(0o700)
    await recovers(sidecar)

    assert "learned" in checkpoint_in(directory).desired.adapters


async def test_is_a_file(new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]) -> None:
    """A file in the place of the directory is left alone and reported."""
    sidecar = new_sidecar(vllm.url, declared)
    directory = sidecar.folder / "checkpoints"
    directory.rmdir()
    directory.write_text("precious")
    await sidecar.start()
    await runs_in_memory(sidecar)

    assert directory.read_text() == "precious"


async def test_removed_while_running_and_back(sidecar: Sidecar, api: Api) -> None:
    """A directory that is taken away is not made again; once it is back, everything known is written to it."""
    await sidecar.event("restore.completed")
    await sidecar.beats(2)
    directory = sidecar.folder / "checkpoints"

    shutil.rmtree(directory)
    await api.load("learned", "/adapters/learned")
    await sidecar.event("checkpoint.write_failed")
    await sidecar.answers("/readyz?verbose", 200, CONDITION)
    assert not directory.exists()
    directory.mkdir()
    await recovers(sidecar)

    assert sorted(checkpoint_in(directory).desired.adapters) == ["learned", "one", "three", "two"]


async def test_removed_while_nothing_changes(sidecar: Sidecar, vllm: RunningServer) -> None:
    """A directory that is taken away and replaced in a quiet hour is filled at the next change."""
    await sidecar.event("restore.completed")
    await sidecar.beats(2)
    directory = sidecar.folder / "checkpoints"

    shutil.rmtree(directory)
    directory.mkdir()
    await vllm.restart()
    await sidecar.event("recovery.completed")
    await sidecar.beats(2)

    assert checkpoint_in(directory).desired.incarnation.number == 2


async def test_damaged_file(sidecar: Sidecar) -> None:
    """A damaged checkpoint is moved aside and told of; the generation before it is used, and nothing is restored."""
    await sidecar.event("restore.completed")
    await sidecar.beats(2)
    await sidecar.terminate()
    file = sidecar.folder / "checkpoints" / "vllm.json"
    file.write_bytes(file.read_bytes()[:-20])

    await sidecar.start()
    quarantined = await sidecar.event("checkpoint.quarantined")
    loaded = await sidecar.event("checkpoint.loaded")
    await sidecar.beats(2, verdict="steady")

    assert quarantined["kind"] == "corrupt"
    assert quarantined["moved_to"] == str(file.with_name("vllm.corrupt-1"))
    assert sorted(entry.name for entry in file.parent.glob("vllm.corrupt-*")) == ["vllm.corrupt-1"]
    assert loaded["source"] == "previous"
    assert sidecar.named("restore.started") == []
    assert len(checkpoint_in(file.parent).desired.adapters) == 3


async def test_disk_hung_at_start(new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]) -> None:
    """A disk that hangs from the first moment on delays the first heartbeat by a bounded time, and stops none."""
    sidecar = new_sidecar(vllm.url, declared, checkpoint={"timeout": "300ms"})
    await sidecar.start(prelude=HUNG_AT_START)

    await runs_in_memory(sidecar)

    await vllm.restart()
    await sidecar.event("recovery.completed")
