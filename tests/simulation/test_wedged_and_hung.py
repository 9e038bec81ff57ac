from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from lora_sidecar.reconcile.outage import Phase
from tests.fakes.vllm import FakeConfig
from tests.simulation.conftest import Pod, PodMaker

pytestmark = pytest.mark.looptime

DECLARED = "adapters: [{name: sql, path: /adapters/sql, required: true}]"
HUNG_AFTER = "server_health: {hung_after: 60s}"


def conditions(pod: Pod) -> set[str]:
    """The types of the conditions that hold."""
    return {one.type.value for status in pod.board.statuses() for one in status.conditions}


async def test_a_load_in_flight_at_sigterm_wedges_the_server_and_it_is_named(make_pod: PodMaker) -> None:
    """It refuses, its process stays: named within a minute, and gone from the conditions when the process ends."""
    async with make_pod(DECLARED, server=FakeConfig(check_files=False, load_delay=3600)) as pod:
        await pod.until(lambda: pod.loads() == ["sql"], 5)
        stopping = asyncio.create_task(pod.server.shut_down())
        await pod.until(lambda: "ServerWedged" in conditions(pod), 60)
        assert "still open" in pod.status.failing
        await asyncio.sleep(100)
        assert pod.status.failing
        stopping.cancel()
        with suppress(asyncio.CancelledError):
            await stopping
        await pod.server.kill()
        await pod.until(lambda: "ServerWedged" not in conditions(pod), 10)
        pod.server.config = FakeConfig(check_files=False, port=pod.server.port)
        await pod.server.start()
        await pod.until_listed("sql")


async def test_a_kill_with_a_load_in_flight_is_no_wedge(make_pod: PodMaker) -> None:
    """The connection of the load ends with the process: a restart may then take its time."""
    async with make_pod(DECLARED, server=FakeConfig(check_files=False, load_delay=3600)) as pod:
        await pod.until(lambda: pod.loads() == ["sql"], 5)
        await pod.server.kill()
        await pod.until(lambda: pod.status.work.server.phase is Phase.DOWN, 6)
        for _ in range(1700):
            await asyncio.sleep(1)
            assert conditions(pod) & {"ServerWedged", "ServerHung"} == set()
            assert pod.status.failing == ""


async def test_a_hung_engine_is_named_by_a_load_that_gets_no_answer(make_pod: PodMaker) -> None:
    """While /health and the listing answer; it clears by itself when the engine goes on, and the load took effect."""
    async with make_pod(DECLARED, HUNG_AFTER) as pod:
        pod.server.hung = True
        await pod.until(lambda: "ServerHung" in conditions(pod), 70)
        assert pod.status.work.server.phase is Phase.UP
        assert pod.status.failing
        pod.server.hung = False
        await pod.until_listed("sql")
        await pod.until(lambda: "ServerHung" not in conditions(pod), 6)
        assert pod.status.failing == ""


async def test_an_idle_server_with_a_hung_engine_is_not_noticed_without_probes(make_pod: PodMaker) -> None:
    """Nothing is sent through the engine that was not asked for, so nothing can be known, and nothing is claimed."""
    async with make_pod(DECLARED, HUNG_AFTER) as pod:
        await pod.until_listed("sql")
        pod.server.hung = True
        await asyncio.sleep(3600)
        assert conditions(pod) == set()
