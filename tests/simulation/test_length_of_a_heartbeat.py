"""However slow the server and the disk are, a heartbeat takes no longer than liveness allows for."""

from __future__ import annotations

import asyncio

import pytest

from lora_sidecar.api.control import PATIENCE
from lora_sidecar.checkpoint.manager import CheckpointManager
from lora_sidecar.control.requests import Load
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Desired
from lora_sidecar.engines.http import Reply, RequestError, Transport
from lora_sidecar.reconcile.outage import Phase
from tests.fakes.vllm import FakeConfig
from tests.simulation.conftest import PodMaker

pytestmark = pytest.mark.looptime

LOOK = 3.0 + 5.0
SAVE = 5.0
"""The defaults of the config, in seconds."""


async def test_a_server_that_takes_its_time_for_every_answer(
    make_pod: PodMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look is up to six requests; all of them together have the time of a probe and a listing."""
    get = Transport.get

    async def slow(self: Transport, path: str, deadline: float) -> Reply | RequestError:
        await asyncio.sleep(deadline - 0.1)
        return await get(self, path, deadline)

    async with make_pod() as pod:
        await pod.until(lambda: pod.status.beats > 0, within=5.0)
        monkeypatch.setattr(Transport, "get", slow)
        await pod.server.stop()
        await pod.server.start()
        await asyncio.sleep(120.0)
        beats = [one.fields["seconds"] for one in pod.of(EventName.HEARTBEAT_COMPLETED)]
        assert max(beats) == pytest.approx(LOOK, abs=0.2)
        assert pod.of(EventName.HEARTBEAT_OVERRUN) == []
        assert pod.status.work.server.phase is not Phase.UP
        assert "no whole answer within 8s" in pod.status.work.server.detail


async def test_many_requests_and_a_disk_that_takes_its_time(
    make_pod: PodMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request is a save; those that are left wait for the next heartbeat, in their order, and all are answered."""
    keep = CheckpointManager.keep

    async def slow(self: CheckpointManager, desired: Desired, *, urgent: bool = False) -> object:
        if not self.has(desired):
            await asyncio.sleep(SAVE - 0.1)
        return await keep(self, desired, urgent=urgent)

    async with make_pod(server=FakeConfig(check_files=False)) as pod:
        await pod.until(lambda: pod.status.beats > 0, within=5.0)
        monkeypatch.setattr(CheckpointManager, "keep", slow)
        intents = [Load(f"a{number}", f"/adapters/a{number}") for number in range(8)]
        answers = await asyncio.gather(*(pod.watch.requests.submit(one, 10 * PATIENCE) for one in intents))
        assert {answer.status for answer in answers} == {200}
        beats = [one.fields["seconds"] for one in pod.of(EventName.HEARTBEAT_COMPLETED)]
        assert max(beats) <= LOOK + 2 * SAVE
        requested = [one.fields["adapter"] for one in pod.of(EventName.ADAPTER_REQUESTED)]
        assert requested == [one.name for one in intents]
