from __future__ import annotations

import pytest

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.observation import Reason
from lora_sidecar.core.outcomes import Accepted, FailureKind, LoadDeferred, SleepState
from tests.support.core import World, declared, failure, rules

ASLEEP = LoadDeferred(SleepState.ASLEEP, "the engine sleeps")
SHORT = rules(backoff=BackoffConfig(initial=1.0, max=60.0, parked=600.0, reset_after=60.0))
BLAMED = [
    FailureKind.FILES,
    FailureKind.NOT_LISTED,
    FailureKind.ENGINE,
    FailureKind.AMBIGUOUS,
    FailureKind.UNCLASSIFIED,
]


def wanting(*names: str) -> World:
    """A world in which `names` are declared and missing, and were given to the restorer once."""
    world = World(policy=SHORT)
    world.declare(*map(declared, names))
    world.see()
    return world


def test_accepted_and_listed_is_restored() -> None:
    """Success is told when the adapter is listed, once, with how long the load took."""
    world = wanting("a")
    world.ended("a", late=2.5)
    assert not world.told(EventName.RESTORE_SUCCEEDED)
    world.see("a")
    world.see("a")

    assert world.told(EventName.RESTORE_SUCCEEDED) == [
        {"adapter": "a", "path": "/adapters/a", "seconds": 2.5, "previous_errors": 0}
    ]
    assert not world.state.loads.attempts


def test_absence_for_one_listing_is_no_second_success() -> None:
    """An adapter that was restored, missed once and is back by itself was restored once."""
    world = wanting("a")
    world.ended("a", failure())
    world.see()
    world.ended("a")
    world.see("a")
    world.see()
    world.see("a")

    assert len(world.told(EventName.RESTORE_SUCCEEDED)) == 1


def test_accepted_and_never_listed_is_a_failure() -> None:
    """A server that says yes and lists nothing is not believed, and not asked at full pace."""
    world = wanting("a")
    for count in range(1, 4):
        world.ended("a")
        plan = world.see()
        assert world.state.loads.attempts["a"].failures == count
        assert world.restores == []
        assert plan.wake_at is not None
        world.see(after=plan.wake_at - world.now)
        assert world.restores == ["a"]

    assert {fields["kind"] for fields in world.told(EventName.RESTORE_FAILED)} == {"not_listed"}
    assert world.condition(ConditionType.ADAPTER_FAILING) is not None


@pytest.mark.parametrize("result", [Accepted(), Accepted(already=True), failure(FailureKind.AMBIGUOUS)])
def test_undecided_load_is_not_sent_again(result: Accepted) -> None:
    """A listing asked for before the load ended says nothing of it: no failure and no other load follows from it."""
    world = wanting("a")
    world.ended("a", result, late=7.0)
    plan = world.see()

    assert world.restores == []
    assert plan.wake_at is None
    assert not [one for one in world.told(EventName.RESTORE_FAILED) if one["kind"] == "not_listed"]


def test_broken_off_load_that_took_effect_is_a_success() -> None:
    """A request that broke off may have done its work: the listing says so, and nothing is sent twice."""
    world = wanting("a")
    world.ended("a", failure(FailureKind.AMBIGUOUS, "reset"), late=4.0)
    world.see("a")
    world.see("a")

    assert world.restores == []
    assert len(world.told(EventName.RESTORE_SUCCEEDED)) == 1


@pytest.mark.parametrize("kind", [FailureKind.ENGINE, FailureKind.AMBIGUOUS, FailureKind.UNCLASSIFIED])
def test_failure_while_the_server_is_away_blames_no_adapter(kind: FailureKind) -> None:
    """What died with the server is tried at once when the same process is back."""
    world = wanting("a")
    world.ended("a", failure(kind))
    world.miss(Reason.TIMEOUT)
    assert world.state.loads.attempts["a"].failures == 0
    world.see()

    assert world.restores == ["a"]


@pytest.mark.parametrize("kind", [FailureKind.FILES, FailureKind.ADAPTER, FailureKind.NOT_LISTED])
def test_failure_that_names_the_adapter_counts_at_any_time(kind: FailureKind) -> None:
    """An answer about the files is about the files, whatever became of the server after it."""
    world = wanting("a")
    world.ended("a", failure(kind))
    world.miss(Reason.TIMEOUT)

    assert world.state.loads.attempts["a"].failures == 1


def test_new_life_starts_afresh() -> None:
    """Waiting and parked adapters are tried at once after a restart: everything about the server may be different."""
    world = wanting("a", "b")
    world.ended("a", failure(FailureKind.ADAPTER))
    world.ended("b", failure(FailureKind.FILES))
    world.see()
    assert world.restores == []
    world.see(start_time=2.0)

    # One, for the server ended soon after they were loaded.
    assert world.restores == ["a"]
    assert not world.state.loads.attempts


@pytest.mark.parametrize("result", [Accepted(), failure(FailureKind.UNAUTHORIZED), failure(), ASLEEP])
def test_outcome_of_a_former_life_says_nothing(result: Accepted) -> None:
    """A reply that comes late from a server that is gone is neither success nor failure."""
    world = wanting("a")
    world.see(start_time=2.0)
    before = world.state
    world.events.clear()
    world.ended("a", result, incarnation=1)
    world.see(start_time=2.0, after=0.0)

    assert world.state == before
    assert world.events == []
    assert world.restores == ["a"]


def test_outcome_that_arrives_with_the_restart_does_not_outlive_it() -> None:
    """A load into the life that just ended is repeated in the next, whatever it said."""
    world = wanting("a", "b")
    world.ended("a")
    world.ended("b", failure(FailureKind.SERVER_SETUP))
    world.see(start_time=2.0)

    assert world.restores == ["a"]
    assert world.state.loads.backoff is None
    assert not world.state.loads.attempts


def test_failures_are_forgotten_only_after_it_stayed_listed() -> None:
    """An adapter that flaps goes on waiting longer each time; one that stays listed is forgiven."""
    world = wanting("a")
    world.ended("a", failure())
    world.see()
    world.ended("a")
    world.see("a")
    world.see("a", after=59.0)
    assert world.state.loads.attempts["a"].failures == 1
    world.see("a", after=1.0)

    assert not world.state.loads.attempts


def test_flapping_does_not_reset_the_wait() -> None:
    """Seen listed for a moment and unloaded again: the next failure counts on from the last one."""
    world = wanting("a")
    world.ended("a", failure())
    world.see()
    world.ended("a")
    world.see("a")
    world.see()
    world.see()
    assert world.restores == ["a"]
    assert world.state.loads.attempts["a"].failures == 1
    world.ended("a", failure())
    world.see()

    assert world.state.loads.attempts["a"].failures == 2
    assert [one["kind"] for one in world.told(EventName.RESTORE_FAILED)] == ["files", "files"]
