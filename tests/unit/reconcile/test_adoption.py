from __future__ import annotations

import pytest

from lora_sidecar.config.settings import AdoptConfig
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Adapter, Origin
from lora_sidecar.core.observation import BaseModel, Listed
from lora_sidecar.core.text import NAME_LENGTH_SHOWN
from lora_sidecar.reconcile.adoption import NAME_LIMIT, PATH_LIMIT
from tests.support.core import BASE, World, adapter, card, declared, desired, rules

OTHER = BaseModel("other", "/models/other")


def refusal(world: World) -> str:
    """What the condition says of the names that were not adopted, empty if it does not hold."""
    condition = world.condition(ConditionType.ADOPTION_REFUSED)
    return "" if condition is None else condition.message


def test_listed_by_someone_else_is_adopted_at_first_sight() -> None:
    """One good listing is enough to remember an adapter, with its path, base model and this life of the server."""
    world = World()
    world.see("a")

    assert world.desired.adapters == {"a": Adapter("a", "/adapters/a", Origin.ADOPTED, base=BASE.root)}
    assert world.desired.listed == {"a"}
    assert world.told(EventName.ADAPTER_ADOPTED) == [{"adapter": "a", "path": "/adapters/a"}]


def test_adopted_under_the_base_model_that_its_card_names() -> None:
    """A server may serve several base models; one that the card names and the server does not list is the first."""
    world = World()
    world.see(card("a", parent="other"), card("b", parent="gone"), bases=(BASE, OTHER))

    assert {name: one.base for name, one in world.desired.adapters.items()} == {"a": OTHER.root, "b": BASE.root}


def test_adopted_without_any_base_model_belongs_to_none() -> None:
    """A listing without a base model leaves the adapter free to be restored anywhere."""
    world = World()
    world.see("a", bases=())

    assert world.desired.adapters["a"].base is None


@pytest.mark.parametrize(
    ("rule", "one", "why"),
    [
        (AdoptConfig(enabled=False), card("a"), "policy.adopt.enabled is false"),
        (AdoptConfig(), card("a", ""), "no path that it could be loaded from"),
        (AdoptConfig(), card("a", "__tensor__"), "no path that it could be loaded from"),
        (AdoptConfig(), card(""), "its name is empty"),
        (AdoptConfig(), card("n" * (NAME_LIMIT + 1)), "more than 256 characters"),
        (AdoptConfig(), card("a\nb"), "control characters"),
        (AdoptConfig(), card("a\ud800"), "control characters"),
        (AdoptConfig(), card("a", "/" + "p" * PATH_LIMIT), "its path has control characters or more than 4096"),
        (AdoptConfig(), card("a", "/a\x1b[2J"), "its path has control characters"),
        (AdoptConfig(names="[a-z]+"), card("a1"), "does not match policy.adopt.names"),
        (AdoptConfig(names="a"), card("ab"), "does not match policy.adopt.names"),
        (AdoptConfig(roots=("/adapters",)), card("a", "/elsewhere/a"), "under none of policy.adopt.roots"),
        (AdoptConfig(roots=("/adapters",)), card("a", "/adapters/../etc"), "under none of policy.adopt.roots"),
        (AdoptConfig(roots=("/adapters",)), card("a", "/adapters-of-others/a"), "under none of policy.adopt.roots"),
        (AdoptConfig(roots=("/adapters",)), card("a", "adapters/a"), "under none of policy.adopt.roots"),
        (AdoptConfig(roots=("/models/X",)), card("a", "/models/a"), "under none of policy.adopt.roots"),
    ],
)
def test_not_adopted_with_the_reason(rule: AdoptConfig, one: Listed, why: str) -> None:
    """What the rules leave out never becomes state, and a condition says why."""
    world = World(policy=rules(adopt=rule))
    world.see(one)

    assert not world.desired.adapters
    assert not world.desired.listed
    assert why in refusal(world)
    assert refusal(world).isprintable()
    assert len(refusal(world)) < 2 * NAME_LENGTH_SHOWN
    assert world.state.drift.unexpected == {one.name}


@pytest.mark.parametrize(
    ("rule", "one"),
    [
        (AdoptConfig(), card("n" * NAME_LIMIT)),
        (AdoptConfig(), card("Überblick 😀/x y")),
        (AdoptConfig(), card("a", "org/name")),
        (AdoptConfig(), card("a", "/".ljust(PATH_LIMIT, "p"))),
        (AdoptConfig(names="a.*"), card("ab")),
        (AdoptConfig(roots=("/adapters/",)), card("a", "/adapters")),
        (AdoptConfig(roots=("/elsewhere", "/adapters")), card("a", "/adapters/x/../a")),
        (AdoptConfig(roots=("/",)), card("a", "/anywhere")),
    ],
)
def test_adopted_at_the_edge_of_the_rules(rule: AdoptConfig, one: Listed) -> None:
    """A rule leaves out what it says and no more."""
    world = World(policy=rules(adopt=rule))
    world.see(one)

    assert set(world.desired.adapters) == {one.name}


def test_learned_adapters_are_bounded_and_others_do_not_count() -> None:
    """The bound is for what clients can cause; the config and the control API go by themselves."""
    world = World(policy=rules(adopt=AdoptConfig(max=2)))
    world.declare(declared("d"))
    world.see("d", "a", "b", "c")
    assert set(world.desired.adapters) == {"d", "a", "b"}
    assert refusal(world) == "c: policy.adopt.max of 2 is reached"

    world.see("d", "b", "c")
    world.see("d", "b", "c")
    assert set(world.desired.adapters) == {"d", "b"}
    world.see("d", "b", "c")
    assert set(world.desired.adapters) == {"d", "b", "c"}
    assert refusal(world) == ""


def test_bound_that_was_lowered_forgets_nothing() -> None:
    """A smaller bound stops adoption and takes nothing away."""
    world = World(policy=rules(adopt=AdoptConfig(max=3)))
    world.see("a", "b", "c")
    world.policy = rules(adopt=AdoptConfig(max=1))
    world.see("a", "b", "c", "d")

    assert set(world.desired.adapters) == {"a", "b", "c"}


@pytest.mark.parametrize("origin", [Origin.ADOPTED, Origin.REQUESTED])
def test_listed_with_another_path_is_followed(origin: Origin) -> None:
    """Somebody loaded the name from elsewhere: that is what a restart loses, so that is what is restored."""
    world = World(desired(adapter("a", origin, priority=7)))
    world.see(card("a", "/new/a"))
    world.see(start_time=2.0)

    assert [(one.name, one.path, one.origin, one.priority) for one in world.plan.restores] == [
        ("a", "/new/a", origin, 7)
    ]
    assert world.told(EventName.ADAPTER_REPLACED) == [{"adapter": "a", "path": "/new/a", "previous": "/adapters/a"}]


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        (AdoptConfig(), ""),
        (AdoptConfig(), "__tensor__"),
        (AdoptConfig(), "/" + "p" * PATH_LIMIT),
        (AdoptConfig(), "/a\n"),
        (AdoptConfig(roots=("/adapters",)), "/etc/a"),
        (AdoptConfig(enabled=False), "/new/a"),
    ],
)
def test_not_followed_to_where_it_would_not_be_adopted(rule: AdoptConfig, path: str) -> None:
    """The rules of adoption hold for the path of a known name, too; the path that was good before is kept."""
    world = World(desired(adapter("a")), rules(adopt=rule))
    before = world.desired
    world.see(card("a", path))

    assert world.desired is before
    assert refusal(world).startswith("a: ")
    assert world.state.drift.replaced == {"a"}
    assert not world.state.drift.unexpected


def test_trailing_slash_is_no_other_path() -> None:
    """A path is listed as it was sent: a slash at its end makes no other folder of it."""
    world = World(desired(adapter("a"), adapter("d", Origin.DECLARED)))
    before = world.desired
    world.see(card("a", "/adapters/a/"), card("d", "/adapters/d//"))

    assert world.desired is before
    assert not world.state.drift


def test_declared_path_is_never_followed_and_the_difference_is_said() -> None:
    """The config's path holds; what is loaded is left alone until somebody unloads it."""
    world = World()
    world.declare(declared("a"))
    world.see(card("a", "/other/a"))

    assert world.desired.adapters["a"].path == "/adapters/a"
    assert world.restores == []
    differs = world.condition(ConditionType.ADAPTER_PATH_DIFFERS)
    assert differs is not None
    assert differs.message == "a: listed with another path than the configured /adapters/a; policy.replace is never"
    world.see()
    world.see()
    assert [one.path for one in world.plan.restores] == ["/adapters/a"]
    assert world.condition(ConditionType.ADAPTER_PATH_DIFFERS) is None


def test_followed_to_another_base_model() -> None:
    """An adapter that is listed under the base model of today belongs to it."""
    world = World(desired(adapter("a")))
    world.see(card("a", parent="other"), bases=(OTHER,))
    assert world.desired.adapters["a"].base == OTHER.root
    assert not world.told(EventName.ADAPTER_REPLACED)
    world.see(bases=(OTHER,), start_time=2.0)

    assert world.restores == ["a"]


# What is removed from the config.


def released() -> World:
    """A world in which `a` was declared and loaded, and then removed from the config."""
    world = World()
    world.declare(declared("a"))
    world.see("a")
    world.declare()
    world.see("a")
    return world


def test_released_is_left_loaded_and_not_taken_back() -> None:
    """Removed from the config: not unloaded, no longer ours, and not adopted from the listing that still has it."""
    world = released()
    for _ in range(5):
        world.see("a")

    assert not world.desired.adapters
    assert world.desired.orphaned == {"a": "/adapters/a"}
    assert not world.told(EventName.ADAPTER_ADOPTED)
    assert not world.state.drift
    assert len(world.told(EventName.ADAPTER_ORPHANED)) == 1


def test_released_is_not_restored_after_a_restart() -> None:
    """What nobody asks for any more is not brought back."""
    world = released()
    world.see(start_time=2.0)

    assert world.restores == []
    assert not world.desired.orphaned


@pytest.mark.parametrize("start_time", [100.0, 2.0])
def test_released_is_adopted_once_it_has_left_and_come_back(start_time: float) -> None:
    """Loaded again by somebody after it was gone, it is like any other, whether it left by unload or restart."""
    world = released()
    world.see("b", start_time=start_time)
    world.see("a", "b", start_time=start_time)

    assert set(world.desired.adapters) == {"a", "b"}
    assert world.desired.adapters["a"].origin is Origin.ADOPTED


def test_released_and_listed_with_another_path_is_adopted() -> None:
    """Another path shows that somebody loaded it anew."""
    world = released()
    world.see(card("a", "/new/a"))

    assert world.desired.adapters["a"].path == "/new/a"
    assert not world.desired.orphaned


def test_released_while_its_load_is_under_way_is_not_taken_for_a_strangers() -> None:
    """A load that takes effect after the adapter was removed from the config is still ours, and not adopted."""
    world = World()
    world.declare(declared("a"))
    world.see()
    world.declare()
    world.see()
    world.see("a")

    assert not world.desired.adapters
    assert world.desired.orphaned == {"a": "/adapters/a"}


def test_released_and_declared_again_is_ours_again() -> None:
    """Putting an adapter back into the config takes the release back."""
    world = released()
    world.declare(declared("a"))
    world.see("a")

    assert world.desired.adapters["a"].origin is Origin.DECLARED
    assert not world.desired.orphaned


def test_released_outlasts_our_own_restart() -> None:
    """Our own restart is no reason to adopt what was removed from the config."""
    world = released()
    world.restart_ourselves()
    world.see("a")

    assert not world.desired.adapters
