"""How long to wait after a failed load, as plain arithmetic.

Two traps are guarded against. Waiting inside a sleeping retry loop cannot be shown, cannot be cut short by a better
listing and holds up the other adapters; so waiting is a time in a value, compared with now. And a backoff that is
reset by the first success starts a storm when an adapter flaps; so it is reset only after the adapter stayed listed.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.outcomes import Failure, FailureKind, Looked

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


class Now(Struct, frozen=True):
    """The arguments that stand in for a clock and a source of chance: now, and a jitter in [0, 1)."""

    now: float
    jitter: float


class Attempt(Struct, frozen=True):
    """What is known of the loads, or of the unloads, of one adapter during one incarnation.

    `failures` counts failures in a row. Nothing is sent before `not_before`. `ended_at` is when the last request ended:
    only a listing asked for later can say what came of it. `accepted` is whether the server said yes to it, `fresh`
    whether it was that load that put the adapter there. `listed_since` is when the adapter was seen listed after it,
    None while it is missing.
    """

    failures: int = 0
    failure: Failure | None = None
    not_before: float = 0.0
    ended_at: float = 0.0
    seconds: float = 0.0
    accepted: bool = False
    fresh: bool = False
    listed_since: float | None = None
    looked: Looked = Looked()

    def predates(self, asked_at: float) -> bool:
        """Whether it ended before a listing was asked for, so that the listing says what came of it."""
        return self.ended_at <= asked_at

    def failed(self, failure: Failure, backoff: BackoffConfig, clock: Now) -> Attempt:
        """The attempt with one more failure in a row."""
        failures = self.failures + 1
        wait = delay(failures, failure.kind, backoff, clock.jitter)
        return replace(self, failures=failures, failure=failure, not_before=clock.now + wait)

    def shorten(self, backoff: BackoffConfig) -> Attempt:
        """The attempt where what the adapter is held against has changed: it waits no longer than the plain backoff.

        Not for nothing: files that are touched all the time must not become a load at every heartbeat.
        """
        if not self.failures:
            return self
        return replace(self, not_before=min(self.not_before, self.ended_at + doubled(self.failures, backoff)))


Attempts = Mapping[str, Attempt]
"""By the name of the adapter."""

UNTRIED = Attempt()
