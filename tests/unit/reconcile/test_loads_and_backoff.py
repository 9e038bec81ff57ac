from __future__ import annotations

import pytest

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.outcomes import Accepted, FailureKind, LoadDeferred, SleepState
from lora_sidecar.reconcile.state import Verdict
from tests.support.core import World, adapter, declared, desired, failure, rules

ASLEEP = LoadDeferred(SleepState.ASLEEP, "the engine sleeps")
SHORT = rules(backoff=BackoffConfig(initial=1.0, max=60.0, parked=600.0, reset_after=60.0))
BLAMED = [
    FailureKind.FILES,
    FailureKind.NOT_LISTED,
    FailureKind.ENGINE,
    FailureKind.AMBIGUOUS,
    FailureKind.UNCLASSIFIED,
]
HELD = [FailureKind.SERVER_SETUP, FailureKind.UNAUTHORIZED, FailureKind.LOCAL]
BLAMED = [k for k in FailureKind if k not in (*HELD, FailureKind.ADAPTER)]


def wanting(*names: str) -> World:
    """A world in which `names` are declared and missing, and were given to the restorer once."""
    world = World(policy=SHORT)
    world.declare(*map(declared, names))
    world.see()
    return world


@pytest.mark.parametrize("kind", BLAMED)
def test_failed_load_waits_and_is_tried_again(kind: FailureKind) -> None:
    """A failure delays the next load of that adapter, and the plan says until when."""
    world = wanting("a", "b")
    world.ended("a", failure(kind), late=1.0)
    plan = world.see("b", after=2.0)
    assert (world.restores, plan.verdict) == ([], Verdict.WAITING)
    assert plan.wake_at == world.now + 0.5
    assert world.state.loads.attempts["a"].failures == 1

    world.see("b", after=0.4)
    assert world.restores == []
    world.see("b", after=0.1)
    assert world.restores == ["a"]
    assert world.plan.wake_at is None


def test_failures_in_a_row_wait_longer_each_time() -> None:
    """The wait doubles with each failure and is told with each."""
    world = wanting("a")
    waits = []
    for _ in range(8):
        world.ended("a", failure())
        plan = world.see()
        assert plan.wake_at is not None
        waits.append(plan.wake_at - world.now)
        world.see(after=waits[-1])
        assert world.restores == ["a"]

    assert waits == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0])
    assert [fields["consecutive"] for fields in world.told(EventName.RESTORE_FAILED)] == list(range(1, 9))


def test_refused_for_what_it_is_is_parked() -> None:
    """An adapter that the server refuses for its rank is not sent to it every minute."""
    world = wanting("a")
    world.ended("a", failure(FailureKind.ADAPTER, "LoRA rank 64 is greater than max_lora_rank 16.", 500))
    plan = world.see()

    assert plan.wake_at == world.now + 300.0


def test_one_failing_adapter_holds_up_no_other() -> None:
    """While one waits, the others go on, and the plan still wakes for it."""
    world = wanting("a", "b", "c")
    world.ended("a", failure())
    plan = world.see(after=1.0)

    assert world.restores == ["b", "c"]
    assert plan.wake_at == world.now + 0.5


def test_earliest_of_several_waits_is_the_one_to_wake_for() -> None:
    """The next look comes when the first of the waiting adapters is due."""
    world = wanting("a", "b", "c")
    for name, kind in (("a", FailureKind.ADAPTER), ("b", FailureKind.FILES), ("c", FailureKind.ADAPTER)):
        world.ended(name, failure(kind))
    plan = world.see()

    assert plan.wake_at == world.now + 0.5


@pytest.mark.parametrize("kind", HELD)
def test_fault_of_the_server_holds_everything_and_blames_nobody(kind: FailureKind) -> None:
    """A wrong key or a switched-off route is met once, and not by each adapter in turn."""
    world = wanting("a", "b")
    world.ended("a", failure(kind, "not allowed", 401))
    plan = world.see()
    assert (world.restores, plan.wake_at) == ([], world.now + 0.5)
    assert world.state.loads.attempts["a"].failures == 0
    condition = world.condition(ConditionType.LOADING_REFUSED)
    assert condition is not None
    assert condition.message == "not allowed"

    world.see(after=0.5)
    assert world.restores == ["a", "b"]
    world.ended("a", failure(kind, "not allowed", 401))
    assert world.see().wake_at == world.now + 1.0


@pytest.mark.parametrize("result", [Accepted(), failure(FailureKind.FILES), failure(FailureKind.UNCLASSIFIED)])
def test_hold_ends_with_the_first_answer_that_shows_it_is_over(result: Accepted) -> None:
    """A server that takes a load, or refuses it for the adapter's sake, refuses loads no more."""
    world = wanting("a", "b", "c")
    world.ended("a", failure(FailureKind.UNAUTHORIZED))
    world.see()
    world.see(after=1.0)
    world.ended("b", result)
    world.see("b")

    assert world.state.loads.backoff is None
    assert world.condition(ConditionType.LOADING_REFUSED) is None
    assert world.restores == ["a", "c"]


@pytest.mark.parametrize("kind", [FailureKind.ENGINE, FailureKind.AMBIGUOUS])
def test_hold_outlasts_an_answer_that_says_nothing_of_it(kind: FailureKind) -> None:
    """A dead engine does not show that the key is right now."""
    world = wanting("a", "b")
    world.ended("a", failure(FailureKind.UNAUTHORIZED))
    world.ended("b", failure(kind))
    world.see()

    assert world.state.loads.backoff is not None


def test_hold_ends_with_the_life_that_it_was_met_in() -> None:
    """A new process may have been started with other flags: it is asked at once."""
    world = wanting("a")
    world.ended("a", failure(FailureKind.SERVER_SETUP))
    world.see()
    world.see(start_time=2.0)

    assert world.restores == ["a"]


def test_hold_and_sleep_are_forgotten_once_nothing_is_missing() -> None:
    """A refusal that concerns nothing any more is neither shown nor held against the next adapter."""
    world = wanting("a")
    world.ended("a", failure(FailureKind.UNAUTHORIZED))
    world.ended("a", ASLEEP)
    world.see("a")
    assert not world.state.conditions
    world.declare(declared("a"), declared("b"))
    world.see("a")

    assert world.restores == ["b"]
    assert not world.state.conditions


def test_mended_config_deserves_a_fresh_start() -> None:
    """A parked adapter whose path was corrected is tried at once, and the others wait on."""
    world = wanting("a", "b")
    world.ended("a", failure(FailureKind.ADAPTER))
    world.ended("b", failure(FailureKind.ADAPTER))
    world.see()
    world.declare(declared("a", path="/mended/a"), declared("b"))
    world.see()

    assert [one.path for one in world.plan.restores] == ["/mended/a"]


def test_failing_adapter_that_is_no_longer_wanted_is_dropped() -> None:
    """Removed from the config, it is neither tried nor shown."""
    world = wanting("a")
    world.ended("a", failure())
    world.see()
    world.declare()
    world.ended("a", failure())
    world.see()

    assert not world.state.loads.attempts
    assert not world.state.conditions
    assert world.plan.verdict is Verdict.STEADY


@pytest.mark.parametrize("wakefulness", [SleepState.ASLEEP, SleepState.UNCLEAR])
def test_withheld_load_is_planned_again_and_blames_nobody(wakefulness: SleepState) -> None:
    """A load that was not sent is no failure: it stays planned, and the condition says what it waits for."""
    world = wanting("a")
    world.ended("a", LoadDeferred(wakefulness, "asleep"))
    world.see()
    kinds = {SleepState.ASLEEP: ConditionType.ENGINE_ASLEEP, SleepState.UNCLEAR: ConditionType.ENGINE_STATE_UNKNOWN}

    assert world.restores == ["a"]
    assert [one.type for one in world.state.conditions] == [kinds[wakefulness]]
    assert not world.state.loads.attempts


@pytest.mark.parametrize("result", [Accepted(), failure()])
def test_awake_again_is_seen_by_the_first_load_that_is_sent(result: Accepted) -> None:
    """The condition of a sleeping engine ends with the first load that it was given."""
    world = wanting("a", "b")
    world.ended("a", ASLEEP)
    world.see()
    world.ended("a", result)
    world.see()

    assert world.condition(ConditionType.ENGINE_ASLEEP) is None


def test_route_switched_off_means_no_load_at_all() -> None:
    """A server that cannot load at run time is asked for nothing, and the condition names the variable to set."""
    world = World(desired(adapter("a")))
    plan = world.see(start_time=2.0, runtime_loading=False)

    assert (plan.restores, plan.wake_at, plan.verdict) == ((), None, Verdict.WAITING)
    condition = world.condition(ConditionType.RUNTIME_LOADING_DISABLED)
    assert condition is not None
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in condition.hint
    assert set(world.desired.adapters) == {"a"}


def test_route_that_could_not_be_looked_for_is_tried() -> None:
    """Not knowing whether the route exists is no reason to leave adapters unloaded."""
    world = World(desired(adapter("a")))
    world.see(start_time=2.0, runtime_loading=None)

    assert world.restores == ["a"]
