from __future__ import annotations

from msgspec.structs import replace

from lora_sidecar.config.settings import ServerHealthConfig
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.observation import EngineActivity, Reason
from lora_sidecar.reconcile.outage import Phase, ServerState
from lora_sidecar.reconcile.server_health import PROVEN_AFTER, Health, conditions_of, examine, failing, suspects_hang

RULE = ServerHealthConfig()
UP = ServerState(Phase.UP, since=0.0, last_good=0.0)


def down(reason: Reason = Reason.REFUSED, *, answered: bool = True) -> ServerState:
    """A server that is down, and answered before unless said."""
    return ServerState(Phase.DOWN, since=100.0, reason=reason, last_good=99.0 if answered else None)


def after(
    seconds: float,
    server: ServerState,
    pulse: EngineActivity | None = None,
    rule: ServerHealthConfig = RULE,
    *,
    before: Health | None = None,
    start: float = 100.0,
) -> Health:
    """The health when a server has been so for so long, looked at every five seconds."""
    health = before or Health()
    now = start
    while now <= start + seconds:
        health = examine(health, server, pulse or EngineActivity(), rule, now, halted=False)
        now += 5.0
    return health


def held(health: Health) -> list[ConditionType]:
    """The types of the conditions that hold."""
    return [one.type for one in conditions_of(health)]


def test_a_refused_connection_with_an_open_load_is_a_wedge() -> None:
    """The load's open connection proves that the process lives: the wedge is named after half a minute."""
    pulse = EngineActivity(open_since=90.0, owed_since=90.0)
    assert held(after(PROVEN_AFTER - 5, down(), pulse)) == []
    wedged = after(PROVEN_AFTER, down(), pulse)
    assert held(wedged) == [ConditionType.SERVER_WEDGED]
    assert "still open" in failing(wedged)


def test_a_slow_restart_is_no_wedge() -> None:
    """Without an open load it is named after wedged_after and not before, and then the doubt is said."""
    assert held(after(1795, down())) == []
    wedged = after(1800, down())
    assert held(wedged) == [ConditionType.SERVER_WEDGED]
    assert "or its container is not started" in failing(wedged)


def test_a_first_start_is_never_a_wedge() -> None:
    """A server that this process has never seen answer may start for hours."""
    starting = ServerState(Phase.STARTING, since=0.0, reason=Reason.REFUSED)
    assert held(after(36_000, starting)) == []
    assert held(after(36_000, down(answered=False))) == []


def test_the_rule_of_time_can_be_switched_off() -> None:
    """With wedged_after null only an open load proves a wedge."""
    rule = ServerHealthConfig(wedged_after=None)
    assert held(after(36_000, down(), rule=rule)) == []
    assert held(after(30, down(), EngineActivity(open_since=90.0, owed_since=90.0), rule)) == [
        ConditionType.SERVER_WEDGED
    ]


def test_a_wedge_stays_named_when_the_load_is_given_up_and_fails_no_probe() -> None:
    """After our own deadline nothing proves it any more: it is said on, and no container is ended for it."""
    wedged = after(60, down(), EngineActivity(open_since=90.0, owed_since=90.0))
    given_up = after(60, down(), EngineActivity(owed_since=90.0, given_up_at=160.0), before=wedged, start=165)
    assert held(given_up) == [ConditionType.SERVER_WEDGED]
    assert failing(given_up) == ""


def test_a_wedge_ends_when_the_process_does() -> None:
    """The load's connection breaks with the process: what is refused from then on is a start."""
    wedged = after(60, down(), EngineActivity(open_since=90.0, owed_since=90.0))
    ended = after(60, down(), EngineActivity(ended_by_server=True), before=wedged, start=165)
    assert held(ended) == []


def test_an_answer_ends_everything() -> None:
    """One good heartbeat clears a wedge."""
    wedged = after(60, down(), EngineActivity(open_since=90.0, owed_since=90.0))
    assert conditions_of(after(0, UP, before=wedged, start=165)) == ()


def test_a_late_refusal_does_not_start_the_clock_again() -> None:
    """A timeout among refusals, as on a busy machine, is no answer."""
    pulse = EngineActivity(open_since=90.0, owed_since=90.0)
    health = after(15, down(), pulse)
    health = after(0, down(Reason.TIMEOUT), pulse, before=health, start=120)
    assert held(after(5, down(), pulse, before=health, start=125)) == [ConditionType.SERVER_WEDGED]


def test_a_server_that_says_its_engine_is_dead_and_stays() -> None:
    """VLLM ends itself within seconds; told to stay (VLLM_KEEP_ALIVE_ON_ENGINE_DEATH) it serves nothing for good."""
    assert held(after(25, down(Reason.ENGINE_DEAD))) == []
    assert held(after(30, down(Reason.ENGINE_DEAD))) == [ConditionType.SERVER_WEDGED]


def test_a_load_without_an_answer_while_health_answers_is_a_hang() -> None:
    """Named once the oldest request that the engine owes an answer to is older than hung_after."""
    pulse = EngineActivity(open_since=100.0, owed_since=100.0)
    assert held(after(295, UP, pulse)) == []
    hung = after(300, UP, pulse)
    assert held(hung) == [ConditionType.SERVER_HUNG]
    assert failing(hung)


def test_a_load_that_was_given_up_still_counts() -> None:
    """A deadline of ours does not make the engine answer; what it owes lapses when nothing more is asked."""
    owed = EngineActivity(owed_since=100.0, given_up_at=400.0)
    assert held(after(300, UP, owed)) == [ConditionType.SERVER_HUNG]
    hung = after(300, UP, owed)
    assert held(after(0, UP, owed, before=hung, start=699)) == [ConditionType.SERVER_HUNG]
    assert held(after(0, UP, owed, before=hung, start=701)) == []


def test_an_engine_that_answers_others_is_not_hung() -> None:
    """A load that waits behind others is not held against an engine that answered one of them lately."""
    busy = EngineActivity(open_since=100.0, owed_since=100.0, answered_at=390.0)
    assert held(after(300, UP, busy)) == []


def test_a_sleeping_or_paused_engine_is_not_hung() -> None:
    """While it says so nothing is held against it, and the clock starts anew when it no longer does."""
    pulse = EngineActivity(open_since=100.0, owed_since=100.0)
    health = Health()
    assert suspects_hang(health, UP, pulse, RULE, 400)
    health = examine(health, UP, pulse, RULE, 400, halted=True)
    assert held(health) == []
    assert held(after(290, UP, pulse, before=health, start=405)) == []
    assert held(after(300, UP, pulse, before=health, start=405)) == [ConditionType.SERVER_HUNG]


def test_a_server_that_takes_connections_and_answers_nothing_is_hung() -> None:
    """Every process stopped: the kernel still accepts, and nobody reads."""
    assert held(after(295, down(Reason.TIMEOUT))) == []
    assert held(after(300, down(Reason.TIMEOUT))) == [ConditionType.SERVER_HUNG]


def test_an_answer_that_cannot_be_trusted_is_no_hang() -> None:
    """Garbage, a wrong key or another server on the port say nothing of the engine."""
    garbage = replace(UP, phase=Phase.UNKNOWN, reason=Reason.UNAUTHORIZED)
    assert held(after(3600, garbage, EngineActivity(open_since=100.0, owed_since=100.0))) == []
