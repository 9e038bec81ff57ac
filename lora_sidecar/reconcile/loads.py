"""What the outcomes of loads mean: who is to blame, and when the next one may be sent.

Two traps are guarded against. A load's reply is not believed: "loaded" that is never listed is a failure, and a
request that broke off may still take effect; only a listing asked for after it says what came of it. And a fault of the
server is not the adapter's: it puts everything on hold instead of counting against each adapter in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.events import Event, EventName, info, warning
from lora_sidecar.core.model import Adapter, Desired
from lora_sidecar.core.observation import Observation, Observed
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, LoadDeferred, Outcome
from lora_sidecar.reconcile.backoff import delay, doubled
from lora_sidecar.reconcile.state import Attempt, ServerBackoff, State

_NOT_LISTED = Failure(FailureKind.NOT_LISTED, "the server accepted the load and does not list the adapter")


class Now(Struct, frozen=True):
    """The arguments that stand in for a clock and a source of chance: now, and a jitter in [0, 1)."""

    now: float
    jitter: float


def absorb(
    work: State,
    outcomes: Iterable[Outcome],
    seen: Observation,
    desired: Desired,
    backoff: BackoffConfig,
    clock: Now,
) -> tuple[State, tuple[Event, ...]]:
    """Take the outcomes of loads into account.

    Those of another incarnation than that of `desired` say nothing any more. A load from a path that is wanted no more
    says nothing of the adapter, and is told all the same.
    """
    attempts = dict(work.attempts)
    hold, withheld, load_ended = work.hold, work.withheld, work.load_ended
    facts: list[Event] = []
    for outcome in outcomes:
        if outcome.incarnation != desired.incarnation.number:
            continue
        name = outcome.adapter.name
        meant = _is_meant(outcome.adapter, desired, work)
        before = attempts.get(name, Attempt()) if meant else Attempt()
        load_ended = max(load_ended, outcome.at)
        ended = replace(before, ended_at=outcome.at, seconds=outcome.seconds, accepted=False, listed_since=None)
        ended = replace(ended, looked=outcome.looked)
        match outcome.result:
            case LoadDeferred():
                withheld = outcome.result
            case Accepted():
                hold, withheld = None, None
                ended = replace(ended, accepted=True, fresh=not outcome.result.already)
            case Failure():
                withheld = None
                hold = _hold(hold, outcome.result, backoff, clock)
                ended = _failed(ended, outcome.result, seen, backoff, clock)
                facts.append(failed(outcome.adapter, ended, outcome.result))
            case _:
                assert_never(outcome.result)
        if meant and not isinstance(outcome.result, LoadDeferred):
            attempts[name] = ended
    return replace(work, attempts=attempts, hold=hold, withheld=withheld, load_ended=load_ended), tuple(facts)


def _is_meant(adapter: Adapter, desired: Desired, work: State) -> bool:
    """Whether a load was of what is wanted now: what is desired, or what a replacement goes back to."""
    wanted, swap = desired.adapters.get(adapter.name), work.swaps.get(adapter.name)
    return wanted is None or adapter.path in (wanted.path, swap.old if swap is not None else wanted.path)


def _hold(hold: ServerBackoff | None, failure: Failure, backoff: BackoffConfig, clock: Now) -> ServerBackoff | None:
    match failure.kind:
        case FailureKind.SERVER_SETUP | FailureKind.UNAUTHORIZED | FailureKind.LOCAL:
            failures = hold.failures + 1 if hold is not None else 1
            return ServerBackoff(failure, failures, clock.now + delay(failures, failure.kind, backoff, clock.jitter))
        case FailureKind.FILES | FailureKind.ADAPTER | FailureKind.UNCLASSIFIED:
            return None
        case FailureKind.ENGINE | FailureKind.AMBIGUOUS | FailureKind.NOT_LISTED:
            return hold
        case _:
            assert_never(failure.kind)


def _failed(attempt: Attempt, failure: Failure, seen: Observation, backoff: BackoffConfig, clock: Now) -> Attempt:
    return _counted(attempt, failure, backoff, clock) if _blames_adapter(failure, seen) else attempt


def _counted(attempt: Attempt, failure: Failure, backoff: BackoffConfig, clock: Now) -> Attempt:
    failures = attempt.failures + 1
    wait = delay(failures, failure.kind, backoff, clock.jitter)
    return replace(attempt, failures=failures, failure=failure, not_before=clock.now + wait)


def _blames_adapter(failure: Failure, seen: Observation) -> bool:
    """Whether a failure counts against the adapter; unless it names the adapter, not while the server is away."""
    match failure.kind:
        case FailureKind.FILES | FailureKind.ADAPTER | FailureKind.NOT_LISTED:
            return True
        case FailureKind.SERVER_SETUP | FailureKind.UNAUTHORIZED | FailureKind.LOCAL:
            return False
        case FailureKind.ENGINE | FailureKind.AMBIGUOUS | FailureKind.UNCLASSIFIED:
            return isinstance(seen, Observed)
        case _:
            assert_never(failure.kind)


def failed(adapter: Adapter, attempt: Attempt, failure: Failure) -> Event:
    """The fact that a load failed, with the server's own sentence."""
    return warning(
        EventName.RESTORE_FAILED,
        repeats=f"{adapter.name} {failure.kind}",
        adapter=adapter.name,
        path=adapter.path,
        kind=failure.kind.value,
        status=failure.status,
        message=failure.message,
        consecutive=attempt.failures,
        seconds=round(attempt.seconds, 3),
    )


def pardon(attempts: Mapping[str, Attempt], before: Desired, after: Desired) -> Mapping[str, Attempt]:
    """The attempts without those at adapters that are not the same any more: a mended config deserves a fresh start."""
    return {n: a for n, a in attempts.items() if before.adapters.get(n) == after.adapters.get(n)}


def hasten(attempts: Mapping[str, Attempt], backoff: BackoffConfig) -> Mapping[str, Attempt]:
    """The attempts where what adapters are held against has changed: none waits longer than the plain backoff."""
    hastened = {n: a.ended_at + doubled(a.failures, backoff) for n, a in attempts.items() if a.failures}
    return {n: replace(a, not_before=min(a.not_before, hastened.get(n, a.not_before))) for n, a in attempts.items()}


def undecided(attempt: Attempt, asked_at: float) -> bool:
    """Whether the listing asked for at `asked_at` is too old to say what came of the last load."""
    return attempt.ended_at > asked_at


def settle(
    attempts: Mapping[str, Attempt],
    listed: Mapping[str, str],
    desired: Mapping[str, Adapter],
    asked_at: float,
    backoff: BackoffConfig,
    clock: Now,
) -> tuple[Mapping[str, Attempt], tuple[Event, ...]]:
    """Decide the loads that ended before the listing was asked for, by that listing.

    `listed` maps the listed names to their paths, `desired` the desired ones to their adapters.
    """
    if not attempts:
        return attempts, ()
    settled: dict[str, Attempt] = {}
    facts: list[Event] = []
    for name, attempt in attempts.items():
        if name in listed:
            kept = _listed(attempt, backoff, clock)
            if attempt.listed_since is None and attempt.ended_at:
                facts.append(_succeeded(name, listed[name], attempt))
        elif name in desired:
            kept = replace(attempt, listed_since=None)
            if attempt.accepted and not undecided(attempt, asked_at):
                kept = replace(kept, accepted=False)
                kept = _counted(kept, _NOT_LISTED, backoff, clock)
                facts.append(failed(desired[name], kept, _NOT_LISTED))
        else:
            continue
        if kept is not None:
            settled[name] = kept
    return settled, tuple(facts)


def _listed(attempt: Attempt, backoff: BackoffConfig, clock: Now) -> Attempt | None:
    """The attempt of an adapter that is listed: forgotten at once if it never failed, else once it stayed listed."""
    since = clock.now if attempt.listed_since is None else attempt.listed_since
    if attempt.failures == 0 or clock.now - since >= backoff.reset_after:
        return None
    return replace(attempt, listed_since=since, ended_at=0.0, accepted=False, fresh=False)


def _succeeded(name: str, path: str, attempt: Attempt) -> Event:
    return info(
        EventName.RESTORE_SUCCEEDED,
        adapter=name,
        path=path,
        seconds=round(attempt.seconds, 3),
        previous_errors=attempt.failures,
        **({"unchecked": attempt.looked.unchecked} if attempt.looked.unchecked else {}),
        **({"doubts": list(attempt.looked.doubts)} if attempt.looked.doubts else {}),
    )
