"""The heart: from what should be loaded, what was seen and what is under way, to what is to be done now.

Three traps are guarded against. Unknown is not empty: on an unknown observation the plan is to do nothing. Rules that
know each other cannot be read one at a time: each is a module of its own, and this is the story in which they appear.
And a plan names the incarnation that it was made for, so that it dies with it.

Pure: the same arguments give the same plan, whatever the time and the place.
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from lora_sidecar.core.conditions import transitions
from lora_sidecar.core.model import Desired
from lora_sidecar.core.observation import Observation, Observed, Unknown
from lora_sidecar.reconcile import (
    absence,
    adoption,
    base_model,
    capacity,
    drift,
    flapping,
    incarnation,
    loads,
    missing_files,
    outage,
    poison,
    recovery,
    replacement,
    resolved_paths,
    slow_start,
    unloads,
)
from lora_sidecar.reconcile.backoff import Now
from lora_sidecar.reconcile.beat import Beat, Happened, ListingBeat
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.reconcile.policy import Policy
from lora_sidecar.reconcile.state import Plan, Settled, State, Verdict

_NOTHING = Happened()


def reconcile(
    desired: Desired, seen: Observation, state: State, policy: Policy, *, clock: Now, happened: Happened = _NOTHING
) -> Plan:
    """The plan that follows from one observation and from what happened since the one before."""
    beat = Beat(desired, seen, policy, clock, happened)
    before = state.server
    state = _record(state, seen, beat)
    match seen:
        case Unknown():
            return _wait(state, seen, beat, last_good=before.last_good)
        case Observed() if _is_settled(state, seen, before.interrupted, beat):
            return _plan(beat, replace(state, last=seen), Verdict.STEADY)
        case Observed():
            found = incarnation.identify(desired, state.last, seen, interrupted=before.interrupted)
            listing = ListingBeat(beat, seen, state.last, found)
            return _decide(_learn(state, listing), listing)
        case _:
            assert_never(seen)


def _record(state: State, seen: Observation, beat: Beat) -> State:
    """Take in what ended since the last heartbeat, whatever this one saw."""
    up = isinstance(seen, Observed)
    server = outage.advance(state.server, seen, beat)
    replacements = replacement.record_outcomes(state.replacements, beat)
    ended = loads.record_outcomes(state.loads, beat, up=up)
    told = unloads.record_outcomes(state.unloads, beat)
    return replace(state, server=server, replacements=replacements, loads=ended, unloads=told)


def _wait(state: State, seen: Unknown, beat: Beat, *, last_good: float | None) -> Plan:
    """Nothing is known, so nothing is done; who may have killed the server is remembered."""
    phase = state.server.phase
    poison.mark_in_flight(beat, beat.in_flight if phase is Phase.DOWN else ())
    back = recovery.begin(state.recovery, last_good, seen, up=phase is Phase.UP)
    return _plan(beat, replace(state, recovery=back), Verdict.UNKNOWN)


def _is_settled(state: State, seen: Observed, interrupted: bool, beat: Beat) -> bool:
    """Whether this heartbeat is like the last one, which came to nothing: the ordinary case, whatever the number."""
    last = state.last
    return (
        last is not None
        and not beat.happened
        and not interrupted
        and state.settled == Settled(beat.desired, beat.policy, beat.files)
        and replace(seen, at=last.at, line=last.line) == last
    )


def _learn(state: State, beat: ListingBeat) -> State:
    """What the listing says to each rule, before it is known who is missing."""
    poison.mark_in_flight(beat, beat.in_flight if beat.restarted else ())
    restarts = flapping.learn(state.restarts, beat)
    start = slow_start.learn(state.slow_start, state.loads.ended_at, beat)
    incarnation.learn(beat)
    ended = loads.learn(state.loads, beat)
    resolved_paths.learn(beat)
    told = unloads.learn(state.unloads, beat)
    suspects = poison.learn(state.poison, beat)
    adoption.learn(beat)
    absence.remember_listed(beat)
    unloads.take_back(beat)
    replacements = replacement.learn(state.replacements, beat)
    room = capacity.learn(state.capacity, beat)
    missed = absence.learn(state.missed, beat)
    ended = loads.confirm_by_listing(ended, beat)
    return replace(
        state,
        loads=ended,
        unloads=told,
        poison=suspects,
        restarts=restarts,
        slow_start=start,
        replacements=replacements,
        capacity=room,
        missed=missed,
    )


def _decide(state: State, beat: ListingBeat) -> Plan:
    """What is held back and why, and what is to be done now."""
    base_model.decide(beat)
    unreadable = missing_files.decide(beat)
    poison.decide(state.poison, beat)
    capacity.decide(state.capacity, beat)
    quiet = not beat.missing and not state.missed and beat.seen.runtime_loading is not False
    replacements, retires = replacement.decide(state.replacements, beat, quiet=quiet)
    differing = drift.decide(state.drift, beat)
    back = recovery.decide(state.recovery, beat)

    paused = beat.desired.paused is not None
    ready = () if paused else loads.ready(state.loads, beat)
    ordered = capacity.in_order(ready, beat)
    start, restores = slow_start.decide(state.slow_start, ordered, beat)
    restores = tuple(replacement.source(adapter, replacements) for adapter in restores)
    for one in retires:
        beat.unload.pop(one.name, None)
    told, names = unloads.decide(state.unloads, beat)
    ended = loads.announce(state.loads, restores, beat)

    conditions = tuple(beat.conditions)
    beat.events += transitions(state.conditions, conditions)
    state = replace(
        state,
        last=beat.seen,
        loads=ended,
        unloads=told,
        slow_start=start,
        replacements=replacements,
        unreadable=unreadable,
        blocked=beat.blocked,
        drift=differing,
        recovery=back,
        conditions=conditions,
        files=beat.files,
        settled=_settled(beat),
    )
    verdict = (Verdict.RESTORING if restores else Verdict.WAITING) if beat.missing else Verdict.STEADY
    plan = _plan(beat, state, verdict)
    return replace(plan, restores=restores, retires=retires, unloads=names, wake_at=beat.wake_at)


def _settled(beat: ListingBeat) -> Settled | None:
    """What the same listing again would come to nothing with; None where this heartbeat changed what is desired."""
    unchanged = beat.settled and beat.desired == beat.before
    return Settled(beat.desired, beat.policy, beat.files) if unchanged else None


def _plan(beat: Beat, state: State, verdict: Verdict) -> Plan:
    return Plan(beat.desired, state, verdict, observed_at=beat.at, events=tuple(beat.events))
