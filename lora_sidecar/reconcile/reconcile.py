"""The heart: from what should be loaded, what was seen and what is under way, to what is to be done now.

Three traps are guarded against. Unknown is not empty: on an unknown observation the plan is to do nothing. Forgetting
is not symmetrical to adopting: an adapter is adopted at first sight, and forgotten only when it was listed in this very
incarnation of the server and then missed twice, so that a restart never looks like an unload. And a plan names the
incarnation that it was made for, so that it dies with it.

Pure: the same arguments give the same plan, whatever the time and the place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from msgspec.structs import replace

from lora_sidecar.core.events import Event, EventName, info, warning
from lora_sidecar.core.model import Adapter, Desired, Origin
from lora_sidecar.core.observation import Observation, Observed, Unknown
from lora_sidecar.core.outcomes import Outcome, Retired, Unloaded
from lora_sidecar.core.text import shown
from lora_sidecar.reconcile import outage, replacement
from lora_sidecar.reconcile.aliases import learn
from lora_sidecar.reconcile.conditions import conditions_of, transitions
from lora_sidecar.reconcile.desired import adopt, forget, same_path
from lora_sidecar.reconcile.drift import drift_of
from lora_sidecar.reconcile.due import due
from lora_sidecar.reconcile.eviction import evicted, registered
from lora_sidecar.reconcile.guard import defuse, enter_life, hold_back, judge_suspects, notice_limit
from lora_sidecar.reconcile.incarnation import Evidence, Identified, judge
from lora_sidecar.reconcile.loads import Now, absorb, settle
from lora_sidecar.reconcile.missing_files import pardon_changed
from lora_sidecar.reconcile.poison import accuse
from lora_sidecar.reconcile.policy import Policy
from lora_sidecar.reconcile.state import Around, Phase, Plan, State, Verdict
from lora_sidecar.reconcile.unloads import absorb_unloads, settle_unloads, unloaded_by_us

_SIGHTINGS = 2
"""Listings in a row that an adapter must be missing from before that is taken for deliberate."""


_NOTHING_AROUND = Around()


def reconcile(
    desired: Desired,
    seen: Observation,
    work: State,
    policy: Policy,
    *,
    outcomes: Iterable[Outcome],
    clock: Now,
    unloaded: Sequence[Unloaded | Retired] = (),
    around: Around = _NOTHING_AROUND,
) -> Plan:
    """The plan that follows from one observation.

    `outcomes` and `unloaded` are those of the loads and unloads that ended since the last reconcile, each told once. In
    the plan, `desired` is the very object passed in if nothing durable changed.
    """
    outcomes = tuple(outcomes)
    server, noticed = outage.advance(work.server, seen, policy.heartbeat)
    work, failures = absorb(work, outcomes, seen, desired, policy.backoff, clock)
    told = [one for one in unloaded if isinstance(one, Unloaded)]
    retired = [one for one in unloaded if isinstance(one, Retired)]
    work, undone = replacement.absorb(work, retired, desired, policy.backoff, clock.now)
    failures += undone
    work, untold = absorb_unloads(work, told, desired.incarnation.number, policy.backoff, clock)
    failures += untold
    match seen:
        case Unknown():
            recovery = outage.begin(work.recovery, work.server, server, seen)
            desired = accuse(desired, outcomes, around.under_way if server.phase is Phase.DOWN else ())
            work = replace(work, server=server, recovery=recovery)
            return Plan(desired, work, Verdict.UNKNOWN, observed_at=seen.at, facts=noticed + failures)
        case Observed() if _is_steady(desired, seen, work, around):
            work = replace(work, server=server, last=seen)
            return Plan(desired, work, Verdict.STEADY, observed_at=seen.at, facts=noticed + failures)
        case Observed():
            judgement = judge(desired, work, seen)
            desired = accuse(desired, outcomes, around.under_way if judgement.restarted else ())
            plan = _plan(desired, seen, replace(work, server=server), policy, judgement, clock, around, unloaded)
            return replace(plan, facts=noticed + failures + plan.facts)
        case _:
            assert_never(seen)


def _is_steady(desired: Desired, seen: Observed, work: State, around: Around) -> bool:
    """Whether this heartbeat is like the last one, which came to nothing: the ordinary case, whatever the number.

    The client returns the very collections of the last listing if it says the same, and the survey the very looks at
    files, so this costs nothing.
    """
    last = work.last
    return (
        last is not None
        and work.steady is desired
        and not work.attempts
        and work.hold is None
        and work.withheld is None
        and work.recovery is None
        and work.files is around.files
        and not work.server.interrupted
        and seen.adapters is last.adapters
        and seen.bases is last.bases
        and seen.start_time == last.start_time
        and seen.version == last.version
        and seen.runtime_loading == last.runtime_loading
    )


def _plan(
    desired: Desired,
    seen: Observed,
    work: State,
    policy: Policy,
    judgement: Identified,
    clock: Now,
    around: Around,
    unloaded: Sequence[Unloaded | Retired],
) -> Plan:
    listed, files = {card.name: card.path for card in seen.adapters}, around.files
    last = work.last
    assumed = judgement.evidence is Evidence.OUTAGE and all(name in listed for name in desired.adapters)
    work = enter_life(work, clock.now, restarted=judgement.restarted, assumed=assumed)

    desired, restarted = _enter(desired, judgement, seen, listed, watched=last is not None)
    desired = learn(desired, work.attempts, seen)
    desired, unloads, told = settle_unloads(desired, work.unloads, listed, seen.at, restarted=judgement.restarted)
    desired, work, convicted = judge_suspects(
        desired, work, listed, files, policy.backoff, clock.now, restarted=judgement.restarted
    )
    desired, refused, adopted = adopt(desired, seen.adapters, seen.bases, policy.adopt)
    desired = unloaded_by_us(_remember_listed(desired, listed), unloaded)
    sight = replacement.Seen(listed, seen.at, seen.version)
    desired, work, replaced = replacement.advance(desired, work, sight, clock.now)
    desired = registered(desired, work, seen, listed)
    out = evicted(desired, work, seen, listed)
    held = listed | {name: desired.adapters[name].path for name in out}
    work = notice_limit(desired, work, held, clock.now, restarted=judgement.restarted)
    desired, missed, missing, forgotten = _tell_unloaded_from_lost(desired, work.missed, held, policy, judgement)
    if not missing:
        work = replace(work, hold=None, withheld=None)
    attempts, settled = settle(work.attempts, held, desired.adapters, seen.at, policy.backoff, clock)
    attempts = pardon_changed(attempts, desired.adapters, files, policy.backoff)
    unload_gone = policy.unload_gone and desired.paused is None
    work = hold_back(desired, work, missing, seen, files, policy.backoff, clock.now, unload_gone=unload_gone)
    desired, bombs, defused = defuse(desired, listed, files) if unload_gone else (desired, (), ())
    unloads = {**unloads, **{name: work.unloads[name] for name in bombs if name in work.unloads}}
    steady = not missing and not missed and seen.runtime_loading is not False
    work, retires = replacement.retire(desired, work, sight, policy.retire, clock.now, steady=steady)
    drift, drifted = drift_of(work.drift, desired, listed, missing, refused)

    lost = frozenset(missing)
    recovery = outage.resume(work.recovery, judgement, last, lost, seen.at)
    withheld = {name: one.reason for name, one in work.barred.items()}
    recovery, concluded = outage.conclude(recovery, desired, attempts, lost, withheld, seen.at)
    work = replace(work, last=seen, missed=missed, attempts=attempts, drift=drift, recovery=recovery)
    work = replace(work, unloads=unloads, evicted=out)
    spared = replacement.spared(desired, sight, policy.retire)
    conditions = conditions_of(work, seen, desired.adapters, missing, refused, spared)
    changed = transitions(work.conditions, conditions)
    work = replace(work, conditions=conditions)

    loadable = {name: adapter for name, adapter in missing.items() if name not in withheld}
    act = due(desired, work, seen, policy, clock.now, loadable=loadable, bombs=bombs, retires=retires)
    started = _started(act.restores, judgement) if act.restores and not work.restoring else ()
    restoring = bool(missing) and (bool(act.restores) or work.restoring)
    calm = not missing and _is_calm(desired, work, policy)
    work = replace(work, restoring=restoring, steady=desired if calm else None)
    return Plan(
        desired=desired,
        work=work,
        verdict=_verdict(missing, act.restores),
        restores=act.restores,
        unloads=act.unloads,
        retires=act.retires,
        observed_at=seen.at,
        wake_at=act.wake_at,
        facts=(
            *restarted,
            *convicted,
            *defused,
            *told,
            *replaced,
            *adopted,
            *forgotten,
            *drifted,
            *settled,
            *changed,
            *started,
            *concluded,
        ),
    )


def _is_calm(desired: Desired, work: State, policy: Policy) -> bool:
    """Whether there is nothing to wait for, so that the same listing again comes to nothing."""
    pending = any(one.pending for one in desired.withdrawn.values())
    prunable = policy.retire.prune and desired.released
    return not (work.missed or pending or work.probation or work.lives or work.spoilt or work.path_reasons or prunable)


def _enter(
    desired: Desired, judgement: Identified, seen: Observed, listed: Mapping[str, str], *, watched: bool
) -> tuple[Desired, tuple[Event, ...]]:
    """Take over the incarnation; a new one has listed nothing yet, and what was released and has left is dropped.

    `watched` is whether this process saw a listing before. A restart that is only assumed because nobody watched, and
    that has lost nothing, is not told.
    """
    gone = {
        name
        for name, path in desired.released.items()
        if (name not in listed and (judgement.restarted or (seen.capacity is None and name in desired.listed)))
        or (name in listed and not same_path(listed[name], path))
    }
    if gone:
        desired = replace(desired, released={n: p for n, p in desired.released.items() if n not in gone})
    if judgement.incarnation == desired.incarnation:
        return desired, ()
    kept = frozenset[str]() if judgement.restarted else desired.listed
    desired = replace(desired, incarnation=judgement.incarnation, listed=kept)
    lost = [name for name in desired.adapters if name not in listed]
    assumed = judgement.evidence is Evidence.OUTAGE and not watched
    if not judgement.restarted or (assumed and not lost):
        return desired, ()
    fact = warning(
        EventName.SERVER_RESTARTED,
        incarnation=judgement.incarnation.number,
        evidence=judgement.evidence.value,
        lost=len(lost),
        lost_adapters=shown(lost),
    )
    return desired, (fact,)


def _remember_listed(desired: Desired, listed: Mapping[str, str]) -> Desired:
    """Note which names of ours were seen listed in this incarnation: only those can have been unloaded on purpose."""
    tracked = desired.adapters.keys() | desired.released.keys()
    seen = (desired.listed | listed.keys()) & tracked
    return desired if seen == desired.listed else replace(desired, listed=frozenset(seen))


def _tell_unloaded_from_lost(
    desired: Desired, missed: Mapping[str, int], listed: Mapping[str, str], policy: Policy, judgement: Identified
) -> tuple[Desired, Mapping[str, int], Mapping[str, Adapter], tuple[Event, ...]]:
    """Sort what is absent from the listing.

    Never listed in this incarnation: lost, to be restored. Listed and now missed once: wait for the next listing.
    Missed twice: somebody unloaded it; it is forgotten, or restored where the config declares it or asks for that.
    What the server evicted counts as listed here. Returns the new desired, the names still waited for, what is to be
    restored, and the facts.
    """
    absent = {name: a for name, a in desired.adapters.items() if name not in listed}
    counts = {name: missed.get(name, 0) + 1 for name in absent if name in desired.listed}
    unloaded = {name for name, times in counts.items() if times >= _SIGHTINGS}
    waiting = {name: times for name, times in counts.items() if name not in unloaded}
    dropped = {n for n in unloaded if policy.forget_unloaded and absent[n].origin is not Origin.DECLARED}
    evidence = judgement.evidence
    desired, facts = forget(desired, dropped, evidence.value, weak=evidence is Evidence.NONE)
    if unloaded:
        desired = replace(desired, listed=desired.listed - unloaded)
    missing = {n: a for n, a in absent.items() if n not in dropped and n not in waiting}
    return desired, waiting, missing, facts


def _started(restores: tuple[Adapter, ...], judgement: Identified) -> tuple[Event, ...]:
    names = shown(adapter.name for adapter in restores)
    return (
        info(
            EventName.RESTORE_STARTED,
            incarnation=judgement.incarnation.number,
            adapters=len(restores),
            first=restores[0].name,
            names=names,
        ),
    )


def _verdict(missing: Mapping[str, Adapter], restores: tuple[Adapter, ...]) -> Verdict:
    if not missing:
        return Verdict.STEADY
    return Verdict.RESTORING if restores else Verdict.WAITING
