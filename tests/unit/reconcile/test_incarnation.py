from __future__ import annotations

import pytest

from lora_sidecar.core.model import Desired, Incarnation
from lora_sidecar.core.observation import Observed
from lora_sidecar.reconcile.beat import Evidence, Identified
from lora_sidecar.reconcile.incarnation import identify
from lora_sidecar.reconcile.outage import ServerState
from lora_sidecar.reconcile.state import State
from tests.support.core import World, adapter, card, desired, observed


def known(start_time: float | None, number: int = 3) -> Desired:
    """What is remembered of a life of the server."""
    return Desired({}, Incarnation(number, start_time))


def work(last: Observed | None, *, interrupted: bool = False) -> State:
    """What is remembered of the last good listing and of what came after it."""
    return State(server=ServerState(interrupted=interrupted), last=last)


LAST = observed(1.0, "a", "b", start_time=None)


def judged(before: Desired, state: State, seen: Observed) -> Identified:
    """Which incarnation a listing is taken to be of."""
    return identify(before, state.last, seen, interrupted=state.server.interrupted)


@pytest.mark.parametrize(
    ("before", "now", "interrupted", "listed", "restarted", "evidence"),
    [
        (7.0, 7.0, False, ["a", "b"], False, Evidence.START_TIME),
        (7.0, 7.0, True, [], False, Evidence.START_TIME),
        (7.0, 8.0, False, ["a", "b"], True, Evidence.START_TIME),
        (7.0, 6.0, True, [], True, Evidence.START_TIME),
        (None, None, True, ["a", "b"], True, Evidence.OUTAGE),
        (7.0, None, True, ["a", "b"], True, Evidence.OUTAGE),
        (None, 7.0, True, ["a", "b"], True, Evidence.OUTAGE),
        (None, None, False, [], True, Evidence.ALL_MISSING),
        (None, None, False, ["c"], True, Evidence.ALL_MISSING),
        (7.0, None, False, [], True, Evidence.ALL_MISSING),
        (None, None, False, ["a"], False, Evidence.NONE),
        (7.0, None, False, ["b", "c"], False, Evidence.NONE),
    ],
)
def test_evidence_is_ranked(
    before: float | None,
    now: float | None,
    interrupted: bool,
    listed: list[str],
    restarted: bool,
    evidence: Evidence,
) -> None:
    """Start times first, then an outage, then everything gone at once, then none."""
    judgement = identify(known(before), LAST, observed(2.0, *listed, start_time=now), interrupted=interrupted)

    assert (judgement.restarted, judgement.evidence) == (restarted, evidence)
    assert judgement.incarnation.number == (4 if restarted else 3)


@pytest.mark.parametrize(
    ("earlier", "later", "restarted", "evidence"),
    [
        (4, 4, False, Evidence.SILENT_CONNECTION),
        (4, 5, True, Evidence.OUTAGE),
        (None, 4, True, Evidence.OUTAGE),
        (4, None, True, Evidence.OUTAGE),
        (None, None, True, Evidence.OUTAGE),
    ],
)
def test_a_connection_that_outlasted_both_listings_outweighs_an_interruption(
    earlier: int | None, later: int | None, restarted: bool, evidence: Evidence
) -> None:
    """The same connection proves the same life; another one, or none at either time, proves nothing."""
    last = observed(1.0, "a", "b", start_time=None, line=earlier)
    judgement = judged(known(None), work(last, interrupted=True), observed(2.0, start_time=None, line=later))

    assert (judgement.restarted, judgement.evidence) == (restarted, evidence)


def test_a_start_time_outweighs_a_connection() -> None:
    """Behind a proxy a connection outlives the server; its start time does not."""
    last = observed(1.0, "a", "b", start_time=7.0, line=1)

    assert judged(known(7.0), work(last), observed(2.0, start_time=8.0, line=1)).evidence is Evidence.START_TIME


@pytest.mark.parametrize("start_time", [None, 5.0])
def test_first_sight_is_no_restart(start_time: float | None) -> None:
    """A server that was never seen before begins its first known life."""
    judgement = judged(known(None, number=0), work(None), observed(1.0, "a", start_time=start_time))

    assert judgement.evidence is Evidence.FIRST_SIGHT
    assert (judgement.incarnation, judgement.restarted) == (Incarnation(1, start_time), False)


@pytest.mark.parametrize("names", [[], ["a"]])
def test_one_adapter_gone_is_not_everything_gone(names: list[str]) -> None:
    """From two adapters on, all of them missing is suspicious; of none or one it is not."""
    judgement = judged(known(None), work(observed(1.0, *names)), observed(2.0, start_time=None))

    assert judgement.evidence is Evidence.NONE


def test_carried_over_cards_are_the_same_cards() -> None:
    """A listing that is carried over from the last one is never taken for another life."""
    again = Observed(2.0, LAST.bases, LAST.adapters)

    assert judged(known(None), work(LAST), again).evidence is Evidence.NONE


def test_same_names_from_elsewhere_are_still_there() -> None:
    """Names tell what is gone; other paths do not."""
    moved = observed(2.0, card("a", "/x"), card("b", "/y"), start_time=None)

    assert judged(known(None), work(LAST), moved).evidence is Evidence.NONE


def test_start_time_is_kept_where_it_is_not_read() -> None:
    """What is known of this life stays known, and what is learned of it is added."""
    assert judged(known(7.0), work(LAST), observed(2.0, "a", start_time=None)).incarnation == Incarnation(3, 7.0)
    assert judged(known(None), work(LAST), observed(2.0, "a", start_time=8.0)).incarnation == Incarnation(3, 8.0)


def test_start_time_that_comes_with_an_absence_proves_nothing() -> None:
    """It may be that of a life nobody saw begin: what is missing then is forgotten with a warning, if at all."""
    judgement = judged(
        desired(adapter("a"), start_time=None), work(observed(1.0, "a", start_time=None)), observed(2.0, start_time=9.0)
    )

    assert (judgement.restarted, judgement.evidence) == (False, Evidence.NONE)
    assert judgement.incarnation == Incarnation(1, None)


def test_two_start_times_in_a_row_that_differ_are_two_lives() -> None:
    """Also where neither was taken over, since each came together with an absence: the adapter was lost."""
    world = World(desired(adapter("a"), start_time=None))
    world.see("a", start_time=None)
    world.see(start_time=1.0)
    world.see(start_time=2.0)

    assert "a" in world.desired.adapters
    assert world.restores == ["a"]
