"""Whether the server serves at all, as far as it can be told from outside: wedged, hung, or neither.

Two traps are guarded against. vLLM's `/health` sees a dead engine and never a hung one, and a load in flight when the
engine dies keeps the process from ever ending; both outages last until somebody ends the container. And a verdict on
which a container is ended must not take a slow start, a sleep or a pause for a fault; so each has its evidence, and
what is only likely waits far longer than what is proven.

Seen on vLLM 0.32.0: the port closes, the process stays, and the connection of the load stays open with it, while a
process that ended takes its connections along. An open load and a refused connection together thus prove the wedge.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.config.settings import ServerHealthConfig
from lora_sidecar.config.values import format_duration
from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.observation import EngineActivity, Reason
from lora_sidecar.reconcile.outage import Phase, ServerState

PROVEN_AFTER = 30.0
"""Seconds that a proven wedge must last: vLLM 0.32.0 took 5 s at most to end by itself after its engine had died."""


class Health(Struct, frozen=True):
    """What is held against the server, and since when.

    `refused_since`, `dead_since` and `mute_since` are when it began to refuse connections, to say that its engine is
    dead, and to take connections without an answer, None while it does not. `halted_at` is when the engine was last
    known to sleep or to be paused. `wedged` and `hung` are reasons, empty where that does not hold. `proven` is whether
    the evidence is of now: a wedge stays named until the server answers or ends, while a probe that ends a container
    may go only by what is known now.
    """

    refused_since: float | None = None
    dead_since: float | None = None
    mute_since: float | None = None
    halted_at: float = float("-inf")
    wedged: str = ""
    hung: str = ""
    proven: bool = False


def suspects_hang(
    before: Health, server: ServerState, pulse: EngineActivity, rule: ServerHealthConfig, now: float
) -> bool:
    """Whether the engine has been silent for so long that it hangs, unless it sleeps or is paused."""
    return server.phase is Phase.UP and _silence(before, pulse, now) >= rule.hung_after


def examine(
    before: Health, server: ServerState, pulse: EngineActivity, rule: ServerHealthConfig, now: float, *, halted: bool
) -> Health:
    """The health after one more heartbeat; `halted` is whether the engine is known to sleep or to be paused."""
    reason = server.reason if server.phase is Phase.DOWN else None
    # On a busy machine a refusal may come too late to be seen: that is no sign that somebody listens.
    refused = reason is Reason.REFUSED or (reason is Reason.TIMEOUT and before.refused_since is not None)
    health = replace(
        before,
        refused_since=_since(before.refused_since, now, holds=refused),
        dead_since=_since(before.dead_since, now, holds=reason is Reason.ENGINE_DEAD),
        mute_since=_since(before.mute_since, now, holds=reason is Reason.TIMEOUT and not refused),
        halted_at=now if halted else before.halted_at,
    )
    wedged, proven = _wedged(health, server, pulse, rule, now)
    hung = _hung(health, server, pulse, rule, now)
    return replace(health, wedged=wedged, hung=hung, proven=proven or bool(hung))


def _since(before: float | None, now: float, *, holds: bool) -> float | None:
    if not holds:
        return None
    return now if before is None else before


def _wedged(
    health: Health, server: ServerState, pulse: EngineActivity, rule: ServerHealthConfig, now: float
) -> tuple[str, bool]:
    """Why the server is wedged, and whether that is known of this moment."""
    if health.dead_since is not None and now - health.dead_since >= PROVEN_AFTER:
        return "it says that its engine is dead, and does not end", True
    if health.refused_since is None:
        return "", False
    refused = now - health.refused_since
    if pulse.open_since is not None and refused >= PROVEN_AFTER:
        return "it refuses connections, and a load that it was sent before is still open: its process never ended", True
    if rule.wedged_after is not None and refused >= rule.wedged_after and server.last_good is not None:
        waited = format_duration(rule.wedged_after)
        return f"it answered once and has refused every connection for {waited}; or its container is not started", True
    # The load was given up or broke off. Only a connection that the server ended shows that its process did, too.
    return (health.wedged, False) if health.wedged and not pulse.ended_by_server else ("", False)


def _hung(health: Health, server: ServerState, pulse: EngineActivity, rule: ServerHealthConfig, now: float) -> str:
    waited = format_duration(rule.hung_after)
    if suspects_hang(health, server, pulse, rule, now):
        return f"its /health answers, and its engine has answered no load and no probe for {waited}"
    if health.mute_since is not None and server.last_good is not None and now - health.mute_since >= rule.hung_after:
        return f"it takes connections and has answered nothing for {waited}"
    return ""


def _silence(health: Health, pulse: EngineActivity, now: float) -> float:
    """Seconds for which the engine has owed an answer; what is owed lapses when nothing was asked for as long again."""
    if pulse.owed_since is None:
        return 0.0
    began = max(pulse.owed_since, pulse.answered_at, health.halted_at)
    asked = now if pulse.open_since is not None else pulse.given_up_at
    return now - began if now - asked < asked - began else 0.0


def conditions_of(health: Health) -> tuple[Condition, ...]:
    """The conditions that hold because of it, at most one."""
    if health.wedged:
        return (Condition(ConditionType.SERVER_WEDGED, health.wedged, _ENDS),)
    if health.hung:
        return (Condition(ConditionType.SERVER_HUNG, health.hung, _ENDS),)
    return ()


def failing(health: Health) -> str:
    """Why the server's container should be ended, empty if it should not be."""
    return (health.wedged or health.hung) if health.proven else ""


_ENDS = "end its container (kill its process with SIGKILL); a livenessProbe that asks /serverz does that by itself"
