"""What became of the loads, who is to blame for a failure, and which of the missing may be sent by now.

Three traps are guarded against. A load's reply is not believed: "loaded" that is never listed is a failure, and a
request that broke off may still take effect; only a listing asked for after it says what came of it. A fault of the
server is not the adapter's: it holds everything back instead of counting against each adapter in turn. And a load is
not sent again before the listing has told what became of the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Adapter, Desired
from lora_sidecar.core.observation import Sight
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, LoadDeferred, Outcome, SleepState
from lora_sidecar.core.text import reasons, shown
from lora_sidecar.reconcile.backoff import UNTRIED, Attempt, Attempts, delay
from lora_sidecar.reconcile.beat import Beat, ListingBeat

_ASLEEP_PAUSE = 1.0
"""Seconds between two heartbeats while loads wait for an engine that sleeps."""

_SEEN = frozenset({Sight.PRESENT, Sight.UNREADABLE})
"""What a look must have found for its bytes to be others than those that failed: half a copy is other bytes, too."""

_NOT_LISTED = Failure(FailureKind.NOT_LISTED, "the server accepted the load and does not list the adapter")


class ServerBackoff(Struct, frozen=True):
    """A reason of the whole server for which nothing is loaded before `until`; `failures` counts it in a row."""

    failure: Failure
    failures: int
    until: float


class Loads(Struct, frozen=True):
    """What is known of the loads of this incarnation.

    `attempts` has an entry only where a load was tried. `backoff` and `deferred` are why nothing at all is loaded now.
    `ended_at` is when the last load ended. `restoring` is whether a restore was begun that is not over.
    """

    attempts: Attempts = {}
    backoff: ServerBackoff | None = None
    deferred: LoadDeferred | None = None
    ended_at: float = float("-inf")
    restoring: bool = False


def record_outcomes(state: Loads, beat: Beat, *, up: bool) -> Loads:
    """Take the outcomes of loads into account; `up` is whether this heartbeat got a listing.

    Those of another incarnation than that of `desired` say nothing any more. A load from a path that is wanted no more
    says nothing of the adapter, and is told all the same.
    """
    attempts = dict(state.attempts)
    for outcome in beat.outcomes:
        if outcome.incarnation != beat.desired.incarnation.number:
            continue
        name = outcome.adapter.name
        meant = _is_meant(outcome.adapter, beat)
        before = attempts.get(name, UNTRIED) if meant else UNTRIED
        ended = replace(before, ended_at=outcome.at, seconds=outcome.seconds, accepted=False, listed_since=None)
        ended, state = _ended(replace(ended, looked=outcome.looked), outcome, state, beat, up=up)
        if meant and not isinstance(outcome.result, LoadDeferred):
            attempts[name] = ended
    return replace(state, attempts=attempts)


def _ended(ended: Attempt, outcome: Outcome, state: Loads, beat: Beat, *, up: bool) -> tuple[Attempt, Loads]:
    state = replace(state, ended_at=max(state.ended_at, outcome.at))
    match outcome.result:
        case LoadDeferred():
            return ended, replace(state, deferred=outcome.result)
        case Accepted():
            ended = replace(ended, accepted=True, fresh=not outcome.result.already)
            return ended, replace(state, backoff=None, deferred=None)
        case Failure():
            if _blames_adapter(outcome.result, up=up):
                ended = ended.failed(outcome.result, beat.policy.backoff, beat.clock)
            _tell_failure(outcome.adapter, ended, outcome.result, beat)
            return ended, replace(state, backoff=_backoff(state.backoff, outcome.result, beat), deferred=None)
        case _:
            assert_never(outcome.result)


def _is_meant(adapter: Adapter, beat: Beat) -> bool:
    """Whether a load was of what is wanted now: what is desired, or what a replacement goes back to."""
    wanted = beat.desired.adapters.get(adapter.name)
    return wanted is None or adapter.path in (wanted.path, beat.former_paths.get(adapter.name))


def _backoff(backoff: ServerBackoff | None, failure: Failure, beat: Beat) -> ServerBackoff | None:
    match failure.kind:
        case FailureKind.SERVER_SETUP | FailureKind.UNAUTHORIZED | FailureKind.LOCAL:
            failures = backoff.failures + 1 if backoff is not None else 1
            wait = delay(failures, failure.kind, beat.policy.backoff, beat.clock.jitter)
            return ServerBackoff(failure, failures, beat.now + wait)
        case FailureKind.FILES | FailureKind.ADAPTER | FailureKind.UNCLASSIFIED:
            return None
        case FailureKind.ENGINE | FailureKind.AMBIGUOUS | FailureKind.NOT_LISTED:
            return backoff
        case _:
            assert_never(failure.kind)


def _blames_adapter(failure: Failure, *, up: bool) -> bool:
    """Whether a failure counts against the adapter; unless it names the adapter, not while the server is away."""
    match failure.kind:
        case FailureKind.FILES | FailureKind.ADAPTER | FailureKind.NOT_LISTED:
            return True
        case FailureKind.SERVER_SETUP | FailureKind.UNAUTHORIZED | FailureKind.LOCAL:
            return False
        case FailureKind.ENGINE | FailureKind.AMBIGUOUS | FailureKind.UNCLASSIFIED:
            return up
        case _:
            assert_never(failure.kind)


def _tell_failure(adapter: Adapter, attempt: Attempt, failure: Failure, beat: Beat) -> None:
    beat.warn(
        EventName.RESTORE_FAILED,
        repeats=f"{adapter.name} {failure.kind}",
        adapter=adapter.name,
        path=adapter.path,
        kind=failure.kind.value,
        status=failure.status,
        message=failure.message,
        consecutive=attempt.failures,
        seconds=round(attempt.seconds, 3),
        **({"doubts": list(attempt.looked.doubts)} if attempt.looked.doubts else {}),
    )


def reset(attempts: Attempts, before: Desired, after: Desired) -> Attempts:
    """The attempts without those at adapters that are not the same any more: a mended config deserves a fresh start."""
    return {n: a for n, a in attempts.items() if before.adapters.get(n) == after.adapters.get(n)}


def learn(state: Loads, beat: ListingBeat) -> Loads:
    """Forget what counted for the former incarnation, and let the other rules know of the attempts in this one."""
    state = Loads() if beat.restarted else state
    beat.attempts = dict(state.attempts)
    beat.last_load_ended = state.ended_at
    return state


def confirm_by_listing(state: Loads, beat: ListingBeat) -> Loads:
    """Decide by the listing the loads that ended before it was asked for, and end what held all of them back."""
    confirmed: dict[str, Attempt] = {}
    for name, attempt in beat.attempts.items():
        kept = _confirmed(name, attempt, beat)
        if kept is not None:
            confirmed[name] = _sooner_where_files_changed(name, kept, beat)
    beat.attempts = confirmed
    if not beat.missing:
        state = replace(state, backoff=None, deferred=None)
    if confirmed or state.backoff is not None or state.deferred is not None:
        beat.settled = False
    _raise_conditions(state, beat)
    return replace(state, attempts=confirmed)


def _confirmed(name: str, attempt: Attempt, beat: ListingBeat) -> Attempt | None:
    """The attempt after this listing; None where there is nothing to remember of it."""
    if name in beat.held:
        if attempt.listed_since is None and attempt.ended_at:
            _tell_success(name, attempt, beat)
        since = beat.now if attempt.listed_since is None else attempt.listed_since
        if attempt.failures == 0 or beat.now - since >= beat.policy.backoff.reset_after:
            return None
        return replace(attempt, listed_since=since, ended_at=0.0, accepted=False, fresh=False)
    adapter = beat.desired.adapters.get(name)
    if adapter is None:
        return None
    kept = replace(attempt, listed_since=None)
    if kept.accepted and kept.predates(beat.at):
        kept = replace(kept, accepted=False).failed(_NOT_LISTED, beat.policy.backoff, beat.clock)
        _tell_failure(adapter, kept, _NOT_LISTED, beat)
    return kept


def _tell_success(name: str, attempt: Attempt, beat: ListingBeat) -> None:
    beat.say(
        EventName.RESTORE_SUCCEEDED,
        adapter=name,
        path=beat.held[name],
        seconds=round(attempt.seconds, 3),
        previous_errors=attempt.failures,
        **({"unchecked": attempt.looked.unchecked} if attempt.looked.unchecked else {}),
        **({"doubts": list(attempt.looked.doubts)} if attempt.looked.doubts else {}),
    )


def _sooner_where_files_changed(name: str, attempt: Attempt, beat: ListingBeat) -> Attempt:
    adapter = beat.desired.adapters.get(name)
    look = beat.files.get(adapter.path) if adapter is not None else None
    if look is None or look.sight not in _SEEN or look.fingerprint == attempt.looked.files:
        return attempt
    return attempt.shorten(beat.policy.backoff)


def _raise_conditions(state: Loads, beat: ListingBeat) -> None:
    if beat.seen.runtime_loading is False:
        message = "the server has no route to load adapters at run time"
        hint = "start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        beat.raise_condition(ConditionType.RUNTIME_LOADING_DISABLED, message, hint)
    elif state.backoff is not None:
        hint = _HINTS.get(state.backoff.failure.kind, "the server was started so that it can load no adapter")
        beat.raise_condition(ConditionType.LOADING_REFUSED, state.backoff.failure.message, hint)
    if state.deferred is not None:
        beat.raise_condition(*_asleep(state.deferred))
    failing = {
        name: attempt.failure.message
        for name, attempt in beat.attempts.items()
        if name in beat.missing and attempt.failures and attempt.failure is not None
    }
    if failing:
        hint = "the reason is the server's own; mend the files or the server's flags"
        beat.raise_condition(ConditionType.ADAPTER_FAILING, reasons(failing), hint)


_HINTS: Mapping[FailureKind, str] = {
    FailureKind.UNAUTHORIZED: "the key in api_key_file must be one that the server was started with",
    FailureKind.LOCAL: "this process ran out of file descriptors or memory: raise the container's limits",
}


def _asleep(deferred: LoadDeferred) -> tuple[ConditionType, str, str]:
    if deferred.wakefulness is SleepState.ASLEEP:
        hint = "loads resume by themselves once the engine is woken up"
        return ConditionType.ENGINE_ASLEEP, deferred.detail, hint
    hint = "the server can sleep and does not say whether it does; is /metrics readable?"
    return ConditionType.ENGINE_STATE_UNKNOWN, deferred.detail, hint


def ready(state: Loads, beat: ListingBeat) -> list[Adapter]:
    """The loadable adapters whose wait is over."""
    loadable = beat.loadable
    if not loadable or beat.seen.runtime_loading is False:
        return []
    if state.deferred is not None:
        # Nothing tells when an engine wakes up, and its requests for adapters fail until they are back.
        beat.wake(beat.now + _ASLEEP_PAUSE)
    if state.backoff is not None and state.backoff.until > beat.now:
        beat.wake(state.backoff.until)
        return []
    found: list[Adapter] = []
    for name, adapter in loadable.items():
        attempt = beat.attempts.get(name, UNTRIED)
        if not attempt.predates(beat.at):
            continue
        if attempt.not_before > beat.now:
            beat.wake(attempt.not_before)
        else:
            found.append(adapter)
    return found


def announce(state: Loads, restores: tuple[Adapter, ...], beat: ListingBeat) -> Loads:
    """Tell the beginning of a restore, once."""
    if restores and not state.restoring:
        beat.say(
            EventName.RESTORE_STARTED,
            incarnation=beat.incarnation.incarnation.number,
            adapters=len(restores),
            first=restores[0].name,
            names=shown(adapter.name for adapter in restores),
        )
    return replace(state, restoring=bool(beat.missing) and (bool(restores) or state.restoring))
