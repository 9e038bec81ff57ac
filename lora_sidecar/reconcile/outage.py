"""What the observations say of the server over time: starting, up, down, or not to be trusted.

The trap guarded against is one slow answer taken for a death: a timeout counts only when it repeats, so a busy server
neither loses its place nor fills the log.
"""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from msgspec import Struct

from lora_sidecar.config.settings import HeartbeatConfig
from lora_sidecar.core.events import EventName
from lora_sidecar.core.observation import Observation, Observed, Reason, Unknown
from lora_sidecar.reconcile.beat import Beat

_GONE = frozenset({Reason.REFUSED, Reason.RESET, Reason.UNREACHABLE, Reason.ENGINE_DEAD})
"""Unknown observations of which a single one shows that the server is away."""

_EAGER = 120.0
"""Seconds of an outage during which the server is looked for at the quickest cadence; then ever more slowly."""


class Phase(StrEnum):
    """What is known of the server."""

    STARTING = "starting"
    """It has not given a good answer since this process started."""
    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"
    """It answers, and not in a way that can be trusted."""


class ServerState(Struct, frozen=True):
    """What the last observations together say of the server.

    `since` is when the phase began. `reason` and `detail` are those of the newest unknown observation. `errors`
    counts unknown observations in a row, `timeouts` those of them that were timeouts in a row. `interrupted` is whether
    the server may have restarted unseen since the last good listing. `last_good` is when that was.
    """

    phase: Phase = Phase.STARTING
    since: float = 0.0
    reason: Reason | None = None
    detail: str = ""
    hint: str = ""
    errors: int = 0
    timeouts: int = 0
    interrupted: bool = False
    last_good: float | None = None


def advance(state: ServerState, seen: Observation, beat: Beat) -> ServerState:
    """Take one more observation into account, and tell the transition that it made."""
    match seen:
        case Observed():
            return _answered(state, seen.at, beat)
        case Unknown():
            return _failed(state, seen, beat)
        case _:
            assert_never(seen)


def _answered(state: ServerState, now: float, beat: Beat) -> ServerState:
    if state.phase is Phase.UP:
        if state.errors:
            beat.say(EventName.PROBE_RECOVERED, previous_errors=state.errors)
        return ServerState(Phase.UP, state.since, last_good=now)
    away = now - (state.last_good if state.last_good is not None else state.since)
    beat.say(EventName.SERVER_UP, after=state.phase.value, away_seconds=round(away, 3), previous_errors=state.errors)
    return ServerState(Phase.UP, now, last_good=now)


def _failed(state: ServerState, seen: Unknown, beat: Beat) -> ServerState:
    timeouts = state.timeouts + 1 if seen.reason is Reason.TIMEOUT else 0
    excused = seen.reason is Reason.TIMEOUT and timeouts < beat.policy.heartbeat.down_after_timeouts
    phase = state.phase if excused else _phase_after(state.phase, seen.reason)
    changed = phase is not state.phase
    after = ServerState(
        phase=phase,
        since=seen.at if changed else state.since,
        reason=seen.reason,
        detail=seen.detail,
        hint=seen.hint,
        errors=state.errors + 1,
        timeouts=timeouts,
        interrupted=state.interrupted or not excused,
        last_good=state.last_good,
    )
    said = {"reason": seen.reason.value, "detail": seen.detail} | ({"hint": seen.hint} if seen.hint else {})
    if changed and phase is Phase.DOWN:
        last_good = None if state.last_good is None else round(seen.at - state.last_good, 3)
        beat.warn(EventName.SERVER_DOWN, **said, since_last_good_seconds=last_good)
    elif phase is not Phase.DOWN and not (phase is Phase.STARTING and state.reason is seen.reason):
        beat.warn(EventName.PROBE_FAILED, **said, consecutive=after.errors, repeats=seen.reason.value)
    return after


def _phase_after(phase: Phase, reason: Reason) -> Phase:
    if reason in _GONE or reason is Reason.TIMEOUT:
        return Phase.STARTING if phase is Phase.STARTING else Phase.DOWN
    if reason is Reason.STARTING:
        # A server that was down and says that it starts is on its way back: it is looked for as eagerly as before.
        return phase if phase in (Phase.STARTING, Phase.DOWN) else Phase.UNKNOWN
    return Phase.UNKNOWN


def next_look(state: ServerState, heartbeat: HeartbeatConfig, now: float) -> float:
    """Seconds between the starts of two heartbeats: short while the server is away, growing in a long outage.

    A refused connection on loopback costs microseconds, and the first one that is accepted is the moment to restore.
    """
    if state.phase not in (Phase.DOWN, Phase.STARTING):
        return heartbeat.interval
    away = now - state.since
    slowed = heartbeat.away_interval * max(1.0, away / _EAGER)
    return min(heartbeat.interval, slowed)
