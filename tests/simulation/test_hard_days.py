from __future__ import annotations

import asyncio
import gc
import math
import resource
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.engines import base
from tests.fakes.vllm import FakeConfig
from tests.simulation import virtual_time
from tests.simulation.conftest import PodMaker
from tests.simulation.world import Traits, World

DECLARED = "adapters: [{name: sql, path: /adapters/sql, required: true}]"
A_DAY = 17_280
"""Heartbeats of a day."""


@pytest.mark.looptime
async def test_a_server_that_flaps_is_restored_in_every_life_and_told_once(make_pod: PodMaker) -> None:
    """Six lives in half a minute, each soon after a load: the last one is restored in batches, as one recovery."""
    names = [f"a{n}" for n in range(6)]
    server = FakeConfig(check_files=False, load_delay=1.0)
    async with make_pod(server=server) as pod:
        for name in names:
            await pod.somebody_loads(name)
        await pod.until(lambda: len(pod.of(EventName.ADAPTER_ADOPTED)) == 6, 6)
        for lives in range(6):
            await pod.server.restart()
            # Sockets are real here: a life may be over before it was seen where the machine is slow.
            await pod.until(lambda lives=lives: len(pod.of(EventName.SERVER_RESTARTED)) > lives, 10)
            # Long enough for the first load, and none is in flight when the server ends.
            await asyncio.sleep(1.6)
        assert ConditionType.SERVER_FLAPPING in {one.type for one in pod.status.conditions}
        loads = len(names)
        assert await pod.until_listed(*names, within=40) <= loads + math.log2(len(names)) + 2
        await pod.until(lambda: bool(pod.of(EventName.RECOVERY_COMPLETED)), 10)
        assert pod.of(EventName.ADAPTER_FORGOTTEN) == []
        (recovery,) = pod.of(EventName.RECOVERY_COMPLETED)
    assert recovery.fields["restarts"] == 6
    assert (recovery.fields["restored"], recovery.fields["failed"]) == (6, 0)


@pytest.mark.looptime
async def test_minutes_of_start_up_are_quiet(make_pod: PodMaker) -> None:
    """A server that needs five minutes to its first answer costs one line, no failure and no backoff."""
    async with make_pod(DECLARED, server=FakeConfig(check_files=False, start_delay=300)) as pod:
        await pod.until_listed("sql", within=10)
        before = len(pod.happened)
        await pod.server.kill()
        starting = asyncio.create_task(pod.server.start())
        await asyncio.sleep(290)
        told = [one.event for one in pod.happened[before:] if one.event is not EventName.HEARTBEAT_COMPLETED]
        assert told == [EventName.SERVER_DOWN]
        await starting
        assert await pod.until_listed("sql", within=10) <= 6.0


@pytest.mark.looptime
@pytest.mark.timeout(180)
async def test_a_thousand_adapters_are_restored_and_cost_little(make_pod: PodMaker) -> None:
    """All come back, in one recovery; a heartbeat over them takes the loop a fraction of a second."""
    async with make_pod() as pod:
        for n in range(1000):
            await pod.somebody_loads(f"adapter-{n:04}")
        await pod.until(lambda: len(pod.status.desired.adapters) == 1000, 20)
        await pod.server.restart()
        await pod.until(lambda: len(pod.server.adapters) == 1000, 120)
        await pod.until(lambda: bool(pod.of(EventName.RECOVERY_COMPLETED)), 20)
        began = time.process_time()
        for _ in range(10):
            await pod.watch.heartbeat()
        assert (time.process_time() - began) / 10 < 0.25
        assert pod.of(EventName.ADAPTER_FORGOTTEN) == []


@pytest.mark.timeout(180)
def test_a_day_of_heartbeats_leaves_memory_as_it_was(tmp_path: Path) -> None:
    """Over a day of heartbeats with a restart every twenty minutes, resident memory stays within 2 MB."""

    async def day() -> list[int]:
        world = World(1, Traits(), tmp_path)
        sizes: list[int] = []
        with (
            patch.object(base, "Transport", world.network.transport),
            patch.object(base, "LivenessConnection", world.network.sentinel),
        ):
            world.adapters["sql"] = {"path": "/adapters/sql", "required": True}
            world.reconfigure()
            world.server.spawn(world.server.boot(0.0))
            world.start_sidecar()
            for n in range(A_DAY * 5 // 1200):
                assert await world.let_pass(1200.0), world.told()
                world.server.crash("SIGKILL", 30.0)
                world.history.clear()
                if n >= 9:
                    gc.collect()
                    sizes.append(resident())
            await world.close()
        return sizes

    sizes = virtual_time.run(day())
    assert max(sizes) - sizes[0] < 2 * 1024 * 1024


def resident() -> int:
    """The bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
