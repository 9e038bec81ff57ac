from __future__ import annotations

from msgspec.structs import replace

from lora_sidecar.config.settings import (
    AdoptConfig,
    BackoffConfig,
    Config,
    HeartbeatConfig,
    PolicyConfig,
    RestoreConfig,
)
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Origin, Withdrawn
from lora_sidecar.core.observation import BaseModel
from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.reconcile.policy import Policy
from lora_sidecar.reconcile.state import Verdict
from tests.support.core import BASE, World, adapter, card, declared, desired, failure, rules

OTHER = BaseModel("other", "/models/other")


def test_restores_go_by_priority_then_required_then_name() -> None:
    """What matters most is loaded first, and the order is the same every time."""
    world = World(desired(adapter("late", priority=-1), adapter("b"), adapter("a")))
    world.declare(declared("required", required=True), declared("first", priority=10), declared("c"))
    world.see(start_time=2.0)

    assert world.restores == ["first", "required", "a", "b", "c", "late"]
    (started,) = world.told(EventName.RESTORE_STARTED)
    assert (started["adapters"], started["first"], started["incarnation"]) == (6, "first", 2)
    assert started["names"] == ["a", "b", "c", "first", "late", "required"]


def test_declared_at_a_reload_is_loaded_without_waiting() -> None:
    """An adapter that is new in the config was never listed: there is nothing to wait for."""
    world = World(desired(adapter("a")))
    world.see("a")
    world.declare(declared("c"))
    world.see("a")

    assert world.restores == ["c"]


def test_failing_adapter_of_high_priority_starves_nobody() -> None:
    """While the most important adapter waits, the others are loaded; when it is due, it goes first."""
    world = World()
    world.declare(declared("first", priority=10), declared("b"), declared("c"))
    world.see()
    world.ended("first", failure(FailureKind.AMBIGUOUS))
    world.see(after=2.0)
    assert world.restores == ["b", "c"]
    world.see(after=0.5)

    assert world.restores == ["first", "b", "c"]


def test_steady_heartbeat_says_and_changes_nothing() -> None:
    """A day without events is a day without lines, and without a write: desired is the very same object."""
    world = World(desired(adapter("a"), adapter("r", Origin.REQUESTED)))
    world.declare(declared("d"))
    world.see("a", "r", "d", "e")
    world.events.clear()
    before, work = world.desired, world.state
    for _ in range(100):
        plan = world.see("a", "r", "d", "e")
        assert plan.desired is before
        assert (plan.verdict, plan.restores, plan.wake_at) == (Verdict.STEADY, (), None)
    world.see("e", "d", "r", "a")

    assert world.desired is before
    assert world.events == []
    assert world.state.drift == work.drift


def test_unmended_drift_is_told_once() -> None:
    """A missing, a replaced and an unexpected adapter make one line, however long they last."""
    world = World()
    world.declare(declared("gone"), declared("other"))
    world.events.clear()
    for _ in range(10):
        world.see(card("other", "/x"), card("tensor", "__tensor__"))
    assert world.told(EventName.DRIFT_DETECTED) == [
        {"missing": ["gone"], "replaced": ["other"], "unexpected": ["tensor"]}
    ]
    world.see("other")
    assert len(world.told(EventName.DRIFT_DETECTED)) == 1
    world.see("other", card("tensor", "__tensor__"))

    assert len(world.told(EventName.DRIFT_DETECTED)) == 2


def test_beginning_of_a_restore_is_told_once_in_each_life() -> None:
    """Adapters that come back one by one, or fail and are tried again, begin one restore."""
    world = World()
    world.declare(declared("a"), declared("b"), declared("bad"))
    for listed in ([], ["a"], ["a", "b"], ["a", "b"]):
        world.see(*listed)
    assert len(world.told(EventName.RESTORE_STARTED)) == 1
    world.see(start_time=2.0)

    assert [one["incarnation"] for one in world.told(EventName.RESTORE_STARTED)] == [1, 2]


def test_policy_is_what_the_config_says() -> None:
    """Each part of the config that reconcile goes by reaches it."""
    config = Config(
        servers=(),
        policy=PolicyConfig(adopt=AdoptConfig(max=7), on_external_unload="restore", replace="always", prune=True),
        heartbeat=HeartbeatConfig(interval=9.0),
        restore=RestoreConfig(backoff=BackoffConfig(initial=3.0)),
    )

    expected = Policy(config.policy, BackoffConfig(initial=3.0), HeartbeatConfig(interval=9.0), declares=False)
    assert Policy.of(config) == expected
    assert Policy.of(Config(servers=())) == rules(replace="safe", declares=False)


def test_plan_names_its_life_and_its_listing() -> None:
    """A plan dies with the life of the server that it was made for, and says how old its knowledge is."""
    world = World(desired(adapter("a")))
    plan = world.see(start_time=2.0)

    assert (plan.incarnation, plan.observed_at) == (2, world.now)
    assert (world.miss().incarnation, world.plan.observed_at) == (2, world.now)


def test_learned_on_another_base_model_is_not_loaded() -> None:
    """Another model behind the same port is given no adapter of the former one; it is kept for its return."""
    world = World(desired(adapter("a"), adapter("r", Origin.REQUESTED)))
    world.declare(declared("d"))
    plan = world.see(start_time=2.0, bases=(OTHER,))
    assert (world.restores, plan.verdict) == (["d", "r"], Verdict.RESTORING)
    condition = world.condition(ConditionType.BASE_MODEL_CHANGED)
    assert condition is not None
    assert condition.message == "a: it was adopted on another base model, /models/base"

    world.see("d", "r", start_time=2.0, bases=(OTHER,))
    assert world.plan.verdict is Verdict.WAITING
    world.see("d", "r", start_time=3.0)
    assert world.restores == ["a"]
    assert world.condition(ConditionType.BASE_MODEL_CHANGED) is None


def test_base_model_under_another_served_name_is_the_same() -> None:
    """The root of the base model tells it, whatever it is called today; its name does where the root is another."""
    world = World(desired(adapter("a"), adapter("b", base=BASE.id)))
    world.see(start_time=2.0, bases=(BaseModel("renamed", BASE.root), BaseModel(BASE.id, "/elsewhere")))

    assert world.restores == ["a", "b"]


def test_name_of_a_served_base_model_is_not_loaded() -> None:
    """An adapter with the base model's name would shadow it, or be shadowed: it is not sent, and the reason is said."""
    world = World()
    world.declare(declared(BASE.id), declared("a"))
    world.see()

    assert world.restores == ["a"]
    assert [one.message for one in world.state.conditions] == ["base: its name is that of a served base model"]


def test_a_restore_begins_with_its_first_load() -> None:
    """Not while nothing can be loaded, and another one begins once something is missing again."""
    world = World()
    world.declare(declared("a"))
    world.see(runtime_loading=False)
    assert world.told(EventName.RESTORE_STARTED) == []
    world.see()
    assert len(world.told(EventName.RESTORE_STARTED)) == 1
    world.see("a")
    world.declare(declared("a"), declared("b"))
    world.see("a")

    assert [one["first"] for one in world.told(EventName.RESTORE_STARTED)] == ["a", "b"]


def test_what_was_made_out_at_one_heartbeat_is_known_at_the_next() -> None:
    """What the server evicted, and that an unload which it refused at first is done."""
    world = World(replace(desired(adapter("a"), adapter("b")), withdrawn={"w": Withdrawn()}))
    world.see("a", "b", "w")
    world.unloaded("w", failure(FailureKind.UNAUTHORIZED))
    world.see("a", "b", "w")
    assert set(world.state.unloads) == {"w"}
    world.unloaded("w")
    world.see("a", capacity=1)

    assert world.state.unloads == {}
    assert world.state.capacity.evicted == {"b"}
