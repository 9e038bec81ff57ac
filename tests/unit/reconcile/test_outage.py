from __future__ import annotations

import pytest

from lora_sidecar.config.settings import HeartbeatConfig
from lora_sidecar.core.events import Event, EventName
from lora_sidecar.core.observation import Observation, Reason
from lora_sidecar.reconcile.beat import Beat, Happened
from lora_sidecar.reconcile.outage import Phase, ServerState, advance, next_look
from tests.support.core import CLOCK, NOTHING, World, observed, rules, unknown

HEARTBEAT = HeartbeatConfig(interval=5.0, away_interval=0.1, down_after_timeouts=3)
AWAY = [Reason.REFUSED, Reason.RESET, Reason.UNREACHABLE, Reason.ENGINE_DEAD]
ANSWERED = [r for r in Reason if r not in (*AWAY, Reason.TIMEOUT)]


def after(*seen: Observation | Reason, began: ServerState | None = None) -> tuple[ServerState, list[Event]]:
    """The state that a row of observations, one second apart, ends in, and the facts on the way."""
    state = began or ServerState()
    facts: list[Event] = []
    for second, one in enumerate(seen, start=1):
        observation = unknown(second, one) if isinstance(one, Reason) else one
        beat = Beat(NOTHING, observation, rules(heartbeat=HEARTBEAT), CLOCK, Happened())
        state = advance(state, observation, beat)
        facts += beat.events
    return state, facts


UP = ServerState(Phase.UP, since=0.0, last_good=0.0)


def events(facts: list[Event]) -> list[EventName]:
    """What was told, by name."""
    return [fact.event for fact in facts]


@pytest.mark.parametrize("reason", AWAY)
def test_one_refusal_is_down(reason: Reason) -> None:
    """Nobody listens there: a single observation is enough."""
    state, facts = after(reason, began=UP)

    assert (state.phase, state.since, state.interrupted, state.errors) == (Phase.DOWN, 1.0, True, 1)
    assert events(facts) == [EventName.SERVER_DOWN]
    assert facts[0].fields["since_last_good_seconds"] == 1.0


@pytest.mark.parametrize("reason", ANSWERED)
def test_answer_that_cannot_be_trusted_is_unknown(reason: Reason) -> None:
    """Something answers, and whether the server restarted meanwhile is in doubt."""
    state, facts = after(reason, began=UP)

    assert (state.phase, state.interrupted, state.reason) == (Phase.UNKNOWN, True, reason)
    assert events(facts) == [EventName.PROBE_FAILED]


def test_timeouts_count_only_in_a_row() -> None:
    """Two slow answers leave the server up, the third takes it down, and any other error starts the count anew."""
    state, facts = after(Reason.TIMEOUT, Reason.TIMEOUT, began=UP)
    assert (state.phase, state.interrupted, state.timeouts, state.errors) == (Phase.UP, False, 2, 2)
    assert events(facts) == [EventName.PROBE_FAILED] * 2

    state, facts = after(Reason.TIMEOUT, Reason.TIMEOUT, Reason.TIMEOUT, began=UP)
    assert (state.phase, state.interrupted) == (Phase.DOWN, True)
    assert events(facts) == [EventName.PROBE_FAILED, EventName.PROBE_FAILED, EventName.SERVER_DOWN]

    state, _ = after(Reason.TIMEOUT, Reason.TIMEOUT, Reason.SERVER_ERROR, Reason.TIMEOUT, began=UP)
    assert (state.phase, state.timeouts) == (Phase.UNKNOWN, 1)


def test_good_answer_between_timeouts_starts_the_count_anew() -> None:
    """A server that is slow every now and then is never down."""
    state, _ = after(Reason.TIMEOUT, Reason.TIMEOUT, observed(3.0), Reason.TIMEOUT, Reason.TIMEOUT, began=UP)

    assert (state.phase, state.interrupted, state.timeouts) == (Phase.UP, False, 2)


def test_interruption_is_remembered_until_the_next_good_answer() -> None:
    """A timeout after a refusal does not make the refusal undone."""
    state, _ = after(Reason.REFUSED, Reason.TIMEOUT, began=UP)
    assert state.interrupted
    state, _ = after(observed(3.0), began=state)

    assert not state.interrupted
    assert (state.phase, state.errors, state.last_good) == (Phase.UP, 0, 3.0)


def test_start_up_is_quiet() -> None:
    """Minutes of refused connections at a start are one line, and no outage."""
    state, facts = after(*[Reason.REFUSED] * 1000, *[Reason.STARTING] * 100)

    assert (state.phase, state.since) == (Phase.STARTING, 0.0)
    assert events(facts) == [EventName.PROBE_FAILED] * 2


def test_starting_again_is_not_the_first_start() -> None:
    """A server that was up and says that it starts is in doubt, not new."""
    state, _ = after(Reason.STARTING, began=UP)

    assert state.phase is Phase.UNKNOWN


def test_outage_is_told_when_it_begins_and_when_it_ends() -> None:
    """Down once, up once, with how long it was away and how often it was missed."""
    state, facts = after(*[Reason.REFUSED] * 50, observed(51.0), observed(52.0), began=UP)

    assert events(facts) == [EventName.SERVER_DOWN, EventName.SERVER_UP]
    assert facts[1].fields == {"after": "down", "away_seconds": 51.0, "previous_errors": 50}
    assert (state.phase, state.since, state.last_good) == (Phase.UP, 51.0, 52.0)


def test_down_and_unknown_are_told_as_they_change() -> None:
    """A port that is taken by another server while ours is down is another thing to know."""
    state, facts = after(Reason.REFUSED, Reason.WRONG_SERVER, Reason.REFUSED, began=UP)

    assert events(facts) == [EventName.SERVER_DOWN, EventName.PROBE_FAILED, EventName.SERVER_DOWN]
    assert (state.phase, state.since) == (Phase.DOWN, 3.0)


def test_down_without_a_good_answer_before_says_so() -> None:
    """Where no answer was ever good, no time since one is made up."""
    _, facts = after(Reason.WRONG_SERVER, Reason.REFUSED)

    assert facts[-1].event is EventName.SERVER_DOWN
    assert facts[-1].fields["since_last_good_seconds"] is None


def test_repeated_doubt_can_be_thinned_out() -> None:
    """Each failed look names what it repeats, so that the log can count instead of repeating."""
    _, facts = after(*[Reason.UNAUTHORIZED] * 3, began=UP)

    assert [fact.repeats for fact in facts] == ["unauthorized"] * 3
    assert [fact.fields["consecutive"] for fact in facts] == [1, 2, 3]


def test_hint_is_told_where_there_is_one() -> None:
    """The hint of an unknown reaches the person who reads the line."""
    _, facts = after(unknown(1.0, Reason.UNAUTHORIZED, hint="check the key"), began=UP)

    assert facts[0].fields["hint"] == "check the key"


@pytest.mark.parametrize("phase", [Phase.UP, Phase.UNKNOWN])
def test_server_that_answers_is_looked_at_at_the_interval(phase: Phase) -> None:
    """Doubt is no reason to look more often."""
    assert next_look(ServerState(phase), HEARTBEAT, 10_000.0) == 5.0


@pytest.mark.parametrize("phase", [Phase.DOWN, Phase.STARTING])
@pytest.mark.parametrize(("away", "wait"), [(0.0, 0.1), (120.0, 0.1), (240.0, 0.2), (6_000.0, 5.0), (1e9, 5.0)])
def test_server_that_is_away_is_looked_for_eagerly_at_first(phase: Phase, away: float, wait: float) -> None:
    """The first accepted connection is the moment to restore; after hours, a look at each interval is enough."""
    assert next_look(ServerState(phase, since=7.0), HEARTBEAT, 7.0 + away) == pytest.approx(wait)


def test_excused_timeouts_end_with_one_line() -> None:
    """A failure that was told and was no outage is told to be over, with its count."""
    world = World()
    world.see()
    world.miss(Reason.TIMEOUT)
    world.miss(Reason.TIMEOUT)
    world.see()
    world.see()

    assert world.told(EventName.PROBE_RECOVERED) == [{"previous_errors": 2}]
    assert len(world.told(EventName.SERVER_UP)) == 1


def test_an_assumed_restart_that_lost_nothing_is_not_told() -> None:
    """After our own restart beside a server without a start time nothing is known of a restart, and nothing is said."""
    world = World()
    world.see("a", start_time=None)
    world.restart_ourselves()
    world.see("a", start_time=None)

    assert world.told(EventName.SERVER_RESTARTED) == []
    assert world.told(EventName.RECOVERY_COMPLETED) == []
