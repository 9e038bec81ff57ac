"""What is known of each adapter, in one word and a reason, for whoever is shown it.

The trap guarded against is an adapter that is missing and does not say why: whatever keeps one from being loaded, or
threatens one that is, has its words here, so that the page, the table, `/status` and the readiness tell the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from msgspec import Struct

from lora_sidecar.core.model import Adapter, Desired, Suspect
from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.core.paths import is_listed_path
from lora_sidecar.core.text import TEXT_LENGTH_SHOWN, printable
from lora_sidecar.reconcile.backoff import Attempt
from lora_sidecar.reconcile.beat import BlockReason
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.reconcile.poison import died
from lora_sidecar.reconcile.replacement import Replacement, ReplacementPhase
from lora_sidecar.reconcile.state import State
from lora_sidecar.reconcile.verification import ProbeRecord, Trials


class AdapterState(StrEnum):
    """What is known of one adapter."""

    LISTED = "listed"
    DEAD = "dead"
    """Listed, and answers nothing while the base model does."""
    NOT_APPLIED = "not_applied"
    """Listed, and answers with the base model's very numbers."""
    REPLACED = "replaced"
    """Listed, with another path than desired."""
    EVICTED = "evicted"
    """Taken out of the listing by the server to make room; it loads the adapter by itself when it is asked for."""
    MISSING = "missing"
    """Not listed, and about to be restored or found to have been unloaded."""
    BACKOFF = "backoff"
    """Not listed, and tried again soon: a load failed."""
    PARKED = "parked"
    """Not listed, and waiting for other files, another config or another server."""
    QUARANTINED = "quarantined"
    """Not listed, and suspected of having killed the server."""
    HELD = "held"
    """Not listed, and nothing is loaded for a reason of the whole server."""
    WITHDRAWN = "withdrawn"
    """Not desired: it was unloaded by request, or is to be."""
    UNKNOWN = "unknown"
    """The server is not up, so nothing can be said."""


SERVED = frozenset(
    {
        AdapterState.LISTED,
        AdapterState.DEAD,
        AdapterState.NOT_APPLIED,
        AdapterState.REPLACED,
        AdapterState.EVICTED,
    }
)
"""The states in which a required adapter lets the pod be ready: readiness is about the listing."""


class AdapterStatus(Struct, frozen=True):
    """One desired adapter, its state, the reason where there is something to say, and when the state began.

    `proven` is whether its last probe by inference got an answer of its own; False where nothing is probed.
    """

    adapter: Adapter
    state: AdapterState
    reason: str = ""
    since: float = 0.0
    proven: bool = False


class WithdrawnStatus(Struct, frozen=True):
    """One adapter that was unloaded by request, or is to be.

    `declared` is what the config says of it, None where it says nothing.
    """

    name: str
    declared: Adapter | None
    reason: str


def states_of(
    desired: Desired, state: State, trials: Trials, before: Iterable[AdapterStatus] = ()
) -> tuple[AdapterStatus, ...]:
    """Every desired adapter with its state, by name; `before` is what the last call gave, so that `since` goes on."""
    listed = {} if state.last is None else {card.name: card.path for card in state.last.adapters}
    up = state.server.phase is Phase.UP
    now = state.last.at if up and state.last is not None else state.server.since
    known = {one.adapter.name: one for one in before}
    found: list[AdapterStatus] = []
    for name, adapter in sorted(desired.adapters.items()):
        trial = trials.get(name) if up and name in listed else None
        if not up:
            word, reason = AdapterState.UNKNOWN, f"the server is {state.server.phase.value}"
        elif name in listed:
            word, reason = _listed(adapter, listed[name], desired, state, trial)
        elif name in state.capacity.evicted:
            word, reason = AdapterState.EVICTED, "the server made room, and loads it again by itself"
        else:
            word, reason = _missing(adapter, desired, state)
        last = known.get(name)
        since = last.since if last is not None and last.state is word else now
        proven = trial is not None and trial.proven and word is AdapterState.LISTED
        found.append(AdapterStatus(adapter, word, printable(reason, TEXT_LENGTH_SHOWN), since, proven))
    return tuple(found)


def withdrawn_of(desired: Desired) -> tuple[WithdrawnStatus, ...]:
    """Every adapter that was unloaded by request, or is to be, by name."""
    return tuple(
        WithdrawnStatus(name, one.declared, "to be unloaded" if one.pending else "unloaded by request")
        for name, one in sorted(desired.withdrawn.items())
    )


def _listed(
    adapter: Adapter, path: str, desired: Desired, state: State, trial: ProbeRecord | None
) -> tuple[AdapterState, str]:
    name = adapter.name
    if not is_listed_path(adapter, path):
        why = state.replacements.reasons.get(name)
        return AdapterState.REPLACED, f"listed with the path {path}" + (f": {why}" if why else "")
    if trial is not None and trial.is_dead:
        return AdapterState.DEAD, f"it gives no answer while the base model does: {trial.why}"
    if trial is not None and trial.is_alike:
        return AdapterState.NOT_APPLIED, "it answers with the base model's very numbers"
    return AdapterState.LISTED, state.unreadable.get(name, "") or _suspicion(desired.suspects.get(name))


def _missing(adapter: Adapter, desired: Desired, state: State) -> tuple[AdapterState, str]:
    name, paused = adapter.name, desired.paused
    if paused is not None:
        return AdapterState.HELD, f"paused: {paused.reason or 'no reason was given'}"
    blocked = state.blocked.get(name)
    if blocked is not None:
        return _BLOCKED[blocked.reason], blocked.why
    swap = _replacing(state.replacements.by_name.get(name))
    attempt = state.loads.attempts.get(name, Attempt())
    if attempt.failures and attempt.failure is not None:
        parked = attempt.failure.kind is FailureKind.ADAPTER
        return AdapterState.PARKED if parked else AdapterState.BACKOFF, swap or attempt.failure.message
    held = _held(state)
    if held:
        return AdapterState.HELD, held
    if swap:
        return AdapterState.MISSING, swap
    suspicion = _suspicion(desired.suspects.get(name))
    if suspicion:
        return AdapterState.MISSING, f"{suspicion}; it is loaded last and alone"
    if name in state.missed:
        return AdapterState.MISSING, "the next listing tells whether it was unloaded"
    if state.slow_start.is_slow:
        return AdapterState.MISSING, "the server may have died of a load: the restore starts slowly"
    return AdapterState.MISSING, ""


def _suspicion(suspect: Suspect | None) -> str:
    return "" if suspect is None or not suspect.deaths else f"suspected: {died(suspect.deaths)}"


def _replacing(swap: Replacement | None) -> str:
    if swap is None or swap.phase not in (ReplacementPhase.LOADING, ReplacementPhase.REVERTING):
        return ""
    if swap.phase is ReplacementPhase.LOADING and not swap.why:
        return f"it is being replaced: unloaded from {swap.old}, to be loaded from {swap.new}"
    return f"it cannot be loaded from {swap.new}: {swap.why}; the former one is loaded again"


def _held(state: State) -> str:
    """Why nothing at all is loaded, empty if nothing stands in the way."""
    if state.loads.backoff is not None:
        return state.loads.backoff.failure.message
    if state.loads.deferred is not None:
        return state.loads.deferred.detail
    if state.last is not None and state.last.runtime_loading is False:
        return "the server cannot load adapters at run time"
    return ""


_BLOCKED: Mapping[BlockReason, AdapterState] = {
    BlockReason.QUARANTINED: AdapterState.QUARANTINED,
    BlockReason.FILES_GONE: AdapterState.PARKED,
    BlockReason.CAPACITY: AdapterState.PARKED,
    BlockReason.NAME_TAKEN: AdapterState.PARKED,
    BlockReason.BASE_MODEL: AdapterState.PARKED,
}


def same_states(before: tuple[Desired, State, Trials], after: tuple[Desired, State, Trials]) -> bool:
    """Whether the adapters of both have the same states: most heartbeats change none of ten thousand."""
    return _what_shows(*before) == _what_shows(*after)


def _what_shows(desired: Desired, state: State, trials: Trials) -> tuple[object, ...]:
    """What a state or its reason depends on."""
    last = state.last
    return (
        desired.adapters,
        desired.paused,
        desired.suspects,
        trials,
        state.server.phase,
        None if last is None else (last.adapters, last.runtime_loading),
        (state.loads.attempts, state.loads.backoff, state.loads.deferred),
        (state.blocked, state.unreadable, state.missed, state.slow_start),
        (state.capacity.evicted, state.replacements),
    )
