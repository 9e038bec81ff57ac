"""A restore is slowed down only where loading may have ended the server, and its batches double."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.model import Suspect
from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.reconcile.slow_start import HELD, PAUSE
from tests.support.core import World, adapter, declared, desired, failure, rules

NAMES = [f"a{number:03}" for number in range(200)]
BROKEN_OFF = failure(FailureKind.AMBIGUOUS, "reset")


def loaded(count: int = len(NAMES)) -> World:
    """A world in whose server so many adapters are listed, and have been for long."""
    world = World(desired(*map(adapter, NAMES[:count])))
    world.see(*NAMES[:count])
    return world


def restored(world: World, born: float) -> float:
    """Restore everything in another life, each load taking no time; returns the seconds that it took."""
    began = world.now
    listed: list[str] = []
    world.see(start_time=born, after=0.1)
    for _ in range(1000):
        for name in world.restores:
            world.ended(name, late=0.0)
            listed.append(name)
        if len(listed) == len(world.desired.adapters):
            world.see(*listed, start_time=born, after=0.1)
            return world.now - began
        wake_at = world.plan.wake_at
        after = 0.1 if world.restores or wake_at is None else max(0.001, wake_at - world.now)
        world.see(*listed, start_time=born, after=after)
    raise AssertionError(f"{len(listed)} of {len(world.desired.adapters)} are back after {world.now - began} s")


def test_five_restarts_with_no_load_in_flight_slow_nothing_down() -> None:
    """However often the server ends, what it lost is back at once where no load can have been the cause."""
    world = loaded()
    took: list[float] = []
    for born in (200.0, 300.0, 400.0, 500.0, 600.0):
        world.see(*NAMES, start_time=born - 100.0, after=60.0)
        took.append(restored(world, born))

    assert took == pytest.approx([took[0]] * 5)


@pytest.mark.parametrize("count", [1, 2, 7, 20, 200])
def test_after_a_death_amid_a_load_the_batches_double(count: int) -> None:
    """N adapters are back within log2 N + 2 seconds beyond their loads."""
    world = loaded(count)
    world.see(start_time=200.0)
    world.ended(world.restores[0], BROKEN_OFF)
    world.miss()
    world.see(start_time=300.0, after=0.1)

    assert len(world.restores) == 1
    # One is a suspect now, which comes last and alone.
    assert restored(world, 300.0) <= math.log2(count) + 2 + PAUSE + 0.5


def test_batches_are_one_two_four_each_after_a_listing_that_confirms_the_one_before() -> None:
    """Asked for a second after the last load ended: an engine may take that long to die of one."""
    world = loaded(20)
    world.desired = replace(world.desired, suspects={"gone": Suspect("/gone", accused=True)})
    world.in_flight = (adapter(NAMES[0]),)
    sizes = []
    listed: list[str] = []
    world.see(start_time=200.0, after=0.1)
    world.in_flight = ()
    while len(listed) < 19:
        sizes.append(len(world.restores))
        for name in world.restores:
            world.ended(name, late=0.1)
            listed.append(name)
        world.see(*listed, start_time=200.0, after=0.2)
        assert world.restores == []
        assert world.plan.wake_at == pytest.approx(world.now - 0.1 + PAUSE)
        world.see(*listed, start_time=200.0, after=PAUSE)

    assert sizes == [1, 2, 4, 8, 4]
    assert world.restores == [NAMES[0]]


@pytest.mark.parametrize(("lived", "slowly"), [(HELD - 0.1, True), (HELD, False)])
def test_a_server_that_lived_on_after_the_last_load_did_not_die_of_it(lived: float, slowly: bool) -> None:
    """It counts until when a listing has shown it alive: what came after that nobody saw."""
    world = loaded(4)
    world.see(start_time=200.0)
    for name in world.restores:
        world.ended(name, late=0.0)
    world.see(*NAMES[:4], start_time=200.0, after=0.0)
    world.see(*NAMES[:4], start_time=200.0, after=lived)
    world.see(start_time=300.0)

    assert len(world.restores) == (1 if slowly else 4)


def test_full_speed_again_once_a_whole_restore_has_held() -> None:
    """What slowed one restore down does not slow down the next."""
    world = loaded(8)
    world.see(start_time=200.0)
    world.ended(world.restores[0], BROKEN_OFF)
    world.miss()
    restored(world, 300.0)
    world.see(*NAMES[:8], start_time=300.0, after=HELD)
    world.see(*NAMES[:8], start_time=300.0, after=HELD)
    world.see(start_time=400.0)

    assert len(world.restores) == 7


def test_no_innocent_waits_for_a_suspect() -> None:
    """Also one that is found missing while the suspect is being loaded."""
    world = World()
    world.declare(*map(declared, "ab"))
    world.desired = replace(world.desired, suspects={"b": Suspect("/adapters/b", 1)})
    world.see("a")
    assert world.restores == ["b"]
    world.in_flight = (world.desired.adapters["b"],)
    world.see()
    world.see()

    assert world.restores == ["a"]


def test_an_adapter_that_fails_again_and_again_keeps_nobody_away() -> None:
    """Also where it is due again before the listing that lets the next batch go."""
    quick = rules(backoff=BackoffConfig(initial=0.1, max=0.1))
    world = World(desired(*map(adapter, "ab")), quick)
    world.see("a", "b")
    world.in_flight = (adapter("gone"),)
    world.desired = replace(world.desired, suspects={"gone": Suspect("/gone", accused=True)})
    world.see(start_time=200.0, after=0.1)
    world.in_flight = ()
    assert world.restores == ["a"]
    world.ended("a", failure(), late=0.1)
    world.see(start_time=200.0, after=0.2)
    world.see(start_time=200.0, after=PAUSE)

    assert world.restores == ["a", "b"]
