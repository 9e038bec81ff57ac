from __future__ import annotations

import pytest
from msgspec.structs import replace

from lora_sidecar.attempts import hasten
from lora_sidecar.config import BackoffConfig, HeartbeatConfig
from lora_sidecar.events import Event, Level
from lora_sidecar.lineage import Evidence, judge
from lora_sidecar.model import Reason
from lora_sidecar.outage import advance, begin
from lora_sidecar.work import Attempt, Phase, Recovery, ServerState, Work
from tests.support.core import adapter, desired, failure, observed, unknown

HEARTBEAT = HeartbeatConfig()
UP = ServerState(Phase.UP, since=1.0, last_good=10.0)


def test_an_outage_is_told_with_all_that_is_known_of_it() -> None:
    """And is kept so for whoever looks."""
    after, (fact,) = advance(UP, unknown(22.3456, Reason.REFUSED, "refused", "is it up?"), HEARTBEAT)

    assert after == ServerState(
        Phase.DOWN, 22.3456, Reason.REFUSED, "refused", "is it up?", errors=1, interrupted=True, last_good=10.0
    )
    assert (fact.event, fact.level) == (Event.SERVER_DOWN, Level.WARNING)
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
    assert (fact.event, fact.level, fact.repeats) == (Event.PROBE_FAILED, Level.WARNING, "server_error")
    assert fact.fields == said | ({"hint": hint} if hint else {})


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
    work = Work(last=observed(1.0, "a", start_time=7.0))

    same = judge(known, work, observed(2.0, "a", start_time=None))
    assert (same.incarnation, same.restarted) == (known.incarnation, False)
    nameless = desired(adapter("a"), start_time=None)
    learned = judge(nameless, work, observed(2.0, "a", start_time=7.0))
    assert learned.incarnation.start_time == 7.0


def test_a_full_server_that_lists_others_has_not_restarted() -> None:
    """It made room by itself, and is full at its very limit; where it has room all being gone is a restart."""
    known = desired(*map(adapter, "abcd"), start_time=None)
    work = Work(last=observed(1.0, "a", "b", start_time=None))

    def evidence(capacity: int | None) -> Evidence:
        return judge(known, work, observed(2.0, "c", "d", start_time=None, capacity=capacity)).evidence

    assert evidence(2) is Evidence.NONE
    assert evidence(3) is Evidence.ALL_MISSING
    assert evidence(None) is Evidence.ALL_MISSING
