from __future__ import annotations

import pytest
from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.events import EventName, Level
from lora_sidecar.core.model import Suspect
from lora_sidecar.core.outcomes import FailureKind, Outcome
from lora_sidecar.reconcile.poison import accuse, convict, quarantined, sentence_of, supervise
from lora_sidecar.reconcile.state import Blocked, BlockReason, QuarantineTimer
from tests.support.core import adapter, desired, failure

RULE = BackoffConfig()
BOTH = desired(adapter("a"), adapter("b"))


@pytest.mark.parametrize(
    ("deaths", "event", "reason"),
    [
        (
            1,
            EventName.RESTORE_SUSPECTED,
            "once while it was being loaded or probed; it is loaded last and alone from now on",
        ),
        (2, EventName.RESTORE_QUARANTINED, "twice while it was being loaded or probed; it is held back"),
        (3, EventName.RESTORE_QUARANTINED, "3 times while it was being loaded or probed; it is held back"),
    ],
)
def test_each_death_is_told_with_what_follows(deaths: int, event: EventName, reason: str) -> None:
    """Which adapter, how often, and what becomes of it."""
    known = replace(BOTH, suspects={"a": Suspect("/adapters/a", deaths - 1, accused=True, files="f")})
    after, (fact,) = convict(known, restarted=True)

    assert after.suspects == {"a": Suspect("/adapters/a", deaths, files="f")}
    assert (fact.event, fact.level) == (event, Level.WARNING)
    assert fact.fields == {
        "adapter": "a",
        "path": "/adapters/a",
        "deaths": deaths,
        "reason": f"the server died {reason}",
    }


def test_an_acquittal_leaves_older_deaths() -> None:
    """Nothing is told of it; one that was never convicted is no suspect any more, and its neighbours stay."""
    known = replace(
        BOTH, suspects={"a": Suspect("/adapters/a", 0, accused=True), "b": Suspect("/adapters/b", 1, accused=True)}
    )
    after, facts = convict(known, restarted=False)

    assert after.suspects == {"b": Suspect("/adapters/b", 1)}
    assert facts == ()


def test_what_is_desired_no_more_is_no_suspect() -> None:
    """Nor what is desired from elsewhere; those after it in the list are still judged."""
    known = replace(
        BOTH,
        suspects={
            "gone": Suspect("/adapters/gone", 1, accused=True),
            "a": Suspect("/elsewhere", 1, accused=True),
            "b": Suspect("/adapters/b", 1),
        },
    )
    after, facts = convict(known, restarted=True)

    assert after.suspects == {"b": Suspect("/adapters/b", 1)}
    assert facts == ()


def test_a_restart_without_an_accusation_changes_nothing() -> None:
    """The very object."""
    known = replace(BOTH, suspects={"b": Suspect("/adapters/b", 1)})

    assert convict(known, restarted=True) == (known, ())
    assert convict(known, restarted=True)[0] is known
    assert convict(BOTH, restarted=True)[0] is BOTH


def test_an_accusation_of_another_path_begins_anew() -> None:
    """A suspect is known by name and path; accused twice is accused once."""
    known = replace(BOTH, suspects={"a": Suspect("/elsewhere", 3), "b": Suspect("/adapters/b", 1)})
    broken = [Outcome(adapter(n), 1, failure(FailureKind.AMBIGUOUS), 1.0, 1.0) for n in "ab"]
    after = accuse(known, broken, ())

    assert after.suspects == {
        "a": Suspect("/adapters/a", 0, accused=True),
        "b": Suspect("/adapters/b", 1, accused=True),
    }
    assert accuse(after, broken, [adapter("a")]) is after
    assert accuse(BOTH, (), [adapter("a")]).suspects == {"a": Suspect("/adapters/a", 0, accused=True)}
    assert accuse(BOTH, (), [adapter("stranger")]) is BOTH


def test_quarantines_double_up_to_a_day() -> None:
    """An hour at the second death; the number stays small whatever the count."""
    assert [sentence_of(n, RULE) for n in (0, 1, 2, 3, 4)] == [3600.0, 3600.0, 3600.0, 7200.0, 14400.0]
    assert sentence_of(7, RULE) == sentence_of(10_000, RULE) == 86_400.0
    assert sentence_of(30, replace(RULE, quarantine=0.001)) == pytest.approx(0.001 * 2**16)


def test_a_quarantine_begins_once_a_death_and_ends() -> None:
    """A further death begins another one; meanwhile its end stays where it is."""
    known = replace(BOTH, suspects={"a": Suspect("/adapters/a", 2), "b": Suspect("/adapters/b", 1)})
    same, first = supervise(known, {}, {}, RULE, 100.0)

    assert same is known
    assert first == {"a": QuarantineTimer(2, 3_700.0), "b": QuarantineTimer()}
    _, second = supervise(known, first, {}, RULE, 200.0)
    assert second == first
    again = replace(known, suspects={"a": Suspect("/adapters/a", 3)})
    assert supervise(again, second, {}, RULE, 300.0)[1] == {"a": QuarantineTimer(3, 7_500.0)}
    reason = "the server died twice while it was being loaded or probed; held back for 1h"
    assert quarantined(known, first, "ab", RULE, 3_699.0) == {"a": Blocked(BlockReason.QUARANTINED, reason)}
    assert quarantined(known, first, "ba", RULE, 3_700.0) == {}
    assert quarantined(known, first, "b", RULE, 0.0) == {}
    assert quarantined(BOTH, first, "a", RULE, 0.0) == {}


def test_a_suspect_that_stays_listed_is_cleared() -> None:
    """After `reset_after` in one piece; the clock begins again when it leaves the listing."""
    known = replace(BOTH, suspects={"a": Suspect("/adapters/a", 1), "b": Suspect("/adapters/b", 1)})
    same, first = supervise(known, {}, {"a": "/adapters/a"}, RULE, 100.0)

    assert same is known
    assert first == {"a": QuarantineTimer(listed_since=100.0), "b": QuarantineTimer()}
    almost = supervise(known, first, {"a": "/adapters/a"}, RULE, 100.0 + RULE.reset_after - 0.1)
    assert almost == (known, first)
    cleared, _ = supervise(known, first, {"a": "/adapters/a"}, RULE, 100.0 + RULE.reset_after)
    assert cleared.suspects == {"b": Suspect("/adapters/b", 1)}
    _, left = supervise(known, first, {}, RULE, 200.0)
    assert left["a"] == QuarantineTimer()
    assert supervise(BOTH, first, {}, RULE, 0.0) == (BOTH, {})
