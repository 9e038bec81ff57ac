"""What several rules have to say of the same heartbeat."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from lora_sidecar.core.model import Suspect
from lora_sidecar.core.observation import Files, Sight
from lora_sidecar.reconcile.beat import BlockReason
from tests.support.core import World, adapter, card, declared, desired, rules

GONE = Files(Sight.GONE, looks=2, seen_before=True)


@pytest.mark.parametrize(("unloads", "displacements"), [(False, 1), (True, 0)])
def test_what_we_unloaded_ourselves_is_no_sign_of_a_full_engine(unloads: bool, displacements: int) -> None:
    """An adapter that leaves as another comes was displaced, unless we unloaded it because its files are gone."""
    known = desired(adapter("a"), adapter("b"), adapter("c"), listed=frozenset("ab"))
    world = World(known, rules(on_files_gone="unload"))
    world.see("a", "b")
    if unloads:
        world.files = {"/adapters/b": GONE, "/adapters/a": Files(Sight.PRESENT)}
        world.see("a", "b")
        assert world.plan.unloads == ("b",)
        world.unloaded("b")
    world.ended("c")
    world.see("a", "c")

    assert world.state.capacity.estimate.displacements == displacements


def test_what_does_not_fit_goes_first_and_suspects_last() -> None:
    """The most important of the innocent are loaded last, and each suspect after all of them."""
    adapters = [adapter(name, priority=priority) for name, priority in (("top", 3), ("mid", 2), ("low", 1), ("bad", 0))]
    known = desired(*adapters, listed=frozenset())
    world = World(replace(known, suspects={"bad": Suspect("/adapters/bad", 1)}), rules(capacity=1))

    assert [one.name for one in world.see().restores] == ["mid", "low"]
    world.see("mid", "low")
    assert world.restores == ["top"]
    world.see("mid", "low", "top")
    assert world.restores == ["bad"]


def test_each_reason_to_hold_back_leaves_the_others() -> None:
    """A suspect that is quarantined, one without files, one of another base model."""
    known = desired(adapter("a"), adapter("b"), adapter("c", base="/models/other"), listed=frozenset())
    world = World(replace(known, suspects={"a": Suspect("/adapters/a", 2)}), rules(on_files_gone="unload"))
    world.files = {"/adapters/b": GONE}
    world.see()

    assert {name: one.reason for name, one in world.state.blocked.items()} == {
        "a": BlockReason.QUARANTINED,
        "b": BlockReason.FILES_GONE,
        "c": BlockReason.BASE_MODEL,
    }
    assert world.restores == []


@pytest.mark.parametrize(("listed", "unloads"), [("/adapters/a", ("a",)), ("/adapters/former", ())])
def test_what_is_listed_from_elsewhere_is_not_unloaded_for_its_files(listed: str, unloads: tuple[str, ...]) -> None:
    """Unloaded, it would be loaded from the new path at once, which is for the policy of replacement to say."""
    world = World(policy=rules(on_files_gone="unload"))
    world.declare(*map(declared, "ab"))
    world.files = {"/adapters/a": GONE, "/adapters/former": GONE, "/adapters/b": Files(Sight.PRESENT)}
    world.see(card("a", listed), "b")

    assert world.plan.unloads == unloads
