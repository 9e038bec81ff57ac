from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from lora_sidecar.actions.retirer import Retirer
from lora_sidecar.config.load import parse
from lora_sidecar.core.outcomes import Accepted
from lora_sidecar.files.preflight import Preflight
from lora_sidecar.reconcile.replacement import Retire
from tests.unit.actions.test_loader import Slow, plan

pytestmark = pytest.mark.looptime


class Answering(Slow):
    """An engine that takes a second to say that it is awake."""

    def __init__(self) -> None:
        super().__init__()
        self.unloaded: list[str] = []

    async def halted(self) -> bool:
        """Not halted."""
        await asyncio.sleep(1)
        return False

    async def unload(self, name: str) -> Accepted:
        """At once."""
        self.unloaded.append(name)
        return Accepted()


@asynccontextmanager
async def retiring() -> AsyncIterator[tuple[Retirer, Answering]]:
    """A retirer that runs and has a plan to retire one adapter, and its engine, which is being asked."""
    engine = Answering()
    preflight = Preflight("vllm", parse(b"servers: [{name: vllm, url: 'http://h'}]\n", "sidecar.yaml"))
    made = Retirer(engine, asyncio.get_running_loop().time, lambda: None, preflight)
    running = asyncio.create_task(made.run())
    made.offer(replace(plan(()), observed_at=1.0, retires=(Retire("sql"),)))
    await asyncio.sleep(0.5)
    try:
        yield made, engine
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_is_planned_is_retired_once() -> None:
    """The engine is awake, and is told to unload the adapter."""
    async with retiring() as (retirer, engine):
        await asyncio.sleep(5)
        assert engine.unloaded == ["sql"]
        assert [one.name for one in retirer.drain()] == ["sql"]


async def test_a_config_that_changed_meanwhile_forestalls_it() -> None:
    """While the engine takes its time to answer, the config names the adapter again: it is not unloaded."""
    async with retiring() as (retirer, engine):
        retirer.cancel_pending()
        await asyncio.sleep(5)
        assert engine.unloaded == []
        assert retirer.drain() == ()


@pytest.mark.parametrize(("age", "unloaded"), [(0.9, ["sql"]), (1.1, [])])
async def test_a_plan_that_comes_late_retires_nothing(age: float, unloaded: list[str]) -> None:
    """Its save took long: by now somebody may have loaded what it would unload. The next plan will say."""
    async with retiring() as (retirer, engine):
        retirer.cancel_pending()
        await asyncio.sleep(10)
        now = asyncio.get_running_loop().time()
        retirer.offer(replace(plan(()), observed_at=now - age, retires=(Retire("sql"),)))
        await asyncio.sleep(5)
        assert engine.unloaded == unloaded
