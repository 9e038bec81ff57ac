from __future__ import annotations

import pytest

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Suspect
from lora_sidecar.core.observation import Reason
from lora_sidecar.core.outcomes import Accepted, FailureKind
from lora_sidecar.reconcile.slow_start import PAUSE
from tests.support.core import World, adapter, declared, desired, failure

BROKEN_OFF = failure(FailureKind.AMBIGUOUS, "reset")


def died_loading(world: World, name: str, life: float) -> None:
    """The server dies while an adapter is loaded, and answers again in another life."""
    world.ended(name, BROKEN_OFF)
    world.miss()
    world.see(start_time=life)


def three() -> World:
    """A world with three declared adapters, in the server's first life."""
    world = World()
    world.declare(*map(declared, "abc"))
    world.see()
    return world


@pytest.mark.parametrize("kind", [kind for kind in FailureKind if kind is not FailureKind.AMBIGUOUS])
def test_only_a_load_that_broke_off_accuses(kind: FailureKind) -> None:
    """What the server answered it outlived, even where its answer is that the engine is dead."""
    world = three()
    world.ended("a", failure(kind))
    world.miss(Reason.RESET)
    world.see(start_time=200.0)

    assert world.desired.suspects == {}


def test_an_accusation_is_durable_before_it_is_decided() -> None:
    """It is in desired from the heartbeat on at which the load is known to have broken off."""
    world = three()
    world.ended("a", BROKEN_OFF)
    world.miss()

    assert world.desired.suspects == {"a": Suspect("/adapters/a", 0, accused=True)}


@pytest.mark.parametrize("life", [100.0, 200.0])
def test_the_next_listing_decides(life: float) -> None:
    """The same life of the server acquits, another one is a death."""
    world = three()
    died_loading(world, "a", life)

    assert world.desired.suspects == ({} if life == 100.0 else {"a": Suspect("/adapters/a", 1)})
    assert len(world.told(EventName.RESTORE_SUSPECTED)) == (life != 100.0)


@pytest.mark.parametrize("life", [100.0, 200.0])
def test_what_was_under_way_at_a_restart_that_nobody_saw_is_suspected(life: float) -> None:
    """In the same life it is a load like any other."""
    world = three()
    world.in_flight = (adapter("gone"), world.desired.adapters["b"])
    before = world.desired
    world.see(start_time=life)

    assert world.desired.suspects == ({} if life == 100.0 else {"b": Suspect("/adapters/b", 1)})
    # What is the same object is not written again.
    assert (world.desired is before) is (life == 100.0)


def test_a_load_of_a_former_life_accuses_nobody_twice() -> None:
    """The load that was found under way at the restart counts once, however late its outcome comes."""
    world = three()
    died_loading(world, "a", 200.0)
    world.ended("a", BROKEN_OFF, incarnation=1)
    world.see(start_time=300.0)

    assert world.desired.suspects["a"].deaths == 1


def test_suspects_wait_for_everyone_else() -> None:
    """A suspect is no part of the plan while anybody else is due, and is alone in it afterwards."""
    world = three()
    died_loading(world, "a", 200.0)
    assert world.restores == ["b"]
    world.ended("b", late=0.1)
    world.see("b", start_time=200.0, after=1.1)
    assert world.restores == ["c"]
    world.ended("c", late=0.2)
    world.see("b", "c", start_time=200.0, after=1.0)
    assert world.restores == []
    assert world.plan.wake_at == pytest.approx(world.now - 1.0 + 0.2 + PAUSE)
    world.see("b", "c", start_time=200.0, after=0.3)
    assert world.restores == ["a"]


def test_two_suspects_are_never_in_one_round() -> None:
    """Between two suspects lies a listing that confirms the first, so that the second is not blamed for it."""
    world = World(desired(*map(adapter, "ab")))
    world.desired = desired(*map(adapter, "ab"), listed=frozenset())
    world.see()
    died_loading(world, "a", 200.0)
    died_loading(world, "b", 300.0)
    assert world.restores == ["a"]
    world.ended("a", Accepted(), late=0.0)
    world.see("a", start_time=300.0, after=0.9)
    assert world.restores == []
    world.see("a", start_time=300.0, after=0.1)
    assert world.restores == ["b"]


def test_the_second_death_quarantines() -> None:
    """It is told once, shown as a condition with its reason, and ends the recovery as a failure does."""
    world = three()
    for life in (200.0, 300.0):
        died_loading(world, "a", life)
    world.see("b", "c", start_time=300.0)

    (told,) = world.told(EventName.RESTORE_QUARANTINED)
    assert (told["adapter"], told["deaths"]) == ("a", 2)
    condition = world.condition(ConditionType.ADAPTER_QUARANTINED)
    assert condition is not None
    assert "a: the server died twice while it was being loaded or probed; held back for 1h" in condition.message
    assert world.restores == []
    assert "a" in world.told(EventName.RECOVERY_COMPLETED)[-1]["failed_adapters"]


def test_another_path_ends_suspicion_of_a_learned_adapter() -> None:
    """Somebody who loads the adapter from elsewhere has loaded another one."""
    world = World(desired(adapter("a"), listed=frozenset()))
    world.see()
    died_loading(world, "a", 200.0)
    world.declare(declared("a", path="/adapters/mended"))

    assert world.desired.suspects == {}
