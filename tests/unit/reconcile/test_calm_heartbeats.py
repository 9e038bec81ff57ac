"""A heartbeat that is like the last one is the ordinary case: it costs nothing, and misses nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Origin, Suspect, Withdrawn
from lora_sidecar.core.observation import Files, Observed, Sight
from lora_sidecar.core.outcomes import FailureKind, LoadDeferred, SleepState
from lora_sidecar.reconcile import reconcile
from lora_sidecar.reconcile.loads import Now
from lora_sidecar.reconcile.replacement import Rule
from lora_sidecar.reconcile.state import Attempt, Plan, Recovery, ServerBackoff, ServerState, State, Verdict
from tests.support.core import World, adapter, card, desired, failure, observed, rules

KNOWN = desired(adapter("a"))
BEFORE = observed(1.0, "a", version="0.32.0")
GONE = Files(Sight.GONE, looks=2, seen_before=True)


def beat(seen: Observed, work: State) -> Plan:
    """One heartbeat."""
    return reconcile.reconcile(KNOWN, seen, work, rules(), outcomes=(), clock=Now(seen.at, 0.0))


CALM = beat(BEFORE, State()).work
AGAIN = replace(BEFORE, at=6.0)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Observed]:
    """The observations that were compared with everything that is desired."""
    compared: list[Observed] = []
    usual = reconcile._plan

    def noting(wanted: Any, seen: Observed, *others: Any) -> Plan:
        compared.append(seen)
        return usual(wanted, seen, *others)

    monkeypatch.setattr(reconcile, "_plan", noting)
    return compared


def test_the_same_listing_again_is_not_compared(planned: list[Observed]) -> None:
    """The last look came to nothing, so this one does; it is the last one from now on."""
    plan = beat(AGAIN, CALM)

    assert (plan.desired, plan.verdict, plan.observed_at, plan.facts) == (KNOWN, Verdict.STEADY, 6.0, ())
    assert plan.work.last is AGAIN
    assert plan.work.server.last_good == 6.0
    assert planned == []


def test_a_calm_heartbeat_tells_what_it_noticed(planned: list[Observed]) -> None:
    """A slow answer before it is over."""
    plan = beat(AGAIN, replace(CALM, server=replace(CALM.server, errors=1)))

    assert (plan.verdict, [fact.event for fact in plan.facts]) == (Verdict.STEADY, [EventName.PROBE_RECOVERED])
    assert planned == []


@pytest.mark.parametrize(
    "change",
    [
        {"last": None},
        {"steady": None},
        {"steady": replace(KNOWN)},
        {"attempts": {"a": Attempt()}},
        {"hold": ServerBackoff(failure(FailureKind.SERVER_SETUP), 1, 9.0)},
        {"withheld": LoadDeferred(SleepState.ASLEEP, "it sleeps")},
        {"recovery": Recovery(0.0, "refused")},
        {"files": {"/adapters/a": GONE}},
        {"server": ServerState(interrupted=True)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_was_left_open_is_looked_at_again(change: dict[str, Any], planned: list[Observed]) -> None:
    """Though the listing is the same."""
    beat(AGAIN, replace(CALM, **change))
    assert planned == [AGAIN]


@pytest.mark.parametrize(
    "change",
    [
        {"adapters": (card("a", "/other"),)},
        {"adapters": (card("a"), card("b"))},
        {"bases": ()},
        {"start_time": None},
        {"version": "0.33.0"},
        {"runtime_loading": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_answer_is_looked_at(change: dict[str, Any], planned: list[Observed]) -> None:
    """Whatever differs in it."""
    seen = replace(AGAIN, **change)
    beat(seen, CALM)
    assert planned == [seen]


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
    world = World(replace(KNOWN, released={"r": "/adapters/r"}), rules(retire=Rule(prune=True)))
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
    assert world.work.steady is None


def test_what_waits_for_nothing_is_calm() -> None:
    """A withdrawn adapter that the server was told of, and a released one where nothing is pruned."""
    known = replace(KNOWN, withdrawn={"w": Withdrawn(pending=False)}, released={"r": "/adapters/r"})
    world = World(known)
    world.see("a", "r")
    assert world.work.steady is world.desired

    pruning = World(KNOWN, rules(retire=Rule(prune=True)))
    pruning.see("a")
    assert pruning.work.steady is KNOWN


def test_only_a_life_that_is_known_or_lost_something_counts_as_one() -> None:
    """After an outage without a start time a restart is assumed; where all is listed it may have been none."""
    assert len(_reborn().work.lives) == 1
    for listed, lives in ((["a", "b"], 0), (["a"], 1), ([], 1)):
        world = World(desired(adapter("a"), adapter("b"), start_time=None))
        world.see("a", "b", start_time=None)
        world.miss()
        world.see(*listed, start_time=None)
        assert len(world.told(EventName.SERVER_RESTARTED)) == 1
        assert len(world.work.lives) == lives


def test_vanished_files_are_only_told_unless_the_config_says_more() -> None:
    """The adapter still answers: to unload it is for the config to say, and waits while the sidecar is paused."""
    assert _without_files().plan.unloads == ()
