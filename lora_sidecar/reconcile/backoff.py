"""How long to wait after a failed load, as plain arithmetic.

Two traps are guarded against. Waiting inside a sleeping retry loop cannot be shown, cannot be cut short by a better
listing and holds up the other adapters; so waiting is a time in a value, compared with now. And a backoff that is
reset by the first success starts a storm when an adapter flaps; so it is reset only after the adapter stayed listed.
"""

from __future__ import annotations

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.outcomes import FailureKind

_DOUBLINGS = 32
"""No cap needs more; it keeps 2**n a small number however long an adapter has been failing."""


def delay(failures: int, kind: FailureKind, backoff: BackoffConfig, jitter: float) -> float:
    """Seconds to wait after the `failures`-th failure in a row (from 1), with `jitter` in [0, 1).

    Doubles from `initial` to `max` with equal jitter: half of the step is certain, the other half is spread, so that
    pods that failed together do not return together and none returns at once. A load that the server refused for
    what the adapter is waits `parked`.
    """
    step = backoff.parked if kind is FailureKind.ADAPTER else doubled(failures, backoff)
    return step / 2 + step / 2 * jitter


def doubled(failures: int, backoff: BackoffConfig) -> float:
    """Seconds of the step after the `failures`-th failure in a row (from 1), without jitter."""
    doublings = min(max(failures, 1) - 1, _DOUBLINGS)
    return float(min(backoff.max, backoff.initial * 2**doublings))
