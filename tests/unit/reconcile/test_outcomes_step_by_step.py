from __future__ import annotations

import pytest
from msgspec.structs import replace

from lora_sidecar.core.events import Event, EventName, Level
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, LoadDeferred, Looked, Outcome, SleepState
from lora_sidecar.reconcile.loads import absorb as absorb_loads
from lora_sidecar.reconcile.loads import failed, settle
from lora_sidecar.reconcile.state import (
    Attempt,
    Replacement,
    ServerBackoff,
    State,
)
from tests.support.core import CLOCK, DEAD, GONE, NOW, RULE, adapter, desired, failure, observed

KNOWN = desired(*map(adapter, "abx"))


def told(facts: tuple[Event, ...]) -> list[tuple[EventName, Level, str, dict[str, object]]]:
    """All that a person is told."""
    return [(one.event, one.level, one.repeats, dict(one.fields)) for one in facts]


def ended(
    result: Accepted | Failure | LoadDeferred, name: str = "a", incarnation: int = 1, at: float = 990.0
) -> Outcome:
    """A load that ended after two seconds."""
    return Outcome(adapter(name), incarnation, result, at, 2.0004, Looked("print", doubts=("d",)))


def test_a_load_that_went_well_lifts_what_held_all_back() -> None:
    """And is noted with its time and what was seen of its files."""
    held = State(
        hold=ServerBackoff(DEAD, 1, NOW),
        withheld=LoadDeferred(SleepState.ASLEEP, "z"),
        attempts={"a": Attempt(2, GONE)},
    )
    after, facts = absorb_loads(held, [ended(Accepted())], observed(NOW), KNOWN, RULE, CLOCK)

    looked = Looked("print", doubts=("d",))
    assert after.attempts["a"] == Attempt(2, GONE, 0.0, 990.0, 2.0004, accepted=True, fresh=True, looked=looked)
    assert (after.hold, after.withheld, after.load_ended, facts) == (None, None, 990.0, ())
    again, _ = absorb_loads(held, [ended(Accepted(already=True))], observed(NOW), KNOWN, RULE, CLOCK)
    assert not again.attempts["a"].fresh


def test_loads_of_another_life_are_passed_over_and_those_after_them_are_not() -> None:
    """The last one that ended is remembered, whatever the order they are told in."""
    outcomes = [ended(Accepted(), "x", 9, 999.0), ended(Accepted(), "a"), ended(Accepted(), "b", at=980.0)]
    after, _ = absorb_loads(State(), outcomes, observed(NOW), KNOWN, RULE, CLOCK)

    assert sorted(after.attempts) == ["a", "b"]
    assert after.load_ended == 990.0


def test_a_load_that_was_not_sent_is_no_attempt() -> None:
    """The reason is kept; what was tried before stays."""
    asleep = LoadDeferred(SleepState.ASLEEP, "z")
    after, facts = absorb_loads(
        State(attempts={"a": Attempt(1, GONE)}), [ended(asleep)], observed(NOW), KNOWN, RULE, CLOCK
    )

    assert (after.withheld, after.attempts, facts) == (asleep, {"a": Attempt(1, GONE)}, ())


def test_a_load_that_failed_is_none_that_was_accepted_before() -> None:
    """Or a listing without the adapter would be held against the former one."""
    before = State(attempts={"a": Attempt(accepted=True, ended_at=900.0)})
    after, _ = absorb_loads(before, [ended(GONE)], observed(NOW), KNOWN, RULE, CLOCK)

    assert not after.attempts["a"].accepted


def test_a_failed_load_is_counted_waits_and_is_told() -> None:
    """With the server's own sentence."""
    before = State(withheld=LoadDeferred(SleepState.ASLEEP, "z"), attempts={"a": Attempt(1, DEAD, listed_since=5.0)})
    after, facts = absorb_loads(before, [ended(GONE)], observed(NOW), KNOWN, RULE, CLOCK)

    looked = Looked("print", doubts=("d",))
    assert after.attempts["a"] == Attempt(2, GONE, NOW + 1.0, 990.0, 2.0004, looked=looked)
    assert after.withheld is None
    fields = {
        "adapter": "a",
        "path": "/adapters/a",
        "kind": "files",
        "status": 404,
        "message": "no files",
        "consecutive": 2,
        "seconds": 2.0,
    }
    assert told(facts) == [(EventName.RESTORE_FAILED, Level.WARNING, "a files", fields)]


@pytest.mark.parametrize(("took", "said"), [(0.0004, 0.0), (0.0126, 0.013), (2.6, 2.6), (61.23456, 61.235)])
def test_the_time_that_a_failed_load_took_is_told_in_milliseconds(took: float, said: float) -> None:
    """As exact as is of use, and no longer."""
    assert failed(adapter("a"), Attempt(1, GONE, seconds=took), GONE).fields["seconds"] == said


@pytest.mark.parametrize("kind", FailureKind)
def test_a_fault_of_the_server_holds_everything(kind: FailureKind) -> None:
    """A refused key or set-up, longer each time; what names the adapter lifts it; the rest says nothing of it."""
    one = failure(kind)
    before = State(hold=ServerBackoff(DEAD, 1, 5.0))
    after, _ = absorb_loads(before, [ended(one)], observed(NOW), KNOWN, RULE, CLOCK)

    if kind in (FailureKind.SERVER_SETUP, FailureKind.UNAUTHORIZED, FailureKind.LOCAL):
        assert after.hold == ServerBackoff(one, 2, NOW + 1.0)
        first, _ = absorb_loads(State(), [ended(one)], observed(NOW), KNOWN, RULE, CLOCK)
        assert first.hold == ServerBackoff(one, 1, NOW + 0.5)
    elif kind in (FailureKind.FILES, FailureKind.ADAPTER, FailureKind.UNCLASSIFIED):
        assert after.hold is None
    else:
        assert after.hold == before.hold


def settled(attempt: Attempt, *listed: str, at: float = NOW) -> tuple[Attempt | None, tuple[Event, ...]]:
    """What is left of an attempt after a listing."""
    names = {name: f"/adapters/{name}" for name in listed}
    after, facts = settle({"a": attempt}, names, {"a": adapter("a")}, at, RULE, CLOCK)
    return after.get("a"), facts


def test_a_load_that_is_listed_is_told_once() -> None:
    """What failed before is remembered until it stayed listed; what never failed is forgotten."""
    well = Attempt(ended_at=990.0, seconds=2.0004, accepted=True, looked=Looked("p", "why", ("d",)))
    after, facts = settled(well, "a")

    assert after is None
    fields = {
        "adapter": "a",
        "path": "/adapters/a",
        "seconds": 2.0,
        "previous_errors": 0,
        "unchecked": "why",
        "doubts": ["d"],
    }
    assert told(facts) == [(EventName.RESTORE_SUCCEEDED, Level.INFO, "", fields)]
    ill = Attempt(2, GONE, 5.0, 990.0, 1.0, accepted=True, fresh=True)
    after, facts = settled(ill, "a")
    assert after == Attempt(2, GONE, 5.0, 0.0, 1.0, listed_since=NOW)
    assert facts[0].fields == {"adapter": "a", "path": "/adapters/a", "seconds": 1.0, "previous_errors": 2}
    since = replace(ill, listed_since=NOW - RULE.reset_after + 0.1)
    assert settled(since, "a") == (replace(since, ended_at=0.0, accepted=False, fresh=False), ())
    assert settled(replace(ill, listed_since=NOW - RULE.reset_after), "a") == (None, ())
    assert settled(Attempt(1, GONE), "a")[1] == ()


def test_an_accepted_load_that_is_not_listed_failed() -> None:
    """By a listing asked for after it ended; until then it is undecided."""
    accepted = Attempt(1, GONE, 5.0, 990.0, 1.0, accepted=True, listed_since=3.0)
    after, facts = settled(accepted)

    never = Failure(FailureKind.NOT_LISTED, "the server accepted the load and does not list the adapter")
    assert after == Attempt(2, never, NOW + 1.0, 990.0, 1.0)
    assert told(facts)[0][:3] == (EventName.RESTORE_FAILED, Level.WARNING, "a not_listed")
    assert facts[0].fields["consecutive"] == 2
    assert settled(accepted, at=989.0) == (replace(accepted, listed_since=None), ())
    assert settled(replace(accepted, accepted=False)) == (replace(accepted, accepted=False, listed_since=None), ())
    assert settled(replace(accepted, ended_at=NOW), at=NOW)[0] != replace(accepted, ended_at=NOW, listed_since=None)


def test_what_is_neither_listed_nor_desired_is_forgotten() -> None:
    """And what comes after it is still looked at."""
    attempts = {"x": Attempt(1, GONE), "a": Attempt(1, GONE, accepted=True)}
    after, facts = settle(attempts, {}, {"a": adapter("a")}, NOW, RULE, CLOCK)

    assert list(after) == ["a"]
    assert len(facts) == 1
    none: dict[str, Attempt] = {}
    assert settle(none, {}, {}, NOW, RULE, CLOCK) == (none, ())


def test_a_load_from_a_path_that_is_wanted_no_more_is_only_told() -> None:
    """It says nothing of the adapter; a replacement that goes back wants its former path."""
    late = Outcome(adapter("a", path="/former"), 1, GONE, 990.0, 2.0)
    before = State(attempts={"a": Attempt(1, DEAD)})
    after, facts = absorb_loads(before, [late], observed(NOW), KNOWN, RULE, CLOCK)

    assert after.attempts == before.attempts
    assert facts[0].fields["consecutive"] == 1
    swapping = replace(before, swaps={"a": Replacement("/former", "/adapters/a")})
    assert absorb_loads(swapping, [late], observed(NOW), KNOWN, RULE, CLOCK)[0].attempts["a"].failures == 2
    other = replace(before, swaps={"a": Replacement("/else", "/adapters/a")})
    assert absorb_loads(other, [late], observed(NOW), KNOWN, RULE, CLOCK)[0].attempts == before.attempts
    stranger = replace(late, adapter=adapter("s", path="/s"))
    assert absorb_loads(before, [stranger], observed(NOW), KNOWN, RULE, CLOCK)[0].attempts["s"].failures == 1
