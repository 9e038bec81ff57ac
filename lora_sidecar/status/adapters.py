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
from lora_sidecar.reconcile.desired import is_listed_path
from lora_sidecar.reconcile.pacing import flapping
from lora_sidecar.reconcile.poison import died
from lora_sidecar.reconcile.state import Attempt, BlockReason, Phase, Replacement, ReplacementPhase, State
from lora_sidecar.reconcile.verification import ProbeRecord, Trials
from lora_sidecar.status.history import truncate


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
    desired: Desired, work: State, trials: Trials, before: Iterable[AdapterStatus] = ()
) -> tuple[AdapterStatus, ...]:
    """Every desired adapter with its state, by name; `before` is what the last call gave, so that `since` goes on."""
    listed = {} if work.last is None else {card.name: card.path for card in work.last.adapters}
    up = work.server.phase is Phase.UP
    now = work.last.at if up and work.last is not None else work.server.since
    known = {one.adapter.name: one for one in before}
    found: list[AdapterStatus] = []
    for name, adapter in sorted(desired.adapters.items()):
        trial = trials.get(name) if up and name in listed else None
        if not up:
            state, reason = AdapterState.UNKNOWN, f"the server is {work.server.phase.value}"
        elif name in listed:
            state, reason = _listed(adapter, listed[name], desired, work, trial)
        elif name in work.evicted:
            state, reason = AdapterState.EVICTED, "the server made room, and loads it again by itself"
        else:
            state, reason = _missing(adapter, desired, work)
        last = known.get(name)
        since = last.since if last is not None and last.state is state else now
        proven = trial is not None and trial.proven and state is AdapterState.LISTED
        found.append(AdapterStatus(adapter, state, truncate(reason), since, proven))
    return tuple(found)


def withdrawn_of(desired: Desired) -> tuple[WithdrawnStatus, ...]:
    """Every adapter that was unloaded by request, or is to be, by name."""
    return tuple(
        WithdrawnStatus(name, one.declared, "to be unloaded" if one.pending else "unloaded by request")
        for name, one in sorted(desired.withdrawn.items())
    )


def _listed(
    adapter: Adapter, path: str, desired: Desired, work: State, trial: ProbeRecord | None
) -> tuple[AdapterState, str]:
    name = adapter.name
    if not is_listed_path(adapter, path):
        why = work.path_reasons.get(name)
        return AdapterState.REPLACED, f"listed with the path {path}" + (f": {why}" if why else "")
    if trial is not None and trial.is_dead:
        return AdapterState.DEAD, f"it gives no answer while the base model does: {trial.why}"
    if trial is not None and trial.is_alike:
        return AdapterState.NOT_APPLIED, "it answers with the base model's very numbers"
    return AdapterState.LISTED, work.spoilt.get(name, "") or _suspicion(desired.suspects.get(name))


def _missing(adapter: Adapter, desired: Desired, work: State) -> tuple[AdapterState, str]:
    name, paused = adapter.name, desired.paused
    if paused is not None:
        return AdapterState.HELD, f"paused: {paused.reason or 'no reason was given'}"
    barred = work.barred.get(name)
    if barred is not None:
        return _BARS[barred.bar], barred.reason
    swap = _replacing(work.swaps.get(name))
    attempt = work.attempts.get(name, Attempt())
    if attempt.failures and attempt.failure is not None:
        parked = attempt.failure.kind is FailureKind.ADAPTER
        return AdapterState.PARKED if parked else AdapterState.BACKOFF, swap or attempt.failure.message
    held = _held(work)
    if held:
        return AdapterState.HELD, held
    if swap:
        return AdapterState.MISSING, swap
    suspicion = _suspicion(desired.suspects.get(name))
    if suspicion:
        return AdapterState.MISSING, f"{suspicion}; it is loaded last and alone"
    if name in work.missed:
        return AdapterState.MISSING, "the next listing tells whether it was unloaded"
    return AdapterState.MISSING, "the server keeps dying: one is loaded a heartbeat" if flapping(work.lives) else ""


def _suspicion(suspect: Suspect | None) -> str:
    return "" if suspect is None or not suspect.deaths else f"suspected: {died(suspect.deaths)}"


def _replacing(swap: Replacement | None) -> str:
    if swap is None or swap.stage not in (ReplacementPhase.LOADING, ReplacementPhase.REVERTING):
        return ""
    if swap.stage is ReplacementPhase.LOADING and not swap.why:
        return f"it is being replaced: unloaded from {swap.old}, to be loaded from {swap.new}"
    return f"it cannot be loaded from {swap.new}: {swap.why}; the former one is loaded again"


def _held(work: State) -> str:
    """Why nothing at all is loaded, empty if nothing stands in the way."""
    if work.hold is not None:
        return work.hold.failure.message
    if work.withheld is not None:
        return work.withheld.detail
    if work.last is not None and work.last.runtime_loading is False:
        return "the server cannot load adapters at run time"
    return ""


_BARS: Mapping[BlockReason, AdapterState] = {
    BlockReason.QUARANTINED: AdapterState.QUARANTINED,
    BlockReason.FILES_GONE: AdapterState.PARKED,
    BlockReason.CAPACITY: AdapterState.PARKED,
    BlockReason.NAME_TAKEN: AdapterState.PARKED,
    BlockReason.BASE_MODEL: AdapterState.PARKED,
}


def same_states(before: tuple[Desired, State, Trials], after: tuple[Desired, State, Trials]) -> bool:
    """Whether the adapters of both have the same states: most heartbeats change none of ten thousand."""
    (desired, old, trials), (desired_now, new, trials_now) = before, after
    if desired.adapters is not desired_now.adapters or old.server.phase is not new.server.phase:
        return False
    if desired.paused != desired_now.paused or desired.suspects != desired_now.suspects or trials != trials_now:
        return False
    if old.last is not new.last and (
        old.last is None
        or new.last is None
        or old.last.adapters is not new.last.adapters
        or old.last.runtime_loading is not new.last.runtime_loading
    ):
        return False
    return all(getattr(old, part) == getattr(new, part) for part in _PARTS)


_PARTS = (
    "attempts",
    "barred",
    "evicted",
    "hold",
    "lives",
    "missed",
    "path_reasons",
    "spoilt",
    "swaps",
    "withheld",
)
"""What of the work a state or its reason depends on."""
