"""What the observations say of the server over time: its phase, its outages, and when each has been made good.

Two traps are guarded against. One slow answer is not a death: a timeout counts only when it repeats, so a busy server
neither loses its place nor fills the log. And "the server is back" is not "the adapters are back": a recovery ends when
everything lost is listed again or known to fail, and is told once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from msgspec.structs import replace

from lora_sidecar.config.settings import HeartbeatConfig
from lora_sidecar.core.events import Event, EventName, info, warning
from lora_sidecar.core.model import Desired
from lora_sidecar.core.observation import Observation, Observed, Reason, Unknown
from lora_sidecar.core.text import shown
from lora_sidecar.reconcile.incarnation import Identified
from lora_sidecar.reconcile.state import Attempt, Phase, Recovery, ServerState

_GONE = frozenset({Reason.REFUSED, Reason.RESET, Reason.UNREACHABLE, Reason.ENGINE_DEAD})
"""Unknown observations of which a single one shows that the server is away."""

_EAGER = 120.0
"""Seconds of an outage during which the server is looked for at the quickest cadence; then ever more slowly."""


def advance(state: ServerState, seen: Observation, heartbeat: HeartbeatConfig) -> tuple[ServerState, tuple[Event, ...]]:
    """Take one more observation into account; the facts are the transitions that it made."""
    match seen:
        case Observed():
            return _answered(state, seen.at)
        case Unknown():
            return _failed(state, seen, heartbeat.down_after_timeouts)
        case _:
            assert_never(seen)


def _answered(state: ServerState, now: float) -> tuple[ServerState, tuple[Event, ...]]:
    if state.phase is Phase.UP:
        facts = (info(EventName.PROBE_RECOVERED, previous_errors=state.errors),) if state.errors else ()
        return ServerState(Phase.UP, state.since, last_good=now), facts
    away = now - (state.last_good if state.last_good is not None else state.since)
    fact = info(EventName.SERVER_UP, after=state.phase.value, away_seconds=round(away, 3), previous_errors=state.errors)
    return ServerState(Phase.UP, now, last_good=now), (fact,)


def _failed(state: ServerState, seen: Unknown, patience: int) -> tuple[ServerState, tuple[Event, ...]]:
    timeouts = state.timeouts + 1 if seen.reason is Reason.TIMEOUT else 0
    excused = seen.reason is Reason.TIMEOUT and timeouts < patience
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
        return after, (warning(EventName.SERVER_DOWN, **said, since_last_good_seconds=last_good),)
    if phase is Phase.DOWN or (phase is Phase.STARTING and state.reason is seen.reason):
        return after, ()
    return after, (warning(EventName.PROBE_FAILED, **said, consecutive=after.errors, repeats=seen.reason.value),)


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


def begin(recovery: Recovery | None, before: ServerState, after: ServerState, seen: Unknown) -> Recovery | None:
    """The recovery to be tracked from an unknown observation on; None while the server has not left."""
    if after.phase is Phase.UP or before.last_good is None:
        return recovery
    if recovery is not None and not recovery.initial:
        return replace(recovery, up_at=None)
    lost = frozenset[str]() if recovery is None else recovery.lost
    return Recovery(began=seen.at, reason=seen.reason.value, last_good=before.last_good, lost=lost)


def resume(
    recovery: Recovery | None, judgement: Identified, last: Observed | None, lost: frozenset[str], now: float
) -> Recovery | None:
    """The recovery to be tracked from a good listing on: one under way, or one of a restart that nobody saw.

    `last` is the good listing before this one, None where this is the first since this process started.
    """
    nothing_seen = last is None and not lost
    if judgement.restarted and (recovery is None or recovery.initial) and not nothing_seen:
        last_good = None if last is None else last.at
        lost = lost if recovery is None else lost | recovery.lost
        return Recovery(now, "restarted unseen", last_good=last_good, up_at=now, restarts=1, lost=lost)
    if recovery is None:
        return Recovery(now, "first listing", up_at=now, lost=lost, initial=True) if last is None and lost else None
    up_at = now if recovery.up_at is None else recovery.up_at
    if judgement.restarted:
        return replace(recovery, up_at=up_at, restarts=recovery.restarts + 1, lost=recovery.lost | lost)
    return replace(recovery, up_at=up_at)


def conclude(
    recovery: Recovery | None,
    desired: Desired,
    attempts: Mapping[str, Attempt],
    missing: frozenset[str],
    blocked: Mapping[str, str],
    now: float,
) -> tuple[Recovery | None, tuple[Event, ...]]:
    """End a recovery once each lost adapter is listed, no longer desired, blocked, or has failed at least once."""
    if recovery is None or recovery.up_at is None:
        return recovery, ()
    open_ = recovery.lost & missing & desired.adapters.keys()
    failed = {name: _why(name, attempts, blocked) for name in open_}
    if not all(failed.values()):
        return recovery, ()
    restored = (recovery.lost & desired.adapters.keys()) - missing
    told = {
        "lost": len(recovery.lost),
        "restored": len(restored),
        "failed": len(failed),
        "restored_adapters": shown(restored),
        "failed_adapters": {name: failed[name] for name in sorted(failed)[:20]},
        "restore_seconds": round(now - recovery.up_at, 3),
    }
    if recovery.initial:
        return None, (_told(EventName.RESTORE_COMPLETED, told, failed=bool(failed)),)
    began = recovery.last_good if recovery.last_good is not None else recovery.began
    outage = {
        "reason": recovery.reason,
        "restarts": recovery.restarts,
        "down_at": began,
        "up_at": recovery.up_at,
        "outage_seconds": round(recovery.up_at - began, 3),
        "total_seconds": round(now - began, 3),
    }
    return None, (_told(EventName.RECOVERY_COMPLETED, outage | told, failed=bool(failed)),)


def _told(event: EventName, fields: Mapping[str, Any], *, failed: bool) -> Event:
    return warning(event, **fields) if failed else info(event, **fields)


def _why(name: str, attempts: Mapping[str, Attempt], blocked: Mapping[str, str]) -> str:
    if name in blocked:
        return blocked[name]
    attempt = attempts.get(name)
    if attempt is None or attempt.failures == 0 or attempt.failure is None:
        return ""
    return attempt.failure.message
