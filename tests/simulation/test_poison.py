"""An adapter that kills the server when it is loaded, and a server that dies for other reasons."""

from __future__ import annotations

import asyncio

import pytest

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.reconcile.slow_start import PAUSE
from lora_sidecar.status.adapters import AdapterState
from lora_sidecar.status.board import adapters_of
from tests.fakes.vllm import FakeConfig
from tests.simulation.conftest import Pod, PodMaker

pytestmark = pytest.mark.looptime

NAMES = [f"a{n:02}" for n in range(20)]
POISON = "a07"
INNOCENT = [name for name in NAMES if name != POISON]
TWENTY = "adapters: [" + ", ".join(f"{{name: {name}, path: /adapters/{name}}}" for name in NAMES) + "]"
DEADLY = FakeConfig(check_files=False, deadly=(f"/adapters/{POISON}",), load_delay=0.05)


async def restarted_whenever_it_dies(pod: Pod, deaths: list[float]) -> None:
    """Do as a kubelet does: a server whose engine died is gone a while later, and started again."""
    while True:
        await pod.server.engine.death()
        deaths.append(pod.now)
        await asyncio.sleep(5)
        await pod.server.kill()
        await asyncio.sleep(20)
        await pod.server.start()


def conditions(pod: Pod) -> dict[ConditionType, str]:
    """The conditions that hold now, with their messages."""
    return {one.type: one.message for one in pod.status.conditions}


async def test_a_poison_among_twenty_kills_the_server_twice_at_most(make_pod: PodMaker) -> None:
    """The crash loop ends by itself: two deaths, nineteen adapters back, the poison held back and said to be."""
    deaths: list[float] = []
    async with make_pod(TWENTY, server=DEADLY) as pod:
        kubelet = asyncio.create_task(restarted_whenever_it_dies(pod, deaths))
        await pod.until(lambda: len(pod.of(EventName.RESTORE_QUARANTINED)) == 1, 300)
        await pod.until_listed(*INNOCENT)
        assert len(deaths) == 2
        # Each was loaded once in the last life. Those that were in flight beside the poison are cleared in time.
        assert sorted(pod.loads()) == INNOCENT
        assert {one.fields["adapter"] for one in pod.of(EventName.RESTORE_SUSPECTED)} < set(NAMES)
        assert [one.fields["adapter"] for one in pod.of(EventName.RESTORE_QUARANTINED)] == [POISON]
        await asyncio.sleep(1800)
        assert set(pod.status.desired.suspects) == {POISON}
        assert len(deaths) == 2
        assert "died twice while it was being loaded or probed" in conditions(pod)[ConditionType.ADAPTER_QUARANTINED]
        states = {one.adapter.name: one.state for one in adapters_of(pod.status)}
        assert states.pop(POISON) is AdapterState.QUARANTINED
        assert set(states.values()) == {AdapterState.LISTED}
        assert pod.status.work.recovery is None
        kubelet.cancel()


async def test_a_suspect_is_loaded_last_and_after_a_good_listing(make_pod: PodMaker) -> None:
    """In the second life everyone else is listed a second before the suspect is sent, so that it dies alone."""
    deaths: list[float] = []
    async with make_pod(TWENTY, server=DEADLY) as pod:
        kubelet = asyncio.create_task(restarted_whenever_it_dies(pod, deaths))
        await pod.until(lambda: len(deaths) == 1, 30)
        await pod.until(lambda: len(pod.of(EventName.SERVER_RESTARTED)) == 1, 60)
        suspects = set(pod.status.desired.suspects)
        assert POISON in suspects
        assert len(suspects) <= 4
        await pod.until(lambda: set(pod.server.adapters) == set(NAMES) - suspects, 60)
        restored = pod.now
        await pod.until(lambda: len(deaths) == 2, 30)
        assert suspects.isdisjoint(pod.loads()[:-1])
        assert pod.loads()[-1] == POISON
        assert round(deaths[1] - restored, 6) >= PAUSE
        kubelet.cancel()


async def test_a_quarantine_survives_our_own_restart(make_pod: PodMaker) -> None:
    """The sidecar that died with the server remembers who did it, before and after the verdict."""
    deaths: list[float] = []
    async with make_pod(TWENTY, server=DEADLY) as pod:
        kubelet = asyncio.create_task(restarted_whenever_it_dies(pod, deaths))
        await pod.until(lambda: bool(pod.of(EventName.SERVER_DOWN)), 30)
        assert pod.status.desired.suspects[POISON].accused
        await pod.die()
        await pod.start()
        await pod.until(lambda: len(deaths) == 2, 120)
        await pod.until(lambda: pod.status.desired.suspects[POISON].accused, 10)
        await pod.die()
        await pod.start()
        await pod.until_listed(*INNOCENT, within=60)
        await asyncio.sleep(600)
        assert len(deaths) == 2
        assert ConditionType.ADAPTER_QUARANTINED in conditions(pod)
        kubelet.cancel()


async def test_a_quarantine_ends_after_its_time_and_doubles(make_pod: PodMaker) -> None:
    """The poison is tried again when its time is served, alone; where it kills again, it is held back twice as long."""
    deaths: list[float] = []
    async with make_pod(TWENTY, "restore: {backoff: {quarantine: 3m}}", server=DEADLY) as pod:
        kubelet = asyncio.create_task(restarted_whenever_it_dies(pod, deaths))
        await pod.until(lambda: len(deaths) == 4, 800)
        # The server is away for 25 s of each.
        assert deaths[2] - deaths[1] == pytest.approx(25 + 180, abs=10)
        assert deaths[3] - deaths[2] == pytest.approx(25 + 360, abs=10)
        kubelet.cancel()


async def test_a_changed_config_ends_a_quarantine(make_pod: PodMaker) -> None:
    """Once the config names another path, the adapter is loaded from there at once."""
    deaths: list[float] = []
    async with make_pod(TWENTY, server=DEADLY) as pod:
        kubelet = asyncio.create_task(restarted_whenever_it_dies(pod, deaths))
        await pod.until(lambda: bool(pod.of(EventName.RESTORE_QUARANTINED)), 300)
        await pod.until_listed(*INNOCENT)
        pod.reconfigure(TWENTY.replace(f"/adapters/{POISON}", "/adapters/mended"))
        await pod.until_listed(*NAMES, within=10)
        await asyncio.sleep(10)
        assert ConditionType.ADAPTER_QUARANTINED not in conditions(pod)
        assert len(deaths) == 2
        kubelet.cancel()


async def test_a_load_that_broke_off_under_a_living_server_accuses_nobody(make_pod: PodMaker) -> None:
    """A load that outlived its deadline is forgiven once the same life of the server answers again."""
    settings = "restore: {timeout: 2s}"
    adapters = "adapters: [{name: slow, path: /adapters/slow}]"
    async with make_pod(adapters, settings, server=FakeConfig(check_files=False, load_delay=4)) as pod:
        await pod.until(lambda: bool(pod.of(EventName.RESTORE_FAILED)), 10)
        await pod.until_listed("slow", within=30)
        await asyncio.sleep(10)
        assert pod.status.desired.suspects == {}
        assert pod.of(EventName.RESTORE_SUSPECTED) == []


async def test_a_suspect_that_stays_listed_is_cleared(make_pod: PodMaker) -> None:
    """An adapter that was in flight at one death by chance is loaded again, and is like others after ten minutes."""
    adapters = "adapters: [{name: unlucky, path: /adapters/unlucky}, {name: other, path: /adapters/other}]"
    async with make_pod(adapters, server=FakeConfig(check_files=False, load_delay=1)) as pod:
        await pod.until(lambda: [one.name for one in pod.watch.loader.in_flight] == ["unlucky"], 9)
        await pod.server.kill()
        await pod.until(lambda: pod.status.work.server.phase is Phase.DOWN, 6)
        await pod.server.start()
        await pod.until_listed("unlucky", "other", within=30)
        assert pod.loads() == ["other", "unlucky"]
        assert set(pod.status.desired.suspects) == {"unlucky"}
        await asyncio.sleep(620)
        assert pod.status.desired.suspects == {}


async def test_three_lives_in_ten_minutes_are_told_and_slow_nothing_down(make_pod: PodMaker) -> None:
    """A server that dies for reasons of its own is restored as quickly each time, and a person is told of it."""
    names = NAMES[:6]
    adapters = "adapters: [" + ", ".join(f"{{name: {name}, path: /adapters/{name}}}" for name in names) + "]"
    async with make_pod(adapters) as pod:
        await pod.until_listed(*names)
        for _ in range(2):
            await pod.server.restart()
            assert await pod.until_listed(*names) < 6
        await asyncio.sleep(30)
        assert ConditionType.SERVER_FLAPPING not in conditions(pod)
        await pod.server.restart()
        assert await pod.until_listed(*names) < 6
        assert ConditionType.SERVER_FLAPPING in conditions(pod)
        await asyncio.sleep(610)
        assert ConditionType.SERVER_FLAPPING not in conditions(pod)
        await pod.server.restart()
        assert await pod.until_listed(*names) < 6
