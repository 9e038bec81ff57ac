from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Paused
from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.reconcile.prefix_cache import keys_by_path, refusal
from tests.support.core import BORN, World, card, declared, failure, rules

SAFE = "0.32.0"
OLD, NEW = card("sql", "/adapters/old"), card("sql", "/adapters/new")


def changed(policy: str = "safe", **rule: Any) -> World:
    """A world in which `sql` is listed from the old path and the config has just named a new one."""
    world = World(policy=rules(replace=policy, **rule))
    world.declare(declared("sql", path=OLD.path))
    world.see(OLD, version=SAFE)
    world.declare(declared("sql", path=NEW.path))
    return world


def refused() -> World:
    """The former adapter was unloaded, and the server has refused the new path."""
    world = changed()
    world.see(OLD, version=SAFE)
    world.retired("sql")
    world.see(version=SAFE)
    world.ended("sql", failure(FailureKind.ADAPTER, "LoRA rank 64 is greater than max_lora_rank 16.", 500))
    world.see(version=SAFE)
    return world


def retires(world: World) -> list[str]:
    """The names that the newest plan unloads."""
    return [one.name for one in world.plan.retires]


def sent(world: World) -> list[tuple[str, str]]:
    """What the newest plan loads, with the paths."""
    return [(one.name, one.path) for one in world.plan.restores]


def why(world: World) -> str:
    """What AdapterPathDiffers says, empty where it does not hold."""
    held = world.condition(ConditionType.ADAPTER_PATH_DIFFERS)
    return "" if held is None else held.message


def test_another_path_in_the_config_is_carried_out() -> None:
    """Unloaded, then loaded from the new path as soon as it has left the listing; then nothing more."""
    world = changed()
    world.see(OLD, version=SAFE)
    assert (retires(world), sent(world)) == (["sql"], [])
    assert world.plan.retires[0].successor == world.desired.adapters["sql"]
    world.retired("sql")
    world.see(version=SAFE)
    assert (retires(world), sent(world)) == ([], [("sql", NEW.path)])
    world.ended("sql")
    world.see(NEW, version=SAFE)
    assert (retires(world), sent(world), why(world)) == ([], [], "")
    (told,) = world.told(EventName.ADAPTER_REPLACED)
    assert (told["path"], told["previous"]) == (NEW.path, OLD.path)


@pytest.mark.parametrize("version", ["0.11.1", "0.20.2", "0.30.0", "0.31.0rc1", None, "0.1.dev1+g0f3a", "nightly"])
def test_a_version_that_would_serve_stale_blocks_is_left_alone(version: str | None) -> None:
    """Nothing is unloaded, and the condition says why and what to do instead."""
    world = changed()
    world.see(OLD, version=version)
    assert retires(world) == []
    assert "former weights" in why(world)
    held = world.condition(ConditionType.ADAPTER_PATH_DIFFERS)
    assert held is not None
    assert "name of their own" in held.hint


def test_versions_that_tell_namesakes_apart() -> None:
    """By a number of its own for each load to 0.11.0, by the path from 0.31 on."""
    assert [keys_by_path(v) for v in ("0.7.3", "0.11.0", "0.31.0", "0.32.0+cpu", "1.0.0")] == [True] * 5
    assert [keys_by_path(v) for v in ("0.11.1", "0.11.2", "0.30.9")] == [False] * 3
    assert keys_by_path("0.6.6") is None
    assert refusal("always", "0.20.0") == ""
    assert refusal("never", "0.32.0") == "policy.replace is never"


def test_never_means_never_and_always_means_any_version() -> None:
    """The policy decides where it is not safe."""
    world = changed("never")
    world.see(OLD, version=SAFE)
    assert retires(world) == []
    assert "policy.replace is never" in why(world)
    world = changed("always")
    world.see(OLD, version="0.20.0")
    assert retires(world) == ["sql"]


def test_a_new_path_that_cannot_be_loaded_is_undone() -> None:
    """The former adapter is loaded again at once, the reason stays, and nothing is tried again in this life."""
    world = refused()
    assert sent(world) == [("sql", OLD.path)]
    world.ended("sql")
    for _ in range(200):
        world.see(OLD, version=SAFE)
        assert (retires(world), sent(world)) == ([], [])
    assert "max_lora_rank" in why(world)
    assert "the former one is loaded again" in why(world)
    world.declare(declared("sql", path="/adapters/third"))
    world.see(OLD, version=SAFE)
    assert retires(world) == ["sql"]


def test_a_new_path_that_was_refused_is_not_tried_at_once_when_the_former_one_is_gone() -> None:
    """Undone, and then somebody unloads the former one: the refused path waits as long as after its refusal."""
    world = refused()
    world.ended("sql")
    world.see(OLD, version=SAFE)
    for _ in range(20):
        world.see(version=SAFE)
        assert sent(world) == []

    world.see(version=SAFE, after=world.policy.backoff.parked)
    assert sent(world) == [("sql", NEW.path)]


def test_when_neither_path_loads_both_are_tried_with_backoff() -> None:
    """New, former, then in turns and ever more slowly: whatever is mended first is served."""
    world = changed()
    world.see(OLD, version=SAFE)
    world.retired("sql")
    tried: list[tuple[float, str]] = []
    for _ in range(120):
        world.see(version=SAFE)
        for _, path in sent(world):
            tried.append((world.now, path))
            world.ended("sql", failure(FailureKind.FILES))
    paths = [path for _, path in tried]
    assert paths[:6] == [NEW.path, OLD.path] * 3
    assert tried[-1][0] - tried[-2][0] >= 30


def test_an_unload_that_is_refused_changes_nothing() -> None:
    """The server's word is the reason, and it is asked again a minute later: its key may be another one by then."""
    world = changed()
    world.see(OLD, version=SAFE)
    world.retired("sql", failure(FailureKind.UNAUTHORIZED, "Unauthorized", 401))
    for _ in range(10):
        world.see(OLD, version=SAFE)
        assert (retires(world), sent(world)) == ([], [])
    assert "Unauthorized" in why(world)
    world.see(OLD, after=61.0, version=SAFE)
    assert retires(world) == ["sql"]


def test_files_that_are_not_there_yet_are_waited_for() -> None:
    """Nothing was unloaded for them, so it is tried again every minute."""
    world = changed()
    world.see(OLD, version=SAFE)
    world.retired("sql", failure(FailureKind.FILES, "there is no adapter_config.json in /adapters/new"))
    world.see(OLD, version=SAFE)
    assert retires(world) == []
    assert "no adapter_config.json" in why(world)
    world.see(OLD, after=61.0, version=SAFE)
    assert retires(world) == ["sql"]


def test_nothing_that_works_is_given_up_for_what_has_just_failed() -> None:
    """The declared path failed, and somebody loaded the adapter from another one: it stays until a next try is due."""
    world = World(policy=rules(replace="safe"))
    world.declare(declared("sql", path=NEW.path))
    world.see(version=SAFE)
    for _ in range(4):
        world.ended("sql", failure(FailureKind.FILES), late=0.0)
        world.see(version=SAFE, after=0.1)
    due_at = world.state.loads.attempts["sql"].not_before

    world.see(OLD, version=SAFE, after=0.1)
    assert retires(world) == []
    assert "it waits, for its last load failed" in why(world)

    world.see(OLD, version=SAFE, after=due_at - world.now)
    assert retires(world) == ["sql"]


def test_what_somebody_loads_again_from_elsewhere_stays() -> None:
    """Once replaced in a life, it is not replaced again in that life, so that two controllers do not fight."""
    world = changed()
    world.see(OLD, version=SAFE)
    world.retired("sql")
    world.see(version=SAFE)
    world.ended("sql")
    world.see(NEW, version=SAFE)
    for _ in range(20):
        world.see(OLD, version=SAFE)
        assert (retires(world), sent(world)) == ([], [])
    assert "somebody loaded it from another path again" in why(world)


def test_a_restart_in_the_middle_loads_from_the_new_path() -> None:
    """A new life knows nothing of the former path."""
    world = changed()
    world.see(OLD, version=SAFE)
    world.retired("sql")
    world.see(start_time=BORN + 50, version=SAFE)
    assert (retires(world), sent(world)) == ([], [("sql", NEW.path)])


def test_our_own_restart_in_the_middle_loads_from_the_new_path() -> None:
    """What was unloaded to be replaced is declared, so it is restored, also by the next process."""
    world = changed()
    world.see(OLD, version=SAFE)
    world.retired("sql")
    world.restart_ourselves()
    world.see(version=SAFE)
    world.see(version=SAFE)
    assert sent(world) == [("sql", NEW.path)]


def test_one_replacement_at_a_time_and_none_while_something_is_missing() -> None:
    """Each is a gap for those who ask for the name."""
    world = World(policy=rules(replace="safe"))
    world.declare(declared("a", path="/o/a"), declared("b", path="/o/b"), declared("c"))
    world.see(card("a", "/o/a"), card("b", "/o/b"), "c", version=SAFE)
    world.declare(declared("a", path="/n/a"), declared("b", path="/n/b"), declared("c"), declared("d"))
    world.see(card("a", "/o/a"), card("b", "/o/b"), "c", version=SAFE)
    assert (retires(world), sent(world)) == ([], [("d", "/adapters/d")])
    world.ended("d")
    world.see(card("a", "/o/a"), card("b", "/o/b"), "c", "d", version=SAFE)
    assert retires(world) == ["a"]
    world.see(card("a", "/o/a"), card("b", "/o/b"), "c", "d", version=SAFE)
    assert retires(world) == ["a"]
    assert "waits for its turn" in why(world)


def removed(*left: str, **rule: Any) -> World:
    """A world in which `sql` and `chat` were declared, `learned` was adopted, and `left` are still declared."""
    world = World(policy=rules(replace="safe", declares=bool(left), **rule))
    world.declare(declared("sql"), declared("chat"))
    world.see("sql", "chat", "learned", version=SAFE)
    world.declare(*(declared(name) for name in left))
    return world


def test_what_the_config_removes_is_pruned_where_it_asks_for_that() -> None:
    """The declared one that was removed, and nothing learned; by default it stays loaded."""
    world = removed("chat", prune=True)
    world.see("sql", "chat", "learned", version=SAFE)
    assert [(one.name, one.successor) for one in world.plan.retires] == [("sql", None)]
    world.retired("sql")
    world.see("chat", "learned", version=SAFE)
    assert (retires(world), sent(world)) == ([], [])
    assert "sql" not in world.desired.orphaned
    kept = removed("chat")
    kept.see("sql", "chat", "learned", version=SAFE)
    assert retires(kept) == []


def test_an_emptied_config_prunes_nothing() -> None:
    """The last adapter removed looks like a mistake: a condition says what stays."""
    world = removed(prune=True)
    world.see("sql", "chat", "learned", version=SAFE)
    assert retires(world) == []
    held = world.condition(ConditionType.PRUNE_REFUSED)
    assert held is not None
    assert "chat, sql stay loaded" in held.message


def test_a_removed_adapter_that_somebody_loaded_from_elsewhere_is_not_pruned() -> None:
    """It is another adapter now, and somebody's."""
    world = removed("chat", prune=True)
    world.see(card("sql", "/elsewhere"), "chat", version=SAFE)
    assert retires(world) == []


def test_a_prune_that_fails_is_tried_again_slowly() -> None:
    """Once a minute, and never while the listing is older than the last try."""
    world = removed("chat", prune=True)
    world.see("sql", "chat", version=SAFE)
    world.retired("sql", failure(FailureKind.UNCLASSIFIED, "no", 500))
    world.see("sql", "chat", version=SAFE)
    assert retires(world) == []
    world.see("sql", "chat", after=61.0, version=SAFE)
    assert retires(world) == ["sql"]
    assert len(world.told(EventName.UNLOAD_FAILED)) == 1


def test_a_pause_begins_no_replacement_and_holds_one_that_was_begun() -> None:
    """Nothing is unloaded while an operator wants nothing to be, and the reason is theirs; afterwards it goes on."""
    world = changed()
    world.desired = replace(world.desired, paused=Paused("maintenance"))
    world.see(OLD, version=SAFE)
    assert (retires(world), world.state.replacements.by_name) == ([], {})
    assert "paused" in why(world)
    world.desired = replace(world.desired, paused=None)
    world.see(OLD, version=SAFE)
    assert retires(world) == ["sql"]
    world.desired = replace(world.desired, paused=Paused("maintenance"))
    world.see(OLD, version=SAFE)
    assert retires(world) == []
    assert "paused" in why(world)
    world.desired = replace(world.desired, paused=None)
    world.see(OLD, version=SAFE)
    assert retires(world) == ["sql"]
