"""The way back from an outage: from the last good answer before it until each adapter that was lost is accounted for.

The trap guarded against is "the server is back" taken for "the adapters are back": a recovery ends when everything lost
is listed again or known to fail, and is told once.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.core.events import EventName
from lora_sidecar.core.observation import Unknown
from lora_sidecar.core.text import shown
from lora_sidecar.reconcile.beat import ListingBeat

_FAILED_SHOWN = 20
"""How many failed adapters one line gives reasons for."""


class Recovery(Struct, frozen=True):
    """An outage and the way back from it, until everything lost is restored or known to fail.

    `last_good` is the last good answer before the outage (None if this process saw none), `up_at` the first after
    it (None while there is none). `restarts` counts incarnations that began meanwhile. `lost` are the adapters that
    were missing after a restart. `initial` marks the first restore of a fresh start, which follows no outage.
    """

    began: float
    reason: str
    last_good: float | None = None
    up_at: float | None = None
    restarts: int = 0
    lost: frozenset[str] = frozenset()
    initial: bool = False


def begin(recovery: Recovery | None, last_good: float | None, seen: Unknown, *, up: bool) -> Recovery | None:
    """The recovery to be tracked from an unknown observation on; None while the server has not left.

    `last_good` is when the last good answer before was, `up` whether the server still counts as up.
    """
    if up or last_good is None:
        return recovery
    if recovery is not None and not recovery.initial:
        return replace(recovery, up_at=None)
    lost = frozenset[str]() if recovery is None else recovery.lost
    return Recovery(began=seen.at, reason=seen.reason.value, last_good=last_good, lost=lost)


def decide(recovery: Recovery | None, beat: ListingBeat) -> Recovery | None:
    """Begin, go on with or end a recovery at a good listing."""
    recovery = _conclude(_resume(recovery, beat), beat)
    if recovery is not None:
        beat.settled = False
    return recovery


def _resume(recovery: Recovery | None, beat: ListingBeat) -> Recovery | None:
    """The recovery from a good listing on: one under way, or one of a restart that nobody saw."""
    lost, now, last = frozenset(beat.missing), beat.at, beat.last
    nothing_seen = last is None and not lost
    if beat.restarted and (recovery is None or recovery.initial) and not nothing_seen:
        last_good = None if last is None else last.at
        lost = lost if recovery is None else lost | recovery.lost
        return Recovery(now, "restarted unseen", last_good=last_good, up_at=now, restarts=1, lost=lost)
    if recovery is None:
        return Recovery(now, "first listing", up_at=now, lost=lost, initial=True) if last is None and lost else None
    up_at = now if recovery.up_at is None else recovery.up_at
    if beat.restarted:
        return replace(recovery, up_at=up_at, restarts=recovery.restarts + 1, lost=recovery.lost | lost)
    return replace(recovery, up_at=up_at)


def _conclude(recovery: Recovery | None, beat: ListingBeat) -> Recovery | None:
    """End a recovery once each lost adapter is listed, no longer desired, blocked, or has failed at least once."""
    if recovery is None or recovery.up_at is None:
        return recovery
    desired, missing = beat.desired.adapters, beat.missing.keys()
    failed = {name: _why(name, beat) for name in recovery.lost & missing & desired.keys()}
    if not all(failed.values()):
        return recovery
    restored = (recovery.lost & desired.keys()) - missing
    fields: dict[str, Any] = {
        "lost": len(recovery.lost),
        "restored": len(restored),
        "failed": len(failed),
        "restored_adapters": shown(restored),
        "failed_adapters": {name: failed[name] for name in sorted(failed)[:_FAILED_SHOWN]},
        "restore_seconds": round(beat.at - recovery.up_at, 3),
    }
    tell = beat.warn if failed else beat.say
    if recovery.initial:
        tell(EventName.RESTORE_COMPLETED, **fields)
        return None
    began = recovery.last_good if recovery.last_good is not None else recovery.began
    outage: dict[str, Any] = {
        "reason": recovery.reason,
        "restarts": recovery.restarts,
        "down_at": began,
        "up_at": recovery.up_at,
        "outage_seconds": round(recovery.up_at - began, 3),
        "total_seconds": round(beat.at - began, 3),
    }
    tell(EventName.RECOVERY_COMPLETED, **(outage | fields))
    return None


def _why(name: str, beat: ListingBeat) -> str:
    """Why a lost adapter is not back, empty while it may still come."""
    if any(adapter.name == name for adapter in beat.in_flight):
        return ""
    if name in beat.blocked:
        return beat.blocked[name].why
    attempt = beat.attempts.get(name)
    if attempt is None or attempt.failures == 0 or attempt.failure is None:
        return ""
    return attempt.failure.message
