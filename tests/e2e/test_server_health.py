from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import NewSidecar, until_listed
from tests.support.http_client import Api
from tests.support.servers import RunningServer

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_frozen_engine_fails_serverz_and_it_recovers_by_itself(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path]
) -> None:
    """With the engine SIGSTOPped and a load in flight /serverz turns 503; after SIGCONT it is 200 and all is listed."""
    sidecar = new_sidecar(vllm.url, server_health={"hung_after": "5s"})
    await sidecar.start()
    await sidecar.answers("/serverz/vllm", 200)
    vllm.stop_engine()
    try:
        sidecar.declare([{"name": "declared", "path": str(adapters[0])}])
        sick = await sidecar.answers("/serverz/vllm", 503, within=30)
        assert "its /health answers, and its engine has answered no load" in sick.text
        assert (await api.get("/health")).status == 200
    finally:
        vllm.continue_engine()
    await until_listed(api, "declared", within=30)
    await sidecar.answers("/serverz/vllm", 200, within=30)
    await sidecar.event("condition.cleared", condition="ServerHung")


async def test_a_server_wedged_by_a_load_at_sigterm_is_named(
    new_sidecar: NewSidecar, own_vllm: Callable[..., Any], adapters: Sequence[Path]
) -> None:
    """The port is closed and the process stays: ServerWedged, proven by the open load, until the process is killed."""
    vllm = await own_vllm()
    sidecar = new_sidecar(vllm.url)
    await sidecar.start()
    await sidecar.event("server.up")
    vllm.stop_engine()
    sidecar.declare([{"name": "declared", "path": str(adapters[0])}])
    await sidecar.event("restore.started")
    await asyncio.sleep(1)
    vllm.terminate()
    raised = await sidecar.event("condition.raised", condition="ServerWedged", within=120)
    assert "still open" in raised["message"]
    assert vllm.returncode is None
    assert (await sidecar.get("/serverz/vllm")).status == 503
    await vllm.sigkill_all()
    await sidecar.event("condition.cleared", condition="ServerWedged", within=30)
    assert (await sidecar.get("/serverz/vllm")).status == 200
