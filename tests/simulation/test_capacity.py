"""More adapters than the server keeps: in memory (vLLM), or in its listing (SGLang)."""

from __future__ import annotations

import asyncio

import pytest

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from tests.fakes.vllm import FakeConfig
from tests.simulation.conftest import Pod, PodMaker

pytestmark = pytest.mark.looptime

EIGHT = [f"p{n}" for n in range(8)]
# The number is the priority.
ADAPTERS = "adapters: [" + ", ".join(f"{{name: {name}, path: /a/{name}, priority: {name[1]}}}" for name in EIGHT) + "]"


def exceeded(pod: Pod) -> str:
    """The message of the condition, empty while it does not hold."""
    held = [one for status in pod.board.statuses() for one in status.conditions]
    return next((one.message for one in held if one.type is ConditionType.CAPACITY_EXCEEDED), "")


def resident(pod: Pod) -> set[str]:
    """The adapters that the engine has in memory."""
    return {path.rpartition("/")[2] for path in pod.server.engine._cache.values()}


@pytest.mark.parametrize("concurrency", ["1", "4", "auto"])
async def test_the_highest_priorities_stay_in_memory(make_pod: PodMaker, concurrency: str) -> None:
    """What does not fit is loaded first; of what fits, the most important first. So it is at every life."""
    server = FakeConfig(check_files=False, max_cpu_loras=4, load_delay=0.05)
    settings = f"restore: {{concurrency: {concurrency}}}"
    async with make_pod(ADAPTERS, settings, server=server, more=", max_cpu_loras: 4") as pod:
        for _ in range(2):
            await pod.until_listed(*EIGHT)
            assert resident(pod) == {"p7", "p6", "p5", "p4"}
            assert set(pod.loads()[:4]) == {"p3", "p2", "p1", "p0"}
            assert pod.loads()[4] == "p7"
            await asyncio.sleep(20)
            await pod.server.restart()


async def test_the_highest_priorities_stay_in_memory_of_a_server_that_flaps(make_pod: PodMaker) -> None:
    """Where one adapter is loaded a heartbeat, what does not fit still goes first."""
    server = FakeConfig(check_files=False, max_cpu_loras=4, load_delay=0.05)
    async with make_pod(ADAPTERS, server=server, more=", max_cpu_loras: 4") as pod:
        for _ in range(3):
            await pod.until_listed(*EIGHT)
            await pod.server.restart()
        await pod.until_listed(*EIGHT, within=90)
        assert ConditionType.SERVER_FLAPPING in {one.type for one in pod.status.conditions}
        assert pod.loads() == ["p3", "p2", "p1", "p0", "p7", "p6", "p5", "p4"]
        assert resident(pod) == {"p7", "p6", "p5", "p4"}


async def test_without_the_figure_the_most_important_come_first(make_pod: PodMaker) -> None:
    """Nothing is known of the engine's memory, so the order is that of importance."""
    async with make_pod(ADAPTERS, server=FakeConfig(check_files=False, max_cpu_loras=4, load_delay=0.05)) as pod:
        await pod.until_listed(*EIGHT)
        assert pod.loads()[0] == "p7"
        assert resident(pod) == {"p3", "p2", "p1", "p0"}


async def test_a_listing_that_holds_fewer_than_are_wanted(make_pod: PodMaker) -> None:
    """Where loading one makes another vanish, it ends after a few tries, says how many fit, and forgets nobody."""
    server = FakeConfig(check_files=False, max_listed=5, load_delay=0.05)
    async with make_pod(ADAPTERS, server=server) as pod:
        await pod.until(lambda: bool(exceeded(pod)), 120)
        sent = len(pod.loads())
        await asyncio.sleep(1200)
        assert len(pod.loads()) == sent
        assert sent <= 8 + 4 * 3
        assert len(pod.server.adapters) == 5
        assert "8 wanted, 5 fit" in exceeded(pod)
        assert pod.of(EventName.ADAPTER_FORGOTTEN) == []
        assert set(pod.status.desired.adapters) == set(EIGHT)


async def test_a_full_listing_is_tried_again_after_an_hour(make_pod: PodMaker) -> None:
    """One exchange more, and it is said again; a server that lists more by now gets all of them."""
    async with make_pod(ADAPTERS, server=FakeConfig(check_files=False, max_listed=5, load_delay=0.05)) as pod:
        await pod.until(lambda: bool(exceeded(pod)), 120)
        sent = len(pod.loads())
        await asyncio.sleep(3700)
        assert sent < len(pod.loads()) <= sent + 6
        assert exceeded(pod)
        pod.server.routes.max_listed = None
        await asyncio.sleep(3700)
        assert exceeded(pod) == ""


async def test_unloads_beside_our_loads_are_no_limit(make_pod: PodMaker) -> None:
    """Somebody unloads adapters, each while another one is loaded: everything declared is back."""
    async with make_pod(ADAPTERS, server=FakeConfig(check_files=False, load_delay=4.0)) as pod:
        await pod.until_listed(*EIGHT, within=60)
        for first, second in (("p0", "p1"), ("p2", "p3"), ("p4", "p5"), ("p6", "p7")):
            pod.somebody_unloads(first)
            await pod.until(lambda: bool(pod.status.work.drift.missing), 30)
            await asyncio.sleep(1.0)
            pod.somebody_unloads(second)
            await asyncio.sleep(30)
            assert exceeded(pod) == ""
            assert set(pod.server.adapters) == set(EIGHT)


async def test_a_load_and_an_unload_at_once_are_no_limit(make_pod: PodMaker) -> None:
    """Somebody who unloads while something else is restored is not taken for an engine that is full."""
    async with make_pod(server=FakeConfig(check_files=False, load_delay=0.05)) as pod:
        for name in EIGHT:
            await pod.somebody_loads(name)
        await pod.until(lambda: len(pod.of(EventName.ADAPTER_ADOPTED)) == 8, 6)
        await pod.server.restart()
        await pod.until_listed(*EIGHT)
        await asyncio.sleep(10)
        pod.somebody_unloads("p0")
        await asyncio.sleep(30)
        assert set(pod.server.adapters) == set(EIGHT[1:])
        assert exceeded(pod) == ""


async def test_room_that_is_made_is_used(make_pod: PodMaker) -> None:
    """When fewer are wanted, the condition goes and what is missing is loaded."""
    async with make_pod(ADAPTERS, server=FakeConfig(check_files=False, max_listed=5, load_delay=0.05)) as pod:
        await pod.until(lambda: bool(exceeded(pod)), 120)
        listed = sorted(pod.server.adapters)
        missing = [name for name in EIGHT if name not in listed][-1]
        keep = [*listed[1:], missing]
        text = "adapters: [" + ", ".join(f"{{name: {name}, path: /a/{name}}}" for name in keep) + "]"
        pod.reconfigure(text)
        pod.somebody_unloads(listed[0])
        await pod.until_listed(*keep, within=60)
        await pod.until(lambda: not exceeded(pod), 10)
