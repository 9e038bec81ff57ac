from __future__ import annotations

from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.events import Event, EventName, Level
from lora_sidecar.core.model import Origin
from lora_sidecar.core.outcomes import Failure, FailureKind, LoadDeferred, SleepState
from lora_sidecar.reconcile.conditions import conditions_of, transitions
from lora_sidecar.reconcile.drift import drift_of
from lora_sidecar.reconcile.state import Attempt, Blocked, BlockReason, Drift, ServerBackoff, State
from tests.support.core import GONE, NOW, adapter, desired, observed

DECLARED = adapter("a", Origin.DECLARED)


def told(facts: tuple[Event, ...]) -> list[tuple[EventName, Level, str, dict[str, object]]]:
    """All that a person is told."""
    return [(one.event, one.level, one.repeats, dict(one.fields)) for one in facts]


def test_drift_is_told_when_it_grows() -> None:
    """In any of its three ways; when it shrinks it is only known."""
    known = desired(adapter("a"), adapter("b"))
    listed = {"a": "/adapters/a", "s": "/s"}
    drift, facts = drift_of(Drift(), known, listed, {"b": adapter("b")}, {"s": "no", "a": "no"})

    assert drift == Drift(frozenset("b"), frozenset(), frozenset("s"))
    fields = {"missing": ["b"], "replaced": [], "unexpected": ["s"]}
    assert told(facts) == [(EventName.DRIFT_DETECTED, Level.INFO, "", fields)]
    assert drift_of(drift, known, listed, {"b": adapter("b")}, {"s": "no"}) == (drift, ())
    assert drift_of(drift, known, listed, {}, {"s": "no"}) == (Drift(unexpected=frozenset("s")), ())
    moved, facts = drift_of(Drift(), known, {"a": "/else"}, {}, {})
    assert moved == Drift(replaced=frozenset("a"))
    assert facts[0].fields == {"missing": [], "replaced": ["a"], "unexpected": []}
    for before in (Drift(replaced=frozenset("a")), Drift(unexpected=frozenset("s"))):
        assert len(drift_of(before, known, {"a": "/adapters/a"}, {"b": adapter("b")}, {})[1]) == 1
    assert len(drift_of(Drift(missing=frozenset("b")), known, {"s": "/s"}, {}, {"s": "no"})[1]) == 1
    assert [bool(one) for one in (drift, moved, Drift(), Drift(unexpected=frozenset("s")))] == [True, True, False, True]
    assert bool(Drift(missing=frozenset("b"), replaced=frozenset("a")))
    assert bool(Drift(missing=frozenset("b")))


def test_everything_that_holds_is_said_at_once() -> None:
    """Each kind with its message and its hint, in one order."""
    known = {"a": adapter("a", Origin.DECLARED), "b": adapter("b"), "c": adapter("c")}
    work = State(
        hold=ServerBackoff(Failure(FailureKind.UNAUTHORIZED, "a key is needed"), 1, NOW),
        withheld=LoadDeferred(SleepState.UNCLEAR, "no metrics"),
        lives=(1.0, 2.0, 3.0),
        attempts={"b": Attempt(1, GONE), "c": Attempt(0, GONE), "x": Attempt(1, GONE), "n": Attempt(1)},
        barred={
            "p": Blocked(BlockReason.QUARANTINED, "poison"),
            "q": Blocked(BlockReason.QUARANTINED, "worse"),
            "f": Blocked(BlockReason.FILES_GONE, "away"),
            "r": Blocked(BlockReason.CAPACITY, "no room"),
            "base": Blocked(BlockReason.NAME_TAKEN, "taken"),
            "other": Blocked(BlockReason.BASE_MODEL, "foreign"),
        },
        spoilt={"s": "/s is gone"},
        drift=Drift(replaced=frozenset("abc")),
        path_reasons={"a": "policy.replace is never"},
    )
    missing = {name: adapter(name) for name in "bcn"}
    held = conditions_of(work, observed(NOW), known, missing, {"u": "rule"}, "kept")

    assert [(one.type, one.message) for one in held] == [
        (ConditionType.LOADING_REFUSED, "a key is needed"),
        (ConditionType.ENGINE_STATE_UNKNOWN, "no metrics"),
        (ConditionType.SERVER_FLAPPING, "3 lives of the server began within 10 minutes"),
        (ConditionType.ADAPTER_FAILING, "b: no files"),
        (ConditionType.ADAPTER_FILES_MISSING, "f: away; s: /s is gone"),
        (ConditionType.ADAPTER_QUARANTINED, "p: poison; q: worse"),
        (ConditionType.CAPACITY_EXCEEDED, "r: no room"),
        (ConditionType.ADAPTER_NAME_TAKEN, "base: taken"),
        (ConditionType.BASE_MODEL_CHANGED, "other: foreign"),
        (
            ConditionType.ADAPTER_PATH_DIFFERS,
            "a: listed with another path than the configured /adapters/a; policy.replace is never",
        ),
        (ConditionType.PRUNE_REFUSED, "kept"),
        (ConditionType.ADOPTION_REFUSED, "u: rule"),
    ]
    assert all(one.hint for one in held)
    assert held[0].hint == "the key in api_key_file must be one that the server was started with"
    assert conditions_of(State(), observed(NOW), known, missing, {}) == ()


def test_a_server_that_can_load_nothing_says_so() -> None:
    """Its own sentence, or that it has no route, which comes first."""
    work = State(
        hold=ServerBackoff(Failure(FailureKind.SERVER_SETUP, "LoRA is off"), 1, NOW),
        withheld=LoadDeferred(SleepState.ASLEEP, "it sleeps"),
    )
    on = conditions_of(work, observed(NOW), {}, {}, {})
    off = conditions_of(work, observed(NOW, runtime_loading=False), {}, {}, {})

    setup = "the server was started so that it can load no adapter; see its message"
    assert on[0] == Condition(ConditionType.LOADING_REFUSED, "LoRA is off", setup)
    assert on[1].type is ConditionType.ENGINE_ASLEEP
    assert off[0].type is ConditionType.RUNTIME_LOADING_DISABLED
    assert off[0].message == "the server has no route to load adapters at run time"
    assert len(off) == 2


def test_a_path_that_differs_without_a_reason_is_only_named() -> None:
    """The reason comes with the first plan."""
    work = State(drift=Drift(replaced=frozenset("a")))
    (one,) = conditions_of(work, observed(NOW), {"a": DECLARED}, {}, {})

    assert one.message == "a: listed with another path than the configured /adapters/a"


def test_transitions_are_told_by_type() -> None:
    """What began with all of its words, what ended with its name; another message is no transition."""
    old = (Condition(ConditionType.PAUSED, "x", "h"), Condition(ConditionType.ENGINE_ASLEEP, "y"))
    new = (Condition(ConditionType.PAUSED, "other"), Condition(ConditionType.SERVER_HUNG, "z", "hint"))

    assert told(transitions(old, new)) == [
        (
            EventName.CONDITION_RAISED,
            Level.WARNING,
            "",
            {"condition": "ServerHung", "message": "z", "hint": "hint"},
        ),
        (EventName.CONDITION_CLEARED, Level.INFO, "", {"condition": "EngineAsleep"}),
    ]
