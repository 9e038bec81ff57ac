from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from lora_sidecar.actions.unloader import Unloader
from lora_sidecar.config.load import parse
from lora_sidecar.core.outcomes import Accepted, Retired, Unloaded
from lora_sidecar.files.preflight import Preflight
from lora_sidecar.reconcile.replacement import Retire
from tests.unit.actions.test_loader import Slow, plan

pytestmark = pytest.mark.looptime


class Answering(Slow):
    """An engine that takes a second to say that it is awake."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False
        self.unloaded: list[str] = []

    async def is_paused(self) -> bool:
        """Take a second to say so."""
        await asyncio.sleep(1)
        return self.paused

    async def unload(self, name: str) -> Accepted:
        """At once."""
        self.unloaded.append(name)
        return Accepted()


@asynccontextmanager
async def retiring() -> AsyncIterator[tuple[Unloader, Answering]]:
    """An unloader that runs and has a plan to retire one adapter, and its engine, which is being asked."""
    engine = Answering()
    preflight = Preflight("vllm", parse(b"servers: [{name: vllm, url: 'http://h'}]\n", "sidecar.yaml"))
    made = Unloader(asyncio.get_running_loop().time, lambda: None, lambda name: name == "loading", preflight)
    running = asyncio.create_task(made.run())
    made.offer(replace(plan(()), observed_at=1.0, retires=(Retire("sql"),)), engine)
    await asyncio.sleep(0.5)
    try:
        yield made, engine
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_is_planned_is_retired_once() -> None:
    """The engine is awake, and is told to unload the adapter."""
    async with retiring() as (unloader, engine):
        await asyncio.sleep(5)
        assert engine.unloaded == ["sql"]
        assert [one.name for one in unloader.drain()] == ["sql"]


async def test_a_config_that_changed_meanwhile_forestalls_it() -> None:
    """While the engine takes its time to answer, the config names the adapter again: it is not unloaded."""
    async with retiring() as (unloader, engine):
        unloader.cancel_pending()
        await asyncio.sleep(5)
        assert engine.unloaded == []
        assert unloader.drain() == ()


@pytest.mark.parametrize(("age", "unloaded"), [(0.9, ["sql"]), (1.1, [])])
async def test_a_plan_that_comes_late_retires_nothing(age: float, unloaded: list[str]) -> None:
    """Its save took long: by now somebody may have loaded what it would unload. The next plan will say."""
    async with retiring() as (unloader, engine):
        unloader.cancel_pending()
        await asyncio.sleep(10)
        now = asyncio.get_running_loop().time()
        unloader.offer(replace(plan(()), observed_at=now - age, retires=(Retire("sql"),)), engine)
        await asyncio.sleep(5)
        assert engine.unloaded == unloaded


async def test_what_somebody_asked_for_comes_first() -> None:
    """A retirement waits for the engine to say that it is awake, and nothing else does."""
    async with retiring() as (unloader, engine):
        unloader.cancel_pending()
        await asyncio.sleep(2)
        now = asyncio.get_running_loop().time()
        unloader.offer(replace(plan(()), observed_at=now, unloads=("law",), retires=(Retire("sql"),)), engine)
        await asyncio.sleep(5)
        assert engine.unloaded == ["law", "sql"]
        assert [type(one) for one in unloader.drain()] == [Unloaded, Retired]


async def test_a_name_whose_load_is_under_way_is_not_unloaded() -> None:
    """The unload would find nothing, and the load would land after it: the next plan tells it."""
    async with retiring() as (unloader, engine):
        unloader.offer(replace(plan(()), observed_at=0.5, unloads=("loading", "law")), engine)
        await asyncio.sleep(5)
        assert engine.unloaded == ["law"]


async def test_an_engine_that_falls_asleep_keeps_what_would_be_replaced() -> None:
    """Nothing could be loaded in its place: the next plan comes back to it."""
    async with retiring() as (unloader, engine):
        engine.paused = True
        await asyncio.sleep(5)
        assert engine.unloaded == []
        engine.paused = False
        now = asyncio.get_running_loop().time()
        unloader.offer(replace(plan(()), observed_at=now, retires=(Retire("sql"),)), engine)
        await asyncio.sleep(5)
        assert engine.unloaded == ["sql"]
