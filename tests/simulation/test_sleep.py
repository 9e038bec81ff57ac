from __future__ import annotations

import asyncio
import random

import pytest

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from tests.fakes.vllm import FakeConfig
from tests.simulation.conftest import LOAD, Pod, PodMaker

pytestmark = pytest.mark.looptime

NAMES = [f"a{n}" for n in range(6)]
DECLARED = "adapters: [" + ", ".join(f"{{name: {n}, path: /adapters/{n}}}" for n in NAMES) + "]"
GPU = FakeConfig(check_files=False, dev_mode=True, gpu=True)


class Guard:
    """Notes every load that arrives while the engine sleeps or the server drains."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.asleep = 0

    def look(self) -> None:
        """Count the loads received since the last look, if the engine slept all the while."""
        asleep = self.pod.server.asleep is not None or self.pod.server.draining
        received = [request for request in self.pod.server.requests if request[:2] == LOAD]
        self.pod.server.requests.clear()
        self.asleep += len(received) if asleep else 0


@pytest.mark.parametrize("seed", range(6))
async def test_no_load_reaches_a_sleeping_engine_whatever_happens(make_pod: PodMaker, seed: int) -> None:
    """Sleeps, wakes, unloads, loads of others and restarts at random: none is sent, and in the end all is listed."""
    chance = random.Random(seed)
    async with make_pod(DECLARED, "verify: {by: probe, interval: 2s}", GPU) as pod:
        guard = Guard(pod)
        for _ in range(60):
            await asyncio.sleep(chance.choice([0.01, 0.3, 2.0, 7.0]))
            guard.look()
            match chance.randrange(5):
                case 0 | 1:
                    pod.server.asleep = None if pod.server.asleep else chance.choice([1, 2])
                case 2 if pod.server.adapters:
                    pod.somebody_unloads(chance.choice(list(pod.server.adapters)))
                case 3:
                    await pod.somebody_loads(chance.choice(NAMES))
                case 4 if chance.random() < 0.3:
                    assert not pod.server.engine.destroyed
                    await pod.server.restart()
            assert guard.asleep == 0
            assert not pod.server.engine.destroyed
        pod.server.asleep = None
        await pod.until(lambda: set(NAMES) <= set(pod.server.adapters), 60)
        assert not pod.server.engine.destroyed


async def test_a_sleep_is_no_outage(make_pod: PodMaker) -> None:
    """The server stays up, no recovery is told, and the condition says that it sleeps; loads resume by themselves."""
    async with make_pod(DECLARED, server=GPU) as pod:
        await pod.until_listed(*NAMES)
        pod.server.asleep = 1
        pod.somebody_unloads("a0")
        await pod.until(lambda: any(c.type is ConditionType.ENGINE_ASLEEP for c in pod.status.conditions), 20)
        await asyncio.sleep(600)
        assert "a0" not in pod.server.adapters
        assert pod.of(EventName.SERVER_DOWN) == pod.of(EventName.RECOVERY_COMPLETED) == []
        assert pod.status.failing == ""
        pod.server.asleep = None
        await pod.until_listed(*NAMES, within=10)
        await pod.until(lambda: pod.status.conditions == (), 10)


async def test_a_draining_server_gets_few_loads_and_all_are_refused(make_pod: PodMaker) -> None:
    """A drain shows only in the answer to a load: it ends the round, and each adapter waits for its backoff."""
    async with make_pod(DECLARED, server=FakeConfig(check_files=False)) as pod:
        pod.server.draining = True
        await asyncio.sleep(60)
        loads = pod.loads()
        assert pod.server.adapters == {}
        # Each adapter waits 1, 2, 4, 8, 16, 32 s between its tries.
        assert len(loads) <= 7 * len(NAMES)
        pod.server.draining = False
        await pod.until_listed(*NAMES, within=70)
