"""A heartbeat that is like the last one is the ordinary case: it costs nothing, and misses nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Origin, Suspect, Withdrawn
from lora_sidecar.core.observation import Files, Reason, Sight
from lora_sidecar.reconcile.state import Verdict
from tests.support.core import World, adapter, card, desired, rules

KNOWN = desired(adapter("a"))
GONE = Files(Sight.GONE, looks=2, seen_before=True)


def test_the_same_listing_again_comes_to_nothing() -> None:
    """It is the last one from now on, and the server was last seen well then."""
    world = World(KNOWN)
    world.see("a")
    plan = world.see("a")

    assert (plan.desired, plan.verdict, plan.observed_at, plan.events) == (KNOWN, Verdict.STEADY, world.now, ())
    assert (plan.state.last is not None and plan.state.last.at, plan.state.server.last_good) == (world.now, world.now)


def test_a_calm_heartbeat_tells_that_a_slow_answer_is_over() -> None:
    """Though there is nothing else to say."""
    world = World(KNOWN)
    world.see("a")
    world.miss(Reason.TIMEOUT)
    plan = world.see("a")

    assert (plan.verdict, [one.event for one in plan.events]) == (Verdict.STEADY, [EventName.PROBE_RECOVERED])


def test_a_config_that_asks_for_something_else_is_looked_at_again() -> None:
    """A path that is never replaced, and then may be."""
    world = World(desired(adapter("a", Origin.DECLARED, path="/new")), rules(replace="never"))
    world.see(card("a", "/old"))
    assert not world.plan.retires
    world.policy = rules(replace="always")
    world.see(card("a", "/old"))

    assert [one.name for one in world.plan.retires] == ["a"]


def test_files_that_vanish_under_the_same_listing_are_told() -> None:
    """What is seen of files is as much a cause to look as the listing."""
    world = World(KNOWN)
    world.see("a")
    world.files = {"/adapters/a": GONE}
    world.see("a")

    assert world.condition(ConditionType.ADAPTER_FILES_MISSING) is not None


def _missed() -> World:
    world = World(desired(adapter("a"), adapter("b")))
    world.see("a", "b")
    world.see("a")
    return world


def _told_to_unload() -> World:
    world = World(replace(KNOWN, withdrawn={"w": Withdrawn()}))
    world.see("a", "w")
    return world


def _suspected() -> World:
    world = World(replace(KNOWN, suspects={"a": Suspect("/adapters/a", 1)}))
    world.see("a")
    return world


def _reborn() -> World:
    world = World(KNOWN)
    world.see("a")
    world.see("a", start_time=200.0)
    return world


def _without_files() -> World:
    world = World(KNOWN)
    world.files = {"/adapters/a": GONE}
    world.see("a")
    return world


def _elsewhere() -> World:
    world = World(desired(adapter("a", Origin.DECLARED)))
    world.see(card("a", "/other"))
    return world


def _to_be_pruned() -> World:
    world = World(replace(KNOWN, orphaned={"r": "/adapters/r"}), rules(prune=True))
    world.see("a", "r")
    return world


@pytest.mark.parametrize(
    "situation",
    [_missed, _told_to_unload, _suspected, _reborn, _without_files, _elsewhere, _to_be_pruned],
    ids=lambda situation: situation.__name__.strip("_"),
)
def test_what_may_change_with_time_is_not_calm(situation: Callable[[], World]) -> None:
    """Nothing is to be restored, and yet the same listing again may come to something."""
    world = situation()
    assert world.plan.verdict is Verdict.STEADY
    assert world.state.settled is None


def test_what_waits_for_nothing_is_calm() -> None:
    """A withdrawn adapter that the server was told of, and a released one where nothing is pruned."""
    known = replace(KNOWN, withdrawn={"w": Withdrawn(pending=False)}, orphaned={"r": "/adapters/r"})
    world = World(known)
    world.see("a", "r")
    world.see("a", "r")
    assert world.state.settled is not None

    pruning = World(KNOWN, rules(prune=True))
    pruning.see("a")
    pruning.see("a")
    assert pruning.state.settled is not None


def test_only_a_life_that_is_known_or_lost_something_counts_as_one() -> None:
    """After an outage without a start time a restart is assumed; where all is listed it may have been none."""
    assert len(_reborn().state.restarts) == 1
    for listed, lives in ((["a", "b"], 0), (["a"], 1), ([], 1)):
        world = World(desired(adapter("a"), adapter("b"), start_time=None))
        world.see("a", "b", start_time=None)
        world.miss()
        world.see(*listed, start_time=None)
        assert len(world.told(EventName.SERVER_RESTARTED)) == 1
        assert len(world.state.restarts) == lives


def test_vanished_files_are_only_told_unless_the_config_says_more() -> None:
    """The adapter still answers: to unload it is for the config to say, and waits while the sidecar is paused."""
    assert _without_files().plan.unloads == ()
