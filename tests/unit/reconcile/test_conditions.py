from __future__ import annotations

import pytest

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.observation import BaseModel
from lora_sidecar.core.outcomes import FailureKind, LoadDeferred, SleepState
from lora_sidecar.core.text import NAME_LENGTH_SHOWN, NAMES_SHOWN, printable, shown
from tests.support.core import World, adapter, card, declared, desired, failure

CONDITIONS = [
    ConditionType.RUNTIME_LOADING_DISABLED,
    ConditionType.LOADING_REFUSED,
    ConditionType.ENGINE_ASLEEP,
    ConditionType.ENGINE_STATE_UNKNOWN,
    ConditionType.ADAPTER_NAME_TAKEN,
    ConditionType.ADAPTER_FAILING,
    ConditionType.ADAPTER_PATH_DIFFERS,
    ConditionType.ADOPTION_REFUSED,
]


def provoke(world: World, kind: ConditionType) -> None:
    """One heartbeat in which that condition holds; `a` is desired and not listed, unless it must be."""
    match kind:
        case ConditionType.RUNTIME_LOADING_DISABLED:
            world.see(runtime_loading=False)
        case ConditionType.LOADING_REFUSED:
            world.ended("a", failure(FailureKind.SERVER_SETUP))
            world.see()
        case ConditionType.ENGINE_ASLEEP:
            world.ended("a", LoadDeferred(SleepState.ASLEEP, "asleep"))
            world.see()
        case ConditionType.ENGINE_STATE_UNKNOWN:
            world.ended("a", LoadDeferred(SleepState.UNCLEAR, "unclear"))
            world.see()
        case ConditionType.ADAPTER_NAME_TAKEN:
            world.see(bases=(BaseModel("a", "/models/a"),))
        case ConditionType.ADAPTER_FAILING:
            world.ended("a", failure())
            world.see()
        case ConditionType.ADAPTER_PATH_DIFFERS:
            world.see(card("a", "/other/a"))
        case _:
            world.see(card("b", "__tensor__"))


@pytest.mark.parametrize("kind", CONDITIONS)
def test_condition_is_raised_once_and_cleared_once(kind: ConditionType) -> None:
    """Its beginning and its end are told, with what to do about it, and nothing in between."""
    world = World()
    world.declare(declared("a"))
    world.see()
    for _ in range(3):
        provoke(world, kind)
    (raised,) = world.told(EventName.CONDITION_RAISED)
    assert raised["condition"] == kind.value
    assert raised["message"]
    assert raised["hint"]
    assert [one.type for one in world.state.conditions] == [kind]
    assert not world.told(EventName.CONDITION_CLEARED)
    for _ in range(3):
        world.see("a")

    assert world.told(EventName.CONDITION_CLEARED) == [{"condition": kind.value}]
    assert len(world.told(EventName.CONDITION_RAISED)) == 1
    assert world.state.conditions == ()


def test_another_base_model_is_told_apart_from_a_name_that_is_taken() -> None:
    """What was learned on another base model is held back under a condition that says so, until that one is back."""
    world = World()
    world.see("a", bases=(BaseModel("base", "/models/former"),), start_time=1.0)
    world.see(bases=(BaseModel("base", "/models/other"),), start_time=2.0)
    held = world.condition(ConditionType.BASE_MODEL_CHANGED)
    assert held is not None
    assert "/models/former" in held.message
    assert world.condition(ConditionType.ADAPTER_NAME_TAKEN) is None

    world.see(bases=(BaseModel("base", "/models/former"),), start_time=3.0)

    assert world.condition(ConditionType.BASE_MODEL_CHANGED) is None
    assert world.restores == ["a"]


def test_refused_key_has_a_hint_of_its_own() -> None:
    """A load refused for the key points to the key, one refused for the server's flags to the flags."""
    world = World()
    world.declare(declared("a"))
    world.see()
    world.ended("a", failure(FailureKind.UNAUTHORIZED, "Unauthorized", 401))
    world.see()
    refused = world.condition(ConditionType.LOADING_REFUSED)
    assert refused is not None
    assert "api_key_file" in refused.hint

    world.ended("a", failure(FailureKind.SERVER_SETUP, "LoRA is not enabled"))
    world.see()
    refused = world.condition(ConditionType.LOADING_REFUSED)
    assert refused is not None
    assert "started" in refused.hint


def test_route_switched_off_says_it_all() -> None:
    """Where the route is missing, a refusal that came of it is not a second condition."""
    world = World()
    world.declare(declared("a"))
    world.see()
    world.ended("a", failure(FailureKind.SERVER_SETUP))
    world.see(runtime_loading=False)

    assert [one.type for one in world.state.conditions] == [ConditionType.RUNTIME_LOADING_DISABLED]


def test_condition_follows_its_cause_without_a_new_line() -> None:
    """A second failing adapter changes the message of the condition and is no new condition."""
    world = World()
    world.declare(declared("a"), declared("b"))
    world.see()
    world.ended("a", failure(message="one"))
    world.see()
    world.ended("b", failure(message="two"))
    world.see(after=0.1)
    condition = world.condition(ConditionType.ADAPTER_FAILING)

    assert condition is not None
    assert condition.message == "a: one; b: two"
    assert len(world.told(EventName.CONDITION_RAISED)) == 1


def test_many_names_fit_on_a_line() -> None:
    """A thousand refused names, each of 200 000 characters that a client chose, make a short and printable line."""
    world = World()
    cards = [card(f"{n:04}\n\x1b[2J" + "x" * 200_000) for n in range(100)]
    world.see(*cards)
    condition = world.condition(ConditionType.ADOPTION_REFUSED)
    assert condition is not None
    assert condition.message.isprintable()
    assert len(condition.message) < NAMES_SHOWN * 2 * NAME_LENGTH_SHOWN
    assert condition.message.endswith("; and 81 more")
    (drift,) = world.told(EventName.DRIFT_DETECTED)

    assert len(drift["unexpected"]) == NAMES_SHOWN
    assert all(one.isprintable() and len(one) <= NAME_LENGTH_SHOWN for one in drift["unexpected"])


def test_base_model_of_any_length_fits_on_a_line() -> None:
    """What the server calls its base model is bounded in the message, too."""
    world = World(desired(adapter("a", base="/models/\n" + "x" * 100_000)))
    world.see(start_time=2.0)
    condition = world.condition(ConditionType.BASE_MODEL_CHANGED)

    assert condition is not None
    assert condition.message.isprintable()
    assert len(condition.message) < 2 * NAME_LENGTH_SHOWN


@pytest.mark.parametrize(
    ("count", "length", "last"),
    [(0, 0, None), (1, 1, "n00"), (20, 20, "n19"), (21, 20, "and 2 more"), (99, 20, "and 80 more")],
)
def test_names_are_shown_in_order_and_then_counted(count: int, length: int, last: str | None) -> None:
    """Twenty lines at most, of which the last may stand for the rest."""
    names = shown(f"n{n:02}" for n in reversed(range(count)))

    assert len(names) == length
    assert names[-1:] == ([] if last is None else [last])
    assert names[:1] == (["n00"] if count else [])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sql-assistant", "sql-assistant"),
        ("Überblick 😀", "Überblick 😀"),
        ("a\nb\x1b[0m\ud800", "a\ufffdb\ufffd[0m\ufffd"),
        ("x" * 256, "x" * 256),
        ("x" * 257, "x" * 255 + "…"),
    ],
)
def test_name_is_made_legible(name: str, said: str) -> None:
    """A good name is shown as it is, any other without what could disturb a terminal or a page."""
    assert printable(name) == said
