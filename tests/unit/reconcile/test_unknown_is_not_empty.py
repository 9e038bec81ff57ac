from __future__ import annotations

import pytest

from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Origin
from lora_sidecar.core.observation import Reason
from lora_sidecar.core.outcomes import Failure, FailureKind
from lora_sidecar.reconcile.state import Verdict
from tests.support.core import World, adapter, declared, desired, failure

EVERY = [adapter("a"), adapter("b", Origin.DECLARED), adapter("c", Origin.REQUESTED)]


@pytest.mark.parametrize("reason", list(Reason))
def test_unknown_changes_nothing_that_is_durable(reason: Reason) -> None:
    """Whatever the reason, and however often: the very same desired, nothing to load, nothing to wait for."""
    world = World(desired(*EVERY))
    world.see("a", "b", "c")
    before = world.desired
    for _ in range(20):
        plan = world.miss(reason)
        assert plan.desired is before
        assert (plan.restores, plan.wake_at, plan.verdict) == ((), None, Verdict.UNKNOWN)

    assert world.see("a", "b", "c").desired is before


@pytest.mark.parametrize("reason", list(Reason))
def test_unknown_before_anything_was_known_does_nothing(reason: Reason) -> None:
    """A server that has not answered yet is given no load, however much is declared."""
    world = World()
    world.declare(declared("a"))

    assert world.miss(reason).restores == ()


@pytest.mark.parametrize("kind", list(FailureKind))
def test_outcome_at_an_unknown_still_plans_nothing(kind: FailureKind) -> None:
    """A load that ended while the server is in doubt is no reason to send another."""
    world = World(desired(*EVERY))
    world.see("b", "c", start_time=2.0)
    world.ended("a", Failure(kind, "why"))
    before = world.desired
    plan = world.miss()

    assert plan.desired.adapters is before.adapters
    assert (plan.desired is before) == (kind is not FailureKind.AMBIGUOUS)
    assert plan.restores == ()


def test_unknown_neither_counts_nor_clears_a_miss() -> None:
    """What was missed once before an unknown is missed once after it."""
    world = World(desired(*EVERY))
    world.see("b", "c")
    world.miss(Reason.TIMEOUT)

    assert world.state.missed == {"a": 1}


def test_plan_of_an_unknown_keeps_what_is_under_way() -> None:
    """Failures, holds and conditions outlast an unknown: only a good listing or a restart ends them."""
    world = World()
    world.declare(declared("a"))
    world.see()
    world.ended("a", failure())
    world.see()
    attempts, conditions = world.state.loads.attempts, world.state.conditions
    world.miss(Reason.SERVER_ERROR)

    assert attempts
    assert conditions
    assert world.state.loads.attempts == attempts
    assert world.state.conditions == conditions


@pytest.mark.parametrize(
    ("reason", "accused"), [(Reason.REFUSED, True), (Reason.ENGINE_DEAD, True), (Reason.SERVER_ERROR, False)]
)
def test_only_the_death_of_the_server_accuses_what_was_under_way(reason: Reason, accused: bool) -> None:
    """A load that is under way while the server only answers badly has killed nobody."""
    world = World(desired(*EVERY))
    world.see("b", "c")
    world.in_flight = (adapter("a"),)
    world.miss(reason)

    assert {name: one.accused for name, one in world.desired.suspects.items()} == ({"a": True} if accused else {})


def test_what_an_unknown_shows_is_told() -> None:
    """That the server is away, and each load that failed, although nothing is planned."""
    world = World(desired(*EVERY))
    world.see("b", "c", start_time=2.0)
    world.ended("a", failure(message="no such file"))
    plan = world.miss(Reason.REFUSED, detail="nobody listens")

    assert [fact.event for fact in plan.events] == [EventName.SERVER_DOWN, EventName.RESTORE_FAILED]
    assert plan.events[0].fields["detail"] == "nobody listens"
