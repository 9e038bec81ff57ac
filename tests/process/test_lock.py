from __future__ import annotations

import signal
from typing import Any

from lora_sidecar.checkpoint.manager import LOCK_WAIT
from tests.process.conftest import NewSidecar
from tests.support.http_client import Api
from tests.support.servers import RunningServer
from tests.support.sidecar import Sidecar

SHORT_LOCK_WAIT = "from lora_sidecar.checkpoint import manager as keeper\nkeeper.LOCK_WAIT = 1.0\n"


def second_for(new_sidecar: NewSidecar, first: Sidecar, vllm: RunningServer, declared: list[dict[str, Any]]) -> Sidecar:
    """Another sidecar for the same server and the same checkpoint directory."""
    return new_sidecar(vllm.url, declared, checkpoint={"directory": str(first.folder / "checkpoints")})


async def test_successor_takes_over_when_the_holder_ends(
    new_sidecar: NewSidecar, sidecar: Sidecar, vllm: RunningServer, declared: list[dict[str, Any]]
) -> None:
    """A successor that is started before its predecessor has ended waits for the lock, and goes on from its memory."""
    await sidecar.event("restore.completed")
    await sidecar.beats(2)
    second = second_for(new_sidecar, sidecar, vllm, declared)
    await second.start()
    await second.event("config.loaded")
    await sidecar.beats(5)
    assert second.named("checkpoint.loaded") == []

    assert (await sidecar.terminate()).status == 0
    loaded = await second.event("checkpoint.loaded", within=LOCK_WAIT)

    assert loaded["adapters"] == 3
    await second.beats(2, verdict="steady")


async def test_holder_frozen(
    new_sidecar: NewSidecar, sidecar: Sidecar, vllm: RunningServer, declared: list[dict[str, Any]], api: Api
) -> None:
    """A holder that stands still keeps its lock, and goes on unharmed; the second one ends with status 75."""
    await sidecar.event("restore.completed")
    await sidecar.beats(2)
    sidecar.send(signal.SIGSTOP)
    second = second_for(new_sidecar, sidecar, vllm, declared)
    await second.start(prelude=SHORT_LOCK_WAIT)

    assert await second.ended() == 75
    sidecar.send(signal.SIGCONT)
    await api.load("learned", "/adapters/learned")
    await sidecar.event("adapter.adopted", adapter="learned")
    await sidecar.beats(2)
    assert sidecar.named("checkpoint.write_failed") == []


async def test_killed_holder_leaves_no_lock(sidecar: Sidecar) -> None:
    """After a SIGKILL the next start has the lock at once, and the lock file is the same."""
    await sidecar.event("restore.completed")
    await sidecar.beats(2)
    lock = sidecar.folder / "checkpoints" / "vllm.lock"
    inode = lock.stat().st_ino
    await sidecar.kill()

    await sidecar.start()
    await sidecar.event("checkpoint.loaded", within=LOCK_WAIT / 2)

    assert lock.stat().st_ino == inode


async def test_directory_that_appears_late_is_locked_by_another(
    new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]
) -> None:
    """A lock that is met only once the sidecar runs does not end it: it goes on in memory, and takes over later."""
    first = new_sidecar(vllm.url, declared)
    shared = first.folder / "checkpoints"
    elsewhere = shared.with_name("not-mounted-yet")
    second = new_sidecar(vllm.url, declared, checkpoint={"directory": str(elsewhere)})
    await first.start()
    await first.event("restore.completed")
    await first.beats(2)
    await second.start()
    await second.event("checkpoint.write_failed")

    elsewhere.symlink_to(shared)
    await second.answers("/readyz?verbose", 200, "another process holds it")
    await first.terminate()
    await second.event("checkpoint.recovered")

    assert second.named("daemon.failed") == []
    await second.answers("/readyz?verbose", 200)
