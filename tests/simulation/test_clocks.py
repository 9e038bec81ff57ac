from __future__ import annotations

import asyncio
import time

import pytest

from lora_sidecar.core.events import EventName
from tests.fakes.vllm import canned
from tests.simulation.conftest import LOAD, PodMaker

pytestmark = pytest.mark.looptime

DECLARED = "adapters: [{name: sql, path: /adapters/sql, required: true}]"
TEN_YEARS = 3.2e8


async def test_the_wall_clock_may_jump_by_years(make_pod: PodMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set forward and back by ten years, it changes no wait, no stamp and no memory: the loop's clock alone counts."""
    offset = 0.0
    monkeypatch.setattr(time, "time", lambda: asyncio.get_running_loop().time() + 1.7e9 + offset)
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        refused = {"error": {"message": "No adapter found for /adapters/bad", "type": "NotFoundError", "code": 404}}
        pod.server.override(*LOAD, canned(404, refused), times=None)
        pod.reconfigure("adapters: [{name: sql, path: /adapters/sql}, {name: bad, path: /adapters/bad}]")
        for jump in (TEN_YEARS, -TEN_YEARS, -TEN_YEARS, 1.0, 0.0):
            offset = jump
            await asyncio.sleep(30)
            assert 0.0 <= pod.now - pod.status.beat_at <= 5.5
        failures = [one.at for one in pod.of(EventName.RESTORE_FAILED)]
        assert 6 <= len(failures) <= 8
        assert sorted(pod.status.desired.adapters) == ["bad", "sql"]


async def test_liveness_is_stamped_when_a_heartbeat_has_ended(make_pod: PodMaker) -> None:
    """While a heartbeat waits for the server its stamp is the former one's, and then the moment of its end."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        await asyncio.sleep(6)
        pod.server.override("GET", "/health", canned(200, b"", delay=2.0), times=None)
        await asyncio.sleep(10)
        stamps: dict[float, float] = {}
        for _ in range(400):
            stamps.setdefault(pod.status.beat_at, pod.now)
            await asyncio.sleep(0.05)
        told = sorted(stamps.items())[1:]
        assert len(told) >= 3
        for stamp, seen_at in told:
            assert seen_at - stamp <= 0.1
