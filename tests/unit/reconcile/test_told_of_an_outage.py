from __future__ import annotations

import pytest
from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig, HeartbeatConfig
from lora_sidecar.core.events import EventName, Level
from lora_sidecar.core.model import Incarnation
from lora_sidecar.core.observation import Reason
from lora_sidecar.reconcile.incarnation import Evidence, Identified, judge
from lora_sidecar.reconcile.loads import hasten
from lora_sidecar.reconcile.outage import advance, begin, conclude, resume
from lora_sidecar.reconcile.state import Attempt, Phase, Recovery, ServerState, State
from tests.support.core import adapter, desired, failure, observed, unknown

HEARTBEAT = HeartbeatConfig()
UP = ServerState(Phase.UP, since=1.0, last_good=10.0)


def test_an_outage_is_told_with_all_that_is_known_of_it() -> None:
    """And is kept so for whoever looks."""
    after, (fact,) = advance(UP, unknown(22.3456, Reason.REFUSED, "refused", "is it up?"), HEARTBEAT)

    assert after == ServerState(
        Phase.DOWN, 22.3456, Reason.REFUSED, "refused", "is it up?", errors=1, interrupted=True, last_good=10.0
    )
    assert (fact.event, fact.level) == (EventName.SERVER_DOWN, Level.WARNING)
    assert fact.fields == {
        "reason": "refused",
        "detail": "refused",
        "hint": "is it up?",
        "since_last_good_seconds": 12.346,
    }


@pytest.mark.parametrize("hint", ["", "look"])
def test_a_doubt_is_told_with_its_count(hint: str) -> None:
    """Without a hint there is none to tell."""
    _, (fact,) = advance(replace(UP, errors=2), unknown(20.0, Reason.SERVER_ERROR, "HTTP 500", hint), HEARTBEAT)

    said = {"reason": "server_error", "detail": "HTTP 500", "consecutive": 3}
    assert (fact.event, fact.level, fact.repeats) == (EventName.PROBE_FAILED, Level.WARNING, "server_error")
    assert fact.fields == said | ({"hint": hint} if hint else {})


def test_the_way_back_is_told_with_its_length() -> None:
    """From the last good answer on, to the millisecond; without one, from when the server was first seen away."""
    down = ServerState(Phase.DOWN, since=20.0, last_good=10.0, errors=4)
    said = {"after": "down", "away_seconds": 12.346, "previous_errors": 4}

    after, (fact,) = advance(down, observed(22.3456), HEARTBEAT)
    assert after == ServerState(Phase.UP, 22.3456, last_good=22.3456)
    assert (fact.event, fact.level, fact.fields) == (EventName.SERVER_UP, Level.INFO, said)
    _, (fact,) = advance(replace(down, last_good=None), observed(22.3456), HEARTBEAT)
    assert fact.fields == said | {"away_seconds": 2.346}


@pytest.mark.parametrize("failed", [True, False])
@pytest.mark.parametrize("initial", [True, False])
def test_a_recovery_is_told_to_the_millisecond(*, initial: bool, failed: bool) -> None:
    """Whole where nothing failed, and a warning where something did."""
    known = desired(adapter("a"), adapter("b"))
    recovery = Recovery(9.0, "refused", 10.0, 22.3456, lost=frozenset("ab"), initial=initial)
    missing = frozenset("b" if failed else "")
    ended, (fact,) = conclude(recovery, known, {}, missing, {"b": "no files"} if failed else {}, 30.98777)

    assert ended is None
    assert fact.event is (EventName.RESTORE_COMPLETED if initial else EventName.RECOVERY_COMPLETED)
    assert fact.level is (Level.WARNING if failed else Level.INFO)
    assert fact.fields["restore_seconds"] == 8.642
    assert (fact.fields["restored"], fact.fields["failed"]) == ((1, 1) if failed else (2, 0))
    if not initial:
        assert (fact.fields["outage_seconds"], fact.fields["total_seconds"]) == (12.346, 20.988)


def test_what_the_first_restore_lacked_was_lost_to_an_unseen_restart_too() -> None:
    """Besides what that restart took; both have to be back."""
    first = Recovery(9.0, "first listing", up_at=9.0, lost=frozenset("a"), initial=True)
    judgement = Identified(Incarnation(2), restarted=True, evidence=Evidence.START_TIME)
    begun = resume(first, judgement, observed(10.0), frozenset("b"), 12.0)

    assert begun == Recovery(12.0, "restarted unseen", 10.0, 12.0, restarts=1, lost=frozenset("ab"))


def test_a_second_outage_in_a_recovery_begins_its_way_back_anew() -> None:
    """What was lost and when it began stay."""
    recovery = Recovery(5.0, "refused", up_at=8.0, restarts=1, lost=frozenset("a"))
    down = replace(UP, phase=Phase.DOWN)

    assert begin(recovery, UP, down, unknown(20.0)) == replace(recovery, up_at=None)


def test_what_adapters_are_held_against_changed() -> None:
    """None waits longer than the plain backoff; who failed never, or waits less already, waits as before."""
    rule = BackoffConfig()
    attempts = {
        "parked": Attempt(2, failure(), not_before=9_000.0, ended_at=100.0),
        "soon": Attempt(2, failure(), not_before=101.0, ended_at=100.0),
        "never": Attempt(not_before=9_000.0, ended_at=100.0),
    }

    assert hasten(attempts, rule) == attempts | {"parked": replace(attempts["parked"], not_before=102.0)}


def test_a_start_time_that_is_learned_is_not_unlearned() -> None:
    """A listing without one belongs to the life that is known."""
    known = desired(adapter("a"), start_time=7.0)
    work = State(last=observed(1.0, "a", start_time=7.0))

    same = judge(known, work, observed(2.0, "a", start_time=None))
    assert (same.incarnation, same.restarted) == (known.incarnation, False)
    nameless = desired(adapter("a"), start_time=None)
    learned = judge(nameless, work, observed(2.0, "a", start_time=7.0))
    assert learned.incarnation.start_time == 7.0


def test_a_full_server_that_lists_others_has_not_restarted() -> None:
    """It made room by itself, and is full at its very limit; where it has room all being gone is a restart."""
    known = desired(*map(adapter, "abcd"), start_time=None)
    work = State(last=observed(1.0, "a", "b", start_time=None))

    def evidence(capacity: int | None) -> Evidence:
        return judge(known, work, observed(2.0, "c", "d", start_time=None, capacity=capacity)).evidence

    assert evidence(2) is Evidence.NONE
    assert evidence(3) is Evidence.ALL_MISSING
    assert evidence(None) is Evidence.ALL_MISSING
