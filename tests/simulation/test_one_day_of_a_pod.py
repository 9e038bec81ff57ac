from __future__ import annotations

import asyncio
import itertools

import pytest

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.reconcile.outage import Phase
from tests.fakes.vllm import FakeConfig, canned, hang
from tests.simulation.conftest import LOAD, PodMaker

pytestmark = pytest.mark.looptime

DECLARED = "adapters: [{name: sql, path: /adapters/sql, required: true}]"


async def test_what_a_restart_lost_comes_back(make_pod: PodMaker) -> None:
    """Declared and learned adapters are listed again after the server was killed, with one recovery told."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        await pod.somebody_loads("chat")
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_ADOPTED)), 6)
        await pod.server.kill()
        await pod.until(lambda: pod.status.work.server.phase is Phase.DOWN, 6)
        await pod.server.start()
        took = await pod.until_listed("sql", "chat")
        await pod.until(lambda: bool(pod.of(EventName.RECOVERY_COMPLETED)), 1)
        (recovery,) = pod.of(EventName.RECOVERY_COMPLETED)
    assert took < 1.0
    assert (recovery.fields["lost"], recovery.fields["restored"], recovery.fields["failed"]) == (2, 2, 0)


async def test_a_restart_between_two_heartbeats_is_no_unload(make_pod: PodMaker) -> None:
    """A server that was gone for less than a heartbeat has its adapters restored, and none forgotten."""
    async with make_pod(settings="heartbeat: {interval: 5s}") as pod:
        await pod.somebody_loads("chat")
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_ADOPTED)), 6)
        await pod.server.restart()
        await pod.until_listed("chat", within=7)
        await asyncio.sleep(30)
        assert pod.of(EventName.ADAPTER_FORGOTTEN) == []
        assert pod.of(EventName.SERVER_RESTARTED)[0].fields["evidence"] == "start_time"


async def test_a_deliberate_unload_is_respected_across_our_own_restart(make_pod: PodMaker) -> None:
    """An adapter unloaded while the sidecar was down, in the same life of the server, is not loaded again."""
    async with make_pod() as pod:
        await pod.somebody_loads("chat")
        await pod.somebody_loads("draft")
        await pod.until(lambda: len(pod.of(EventName.ADAPTER_ADOPTED)) == 2, 6)
        await pod.die()
        pod.somebody_unloads("chat")
        await pod.start()
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_FORGOTTEN)), 12)
        await asyncio.sleep(60)
        assert list(pod.server.adapters) == ["draft"]
        assert pod.loads() == []


async def test_a_restart_while_the_sidecar_was_down_is_noticed(make_pod: PodMaker) -> None:
    """What was lost while nobody watched is restored when the sidecar is back."""
    async with make_pod() as pod:
        await pod.somebody_loads("chat")
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_ADOPTED)), 6)
        await pod.die()
        await pod.server.restart()
        await pod.start()
        assert await pod.until_listed("chat") < 1.0


async def test_a_second_kill_during_the_restore(make_pod: PodMaker) -> None:
    """The plan of the first life is abandoned, and everything is restored into the second, told as one recovery."""
    names = [f"a{n:02}" for n in range(20)]
    server = FakeConfig(check_files=False, load_delay=0.5)
    async with make_pod(server=server) as pod:
        for name in names:
            await pod.somebody_loads(name)
        await pod.until(lambda: len(pod.of(EventName.ADAPTER_ADOPTED)) == 20, 6)
        await pod.server.restart()
        await pod.until(lambda: len(pod.server.adapters) == 5, 30)
        await pod.server.restart()
        await pod.until_listed(*names, within=60)
        await pod.until(lambda: bool(pod.of(EventName.RECOVERY_COMPLETED)), 6)
        await asyncio.sleep(20)
        (recovery,) = pod.of(EventName.RECOVERY_COMPLETED)
        assert sorted(pod.loads()) == names
    assert recovery.fields["restarts"] == 2
    assert recovery.fields["restored"] == 20


async def test_a_long_load_does_not_delay_heartbeats(make_pod: PodMaker) -> None:
    """While one load takes a minute, heartbeats keep their cadence and its adapter is not sent twice."""
    async with make_pod(DECLARED, server=FakeConfig(check_files=False, load_delay=60)) as pod:
        stamps: set[float] = set()
        for _ in range(600):
            await asyncio.sleep(0.1)
            stamps |= {status.beat_at for status in pod.board.statuses()}
        await pod.until_listed("sql")
        assert pod.loads() == ["sql"]
    assert len(stamps) >= 11


async def test_failures_back_off_and_hold_up_nobody(make_pod: PodMaker) -> None:
    """An adapter whose files are missing is tried 1, 2, 4, ... 60 s apart; the others are loaded at once."""
    adapters = "adapters: [{name: bad, path: /adapters/bad, priority: 9}, {name: good, path: /adapters/good}]"
    async with make_pod(adapters) as pod:
        missing = {"error": {"message": "No adapter found for /adapters/bad", "type": "NotFoundError", "code": 404}}
        pod.server.override(*LOAD, canned(404, missing), times=1)
        took = await pod.until_listed("bad", "good")
        assert took == pytest.approx(1.0, abs=0.2)
        pod.somebody_unloads("bad")
        pod.server.override(*LOAD, canned(404, missing), times=None)
        failures = len(pod.of(EventName.RESTORE_FAILED))
        await asyncio.sleep(600)
        at = [one.at for one in pod.of(EventName.RESTORE_FAILED)][failures:]
        gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
    # It had failed once, and was not listed for the ten minutes after which that is forgotten.
    assert gaps[:5] == pytest.approx([2, 4, 8, 16, 32], abs=0.2)
    assert gaps[5:] == pytest.approx([60.0] * len(gaps[5:]), abs=0.2)


async def test_a_refused_adapter_is_parked(make_pod: PodMaker) -> None:
    """A load refused for what the adapter is comes again only after ten minutes."""
    async with make_pod(DECLARED) as pod:
        rank = {"error": {"message": "LoRA rank 64 is greater than max_lora_rank 16.", "code": 500}}
        pod.server.override(*LOAD, canned(500, rank), times=None)
        await asyncio.sleep(599)
        assert len(pod.of(EventName.RESTORE_FAILED)) == 1
        await asyncio.sleep(2)
        assert len(pod.of(EventName.RESTORE_FAILED)) == 2


async def test_a_sleeping_engine_is_left_alone(make_pod: PodMaker) -> None:
    """No load reaches an engine that sleeps; loads resume by themselves when it is awake."""
    async with make_pod(DECLARED, server=FakeConfig(check_files=False, dev_mode=True, gpu=True)) as pod:
        pod.server.asleep = 1
        await asyncio.sleep(60)
        assert pod.loads() == []
        assert [c.type for c in pod.status.conditions] == [ConditionType.ENGINE_ASLEEP]
        pod.server.asleep = None
        await pod.until_listed("sql", within=6)
        await pod.until(lambda: pod.status.conditions == (), 6)


async def test_a_hung_server_is_neither_hammered_nor_reloaded(make_pod: PodMaker) -> None:
    """A server that stops answering and goes on later is the same life: nothing is loaded into it again."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        before = len(pod.loads())
        pod.server.override("GET", "/health", hang, times=None)
        await pod.until(lambda: pod.status.work.server.phase is Phase.DOWN, 30)
        pod.server.behave()
        await pod.until(lambda: pod.status.work.server.phase is Phase.UP, 30)
        await asyncio.sleep(20)
        assert len(pod.loads()) == before
        assert pod.of(EventName.SERVER_RESTARTED) == []
        (recovery,) = pod.of(EventName.RECOVERY_COMPLETED)
    assert recovery.fields["lost"] == 0


async def test_a_slow_answer_now_and_then_changes_nothing(make_pod: PodMaker) -> None:
    """One or two timeouts in a row are no outage."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        await pod.until(lambda: pod.status.verdict.value == "steady", 6)
        for _ in range(5):
            pod.server.override("GET", "/health", hang, times=2)
            await asyncio.sleep(40)
        assert pod.of(EventName.SERVER_DOWN) == []


async def test_a_load_that_is_never_answered_is_decided_by_the_listing(make_pod: PodMaker) -> None:
    """After the deadline the load is ambiguous; it took effect, the listing says so, and it is not sent again."""
    server = FakeConfig(check_files=False, load_delay=20)
    async with make_pod(DECLARED, "restore: {timeout: 10s}", server) as pod:
        await pod.until_listed("sql", within=60)
        await pod.until(lambda: bool(pod.of(EventName.RESTORE_SUCCEEDED)), 10)
        assert pod.of(EventName.RESTORE_FAILED)[0].fields["kind"] == "ambiguous"
        assert 1 <= len(pod.loads()) <= 5


async def test_accepted_and_never_listed_backs_off(make_pod: PodMaker) -> None:
    """A server that says yes and lists nothing is believed by its listing."""
    async with make_pod(DECLARED) as pod:
        pod.server.override(*LOAD, canned(200, b"Success"), times=None)
        await asyncio.sleep(200)
        kinds = {one.fields["kind"] for one in pod.of(EventName.RESTORE_FAILED)}
        assert kinds == {"not_listed"}
        assert 4 <= len(pod.loads()) <= 10


async def test_loading_switched_off_is_said_and_not_tried(make_pod: PodMaker) -> None:
    """A server without the load route gets no load, and a condition names the variable to set."""
    async with make_pod(DECLARED, server=FakeConfig(check_files=False, runtime_lora=False)) as pod:
        await asyncio.sleep(60)
        (condition,) = pod.status.conditions
        assert pod.loads() == []
    assert condition.type is ConditionType.RUNTIME_LOADING_DISABLED
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in condition.hint


async def test_an_adapter_removed_from_the_config_is_left_alone(make_pod: PodMaker) -> None:
    """It is not unloaded and not learned; after a restart of the server it does not come back."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        pod.reconfigure("adapters: []")
        await asyncio.sleep(30)
        assert list(pod.server.adapters) == ["sql"]
        await pod.server.restart()
        await asyncio.sleep(60)
        assert list(pod.server.adapters) == []
        assert pod.of(EventName.ADAPTER_ADOPTED) == []


async def test_a_long_outage_is_watched_ever_more_slowly(make_pod: PodMaker) -> None:
    """The server is looked for ten times a second at first, at the heartbeat's pace in the end; one line in 3 hours."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        await pod.server.kill()
        await pod.until(lambda: pod.status.work.server.phase is Phase.DOWN, 6)
        said = len(pod.happened)
        await asyncio.sleep(60)
        early = pod.status.work.server.errors
        await asyncio.sleep(3 * 3600)
        lines = [one for one in pod.happened[said:] if one.event is not EventName.HEARTBEAT_COMPLETED]
        assert [(one.event, one.fields["condition"]) for one in lines] == [(EventName.CONDITION_RAISED, "ServerWedged")]
        before = pod.status.work.server.errors
        await asyncio.sleep(100)
        assert pod.status.work.server.errors - before <= 21
    # Never quicker; a little slower, since virtual time goes on while a real socket is waited for.
    assert 300 <= early <= 620


async def test_loading_that_was_switched_on_by_a_restart_that_nobody_saw(make_pod: PodMaker) -> None:
    """A server that lists nothing before and after is asked anew whether it can load."""
    async with make_pod(DECLARED, server=FakeConfig(check_files=False, runtime_lora=False)) as pod:
        await pod.until(lambda: bool(pod.status.conditions), 6)
        pod.server.config = FakeConfig(check_files=False)
        await asyncio.sleep(0.2)
        await pod.server.restart()
        await pod.until_listed("sql", within=7)
        await pod.until(lambda: pod.status.conditions == (), 6)
