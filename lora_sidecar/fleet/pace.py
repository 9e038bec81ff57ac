"""How long to wait before the API is asked again, as plain arithmetic. `jitter` is in [0, 1) throughout.

The traps guarded against are replicas that return in step after the API server was away, and a fleet of a thousand that
all list at once since the version they watched from was forgotten. The figures are client-go's, which API servers are
used to.
"""

from __future__ import annotations

from typing import Final

FIRST: Final = 0.8
LONGEST: Final = 30.0
RESET: Final = 120.0
"""Seconds: a watch that lived so long was sound, so the next failure is a first one."""

LONGEST_ASKED: Final = 60.0
"""Seconds of a `Retry-After` that are heeded: what asks for more has lost its mind, and we ask for little."""

WATCH_SECONDS: Final = (300.0, 600.0)
RELIST_SECONDS: Final = (300.0, 900.0)
"""However good a watch looks: one from a version in the future hears nothing (kubernetes#107457)."""

EXPIRED_SECONDS: Final = 1.0

WRITE_FIRST: Final = 0.05
WRITE_LONGEST: Final = 2.0

_DOUBLINGS: Final = 16


def after_failure(failures: int, retry_after: float | None, jitter: float) -> float:
    """Seconds after the `failures`-th failure in a row (from 1): 0.8 doubling to 30, and up to as much again.

    Where the server asked for more, that and up to a second.
    """
    step = min(LONGEST, FIRST * 2.0 ** min(max(failures, 1) - 1, _DOUBLINGS)) * (1 + jitter)
    if retry_after is None:
        return step
    return max(step, min(max(retry_after, 0.0), LONGEST_ASKED) + jitter)


def after_expiry(jitter: float) -> float:
    """Seconds between hearing that a version is forgotten and the list: everybody hears it at once."""
    return EXPIRED_SECONDS * jitter


def until_relist(jitter: float) -> float:
    """Seconds from one list to the next."""
    return _between(RELIST_SECONDS, jitter)


def of_watch(jitter: float) -> float:
    """Seconds for which a watch is asked."""
    return _between(WATCH_SECONDS, jitter)


def after_conflict(tries: int, jitter: float) -> float:
    """Seconds before a write is tried again after its `tries`-th try (from 1): 0 to 50 ms, doubling to 0 to 2 s."""
    return float(min(WRITE_LONGEST, WRITE_FIRST * 2.0 ** min(max(tries, 1) - 1, _DOUBLINGS)) * jitter)


def _between(bounds: tuple[float, float], jitter: float) -> float:
    low, high = bounds
    return low + (high - low) * jitter
