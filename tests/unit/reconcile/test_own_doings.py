"""What this program did itself, or had under way when things changed, is held against nobody else."""

from __future__ import annotations

import pytest

from lora_sidecar.control.requests import Load, request
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Origin
from lora_sidecar.core.observation import Files, Sight
from lora_sidecar.core.outcomes import Accepted, FailureKind
from tests.support.core import World, adapter, card, declared, desired, failure, rules

SAFE = "0.32.0"
GONE = Files(Sight.GONE, looks=2, seen_before=True)
REFUSED = failure(FailureKind.UNAUTHORIZED, "Unauthorized", 401)


def defusing(*names: str) -> World:
    """A world that unloads adapters whose files are gone; those of `names` are learned and listed, the first is a bomb.

    The others' files are there, so that it is no volume that went away.
    """
    world = World(desired(*map(adapter, names)), rules(on_files_gone="unload"))
    world.see(*names)
    world.files = {f"/adapters/{name}": Files(Sight.PRESENT, "marks") for name in names}
    world.files[f"/adapters/{names[0]}"] = GONE
    return world


def test_a_pruned_adapter_that_is_requested_meanwhile_is_not_forgotten() -> None:
    """The unload that was under way was ours: the adapter is lost by it, and loaded again."""
    world = World(policy=rules(replace="safe", prune=True))
    world.declare(declared("sql"), declared("chat"))
    world.see("sql", "chat", version=SAFE)
    world.declare(declared("chat"))
    world.see("sql", "chat", version=SAFE)
    assert [one.name for one in world.plan.retires] == ["sql"]
    world.desired, _ = request(world.desired, Load("sql", "/adapters/sql"), "/models/base")
    world.see("sql", "chat", version=SAFE)
    world.retired("sql")
    world.see("chat", version=SAFE)
    assert world.restores == ["sql"]
    for _ in range(3):
        world.see("chat", version=SAFE)
    assert world.told(EventName.ADAPTER_FORGOTTEN) == []
    assert world.desired.adapters["sql"].origin is Origin.REQUESTED


def test_a_defused_adapter_whose_files_come_back_at_that_moment_is_not_forgotten() -> None:
    """Its unload was ours, though no plan asks for it any more when it takes effect."""
    world = defusing("a", "b")
    assert world.see("a", "b").unloads == ("a",)
    world.files["/adapters/a"] = Files(Sight.PRESENT, "marks")
    world.see("a", "b")
    world.unloaded("a")
    world.see("b")
    assert world.restores == ["a"]
    world.see("b")
    assert world.told(EventName.ADAPTER_FORGOTTEN) == []


@pytest.mark.parametrize("result", [REFUSED, Accepted()])
def test_a_defusing_that_comes_to_nothing_is_tried_again_slowly(result: Accepted) -> None:
    """Refused, or said to be done while the adapter stays listed: not at every heartbeat, and each end asks for one."""
    world = defusing("a", "b")
    tries = 0
    for _ in range(100):
        tries += len(world.see("a", "b", after=0.01).unloads)
        if world.plan.unloads:
            world.unloaded("a", result)
    assert tries == 1
    for _ in range(30):
        tries += len(world.see("a", "b").unloads)
    assert tries > 1


def test_a_load_from_a_former_path_says_nothing_of_the_new_one() -> None:
    """The config gave the name another path while the load was under way: its refusal parks nobody."""
    world = World()
    world.declare(declared("sql", path="/adapters/old"))
    world.see()
    world.declare(declared("sql", path="/adapters/new"))
    world.ended("sql", failure(FailureKind.ADAPTER, "rank 64", 500), path="/adapters/old")
    world.see()
    assert [(one.name, one.path) for one in world.plan.restores] == [("sql", "/adapters/new")]
    assert world.condition(ConditionType.ADAPTER_FAILING) is None
    assert [said["path"] for said in world.told(EventName.RESTORE_FAILED)] == ["/adapters/old"]


def test_a_load_from_a_former_path_accuses_nobody() -> None:
    """The server died of another path than the one that is desired now."""
    world = World()
    world.declare(declared("sql", path="/adapters/old"))
    world.see()
    world.in_flight = tuple(world.plan.restores)
    world.declare(declared("sql", path="/adapters/new"))
    world.miss()
    world.ended("sql", failure(FailureKind.AMBIGUOUS, "reset"), path="/adapters/old")
    world.miss()
    world.in_flight = ()
    world.see(start_time=200.0)
    assert world.desired.suspects == {}


def test_a_load_of_the_former_path_in_a_replacement_that_is_undone_accuses_nobody() -> None:
    """What the server died of is what was listed before, and not what the config asks for."""
    world = World(policy=rules(replace="safe"))
    world.declare(declared("sql", path="/adapters/new"))
    old = card("sql", "/adapters/old")
    world.see(old, version=SAFE)
    world.retired("sql")
    world.see(version=SAFE)
    world.ended("sql", failure(FailureKind.ADAPTER, "rank 64", 500))
    world.see(version=SAFE)
    assert [one.path for one in world.plan.restores] == ["/adapters/old"]
    world.ended("sql", failure(FailureKind.AMBIGUOUS, "reset"), path="/adapters/old")
    world.miss()
    world.see(start_time=200.0, version=SAFE)
    assert world.desired.suspects == {}
    assert [one.path for one in world.plan.restores] == ["/adapters/new"]


def vanishing_while_loading(world: World, gone: str, come: str, *left: str) -> None:
    """Between two listings `gone` vanishes, and `come` is listed that we had loaded."""
    world.desired, _ = request(world.desired, Load(come, f"/adapters/{come}"), "/models/base")
    world.see(gone, *left)
    assert come in world.restores
    world.ended(come)
    world.see(come, *left)


def test_unloads_by_others_amid_our_loads_are_no_limit_where_another_load_fitted() -> None:
    """A server that is full exchanges at every load; one load that pushed nothing out shows room."""
    world = World(desired(adapter("a"), adapter("k")))
    world.see("a", "k")
    vanishing_while_loading(world, "a", "b", "k")
    world.see("b", "k")
    world.desired, _ = request(world.desired, Load("c", "/adapters/c"), "/models/base")
    world.see("b", "k")
    world.ended("c")
    world.see("b", "c", "k")
    vanishing_while_loading(world, "b", "d", "c", "k")
    assert world.state.capacity.estimate.fit is None


def test_what_we_unload_ourselves_is_no_sign_of_a_limit() -> None:
    """Adapters whose files went, and others loaded at the same time, leave as much room as there was."""
    world = defusing("a", "b", "c")
    for gone, come in (("a", "d"), ("b", "e"), ("c", "f")):
        left = [name for name in "abcdef" if name in world.desired.listed and name != gone]
        world.files[f"/adapters/{gone}"] = GONE
        world.desired, _ = request(world.desired, Load(come, f"/adapters/{come}"), "/models/base")
        assert gone in world.see(gone, *left).unloads
        world.unloaded(gone)
        world.ended(come)
        world.files[f"/adapters/{come}"] = Files(Sight.PRESENT, "marks")
        world.see(come, *left)
    assert world.state.capacity.estimate.fit is None
