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

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar import outage, replacement
from lora_sidecar.aliases import learn
from lora_sidecar.attempts import Clock, absorb, settle, undecided
from lora_sidecar.conditions import conditions_of, transitions
from lora_sidecar.config import AdoptConfig, BackoffConfig, Config, HeartbeatConfig
from lora_sidecar.desired import adopt, forget, is_listed_path, same_base, same_path
from lora_sidecar.events import Event, Fact, info, legible, shown, warning
from lora_sidecar.eviction import crowding, evicted, registered
from lora_sidecar.lineage import Evidence, Judgement, judge
from lora_sidecar.model import (
    Adapter,
    BaseModel,
    Desired,
    Observation,
    Observed,
    Origin,
    Outcome,
    Retired,
    Unknown,
    Unloaded,
)
from lora_sidecar.unloads import absorb_unloads, due_unloads, settle_unloads
from lora_sidecar.work import Attempt, Drift, Plan, Verdict, Work

_SIGHTINGS = 2
"""Listings in a row that an adapter must be missing from before that is taken for deliberate."""


class Policy(Struct, frozen=True):
    """The part of the config that reconcile goes by."""

    adopt: AdoptConfig
    forget_unloaded: bool
    backoff: BackoffConfig
    heartbeat: HeartbeatConfig
    retire: replacement.Rule = replacement.Rule()

    @staticmethod
    def of(config: Config) -> Policy:
        """The policy that a config asks for."""
        forgets = config.policy.on_external_unload == "forget"
        retire = replacement.Rule(config.policy.replace, config.policy.prune, bool(config.adapters))
        return Policy(config.policy.adopt, forgets, config.restore.backoff, config.heartbeat, retire)


def reconcile(
    desired: Desired,
    seen: Observation,
    work: Work,
    policy: Policy,
    *,
    outcomes: Iterable[Outcome],
    clock: Clock,
    unloaded: Sequence[Unloaded | Retired] = (),
) -> Plan:
    """The plan that follows from one observation.

    `outcomes` and `unloaded` are those of the loads and unloads that ended since the last reconcile, each told once. In
    the plan, `desired` is the very object passed in if nothing durable changed.
    """
    server, noticed = outage.advance(work.server, seen, policy.heartbeat)
    work, failures = absorb(work, outcomes, seen, desired.incarnation.number, policy.backoff, clock)
    told = [one for one in unloaded if isinstance(one, Unloaded)]
    retired = [one for one in unloaded if isinstance(one, Retired)]
    work, undone = replacement.absorb(work, retired, desired, policy.backoff, clock.now)
    failures += undone
    work, untold = absorb_unloads(work, told, desired.incarnation.number, policy.backoff, clock)
    failures += untold
    match seen:
        case Unknown():
            recovery = outage.begin(work.recovery, work.server, server, seen)
            work = replace(work, server=server, recovery=recovery)
            return Plan(desired, work, Verdict.UNKNOWN, observed_at=seen.at, facts=noticed + failures)
        case Observed() if _is_steady(desired, seen, work):
            work = replace(work, server=server, last=seen)
            return Plan(desired, work, Verdict.STEADY, observed_at=seen.at, facts=noticed)
        case Observed():
            plan = _plan(desired, seen, replace(work, server=server), policy, judge(desired, work, seen), clock)
            return replace(plan, facts=noticed + failures + plan.facts)
        case _:
            assert_never(seen)


def _is_steady(desired: Desired, seen: Observed, work: Work) -> bool:
    """Whether this heartbeat is like the last one, which came to nothing: the ordinary case, whatever the number.

    The client returns the very collections of the last listing if it says the same, so this costs nothing.
    """
    last = work.last
    return (
        last is not None
        and work.steady is desired
        and not work.attempts
        and work.hold is None
        and work.withheld is None
        and work.recovery is None
        and not work.server.interrupted
        and seen.adapters is last.adapters
        and seen.bases is last.bases
        and seen.start_time == last.start_time
        and seen.version == last.version
        and seen.runtime_loading == last.runtime_loading
    )


def _plan(desired: Desired, seen: Observed, work: Work, policy: Policy, judgement: Judgement, clock: Clock) -> Plan:
    listed = {card.name: card.path for card in seen.adapters}
    last = work.last
    if judgement.restarted:
        work = replace(work, missed={}, attempts={}, hold=None, withheld=None, restoring=False)
        work = replace(work, unloads={}, evicted=frozenset(), swaps={}, prunes={})

    desired, restarted = _enter(desired, judgement, seen, listed, watched=last is not None)
    desired = learn(desired, work.attempts, seen)
    desired, unloads, told = settle_unloads(desired, work.unloads, listed, seen.at, restarted=judgement.restarted)
    desired, refused, adopted = adopt(desired, seen.adapters, seen.bases, policy.adopt)
    desired = _remember_listed(desired, listed)
    sight = replacement.Seen(listed, seen.at, seen.version)
    desired, work, replaced = replacement.advance(desired, work, sight, clock.now)
    desired = registered(desired, work, seen, listed)
    out = evicted(desired, work, seen, listed)
    held = listed | {name: desired.adapters[name].path for name in out}
    desired, missed, missing, forgotten = _tell_unloaded_from_lost(desired, work.missed, held, policy, judgement)
    if not missing:
        work = replace(work, hold=None, withheld=None)
    blocked = _blocked(missing, seen.bases)
    attempts, settled = settle(work.attempts, held, desired.adapters, seen.at, policy.backoff, clock)
    steady = not missing and not missed and seen.runtime_loading is not False
    work, retires = replacement.retire(desired, work, sight, policy.retire, clock.now, steady=steady)
    drift, drifted = _drift(work.drift, desired, listed, missing, refused)

    lost = frozenset(missing)
    recovery = outage.resume(work.recovery, judgement, last, lost, seen.at)
    recovery, concluded = outage.conclude(recovery, desired, attempts, lost, blocked, seen.at)
    work = replace(work, last=seen, missed=missed, attempts=attempts, drift=drift, recovery=recovery)
    work = replace(work, unloads=unloads, evicted=out)
    spared = replacement.spared(desired, sight, policy.retire)
    conditions = conditions_of(work, seen, desired.adapters, missing, blocked, refused, spared)
    changed = transitions(work.conditions, conditions)
    work = replace(work, conditions=conditions)

    restores, wake_at = _due(missing, blocked, work, seen, clock.now)
    unloadable, retry_at = due_unloads(desired, unloads, seen.at, clock.now)
    wake_at = min((at for at in (wake_at, retry_at) if at is not None), default=None)
    if desired.paused is not None:
        restores, unloadable, retires, wake_at = (), (), (), None
    started = _started(restores, judgement) if restores and not work.restoring else ()
    restoring = bool(missing) and (bool(restores) or work.restoring)
    calm = not (missing or missed or any(one.pending for one in desired.withdrawn.values()))
    calm = calm and not (work.path_reasons or (policy.retire.prune and desired.released))
    work = replace(work, restoring=restoring, steady=desired if calm else None)
    return Plan(
        desired=desired,
        work=work,
        verdict=_verdict(missing, restores),
        restores=restores,
        unloads=unloadable,
        retires=retires,
        observed_at=seen.at,
        wake_at=wake_at,
        facts=(*restarted, *told, *replaced, *adopted, *forgotten, *drifted, *settled, *changed, *started, *concluded),
    )


def _enter(
    desired: Desired, judgement: Judgement, seen: Observed, listed: Mapping[str, str], *, watched: bool
) -> tuple[Desired, tuple[Fact, ...]]:
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
        Event.SERVER_RESTARTED,
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
    desired: Desired, missed: Mapping[str, int], listed: Mapping[str, str], policy: Policy, judgement: Judgement
) -> tuple[Desired, Mapping[str, int], Mapping[str, Adapter], tuple[Fact, ...]]:
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


def _blocked(missing: Mapping[str, Adapter], bases: tuple[BaseModel, ...]) -> dict[str, str]:
    """The missing adapters that must not be loaded into this server, each with the reason."""
    ids = {base.id for base in bases}
    blocked: dict[str, str] = {}
    for name, adapter in missing.items():
        if name in ids:
            blocked[name] = "its name is that of a served base model"
        elif not same_base(adapter, bases):
            blocked[name] = f"it was learned on another base model, {legible(adapter.base or '')}"
    return blocked


def _drift(
    before: Drift,
    desired: Desired,
    listed: Mapping[str, str],
    missing: Mapping[str, Adapter],
    refused: Mapping[str, str],
) -> tuple[Drift, tuple[Fact, ...]]:
    """How the listing differs from desired, and the fact of it where it differs in more than before."""
    ours = {n: path for n, path in listed.items() if n in desired.adapters}
    replaced = {n for n, path in ours.items() if not is_listed_path(desired.adapters[n], path)}
    drift = Drift(frozenset(missing), frozenset(replaced), frozenset(refused.keys() - ours.keys()))
    if drift == before:
        return before, ()
    if drift.missing <= before.missing and drift.replaced <= before.replaced and drift.unexpected <= before.unexpected:
        return drift, ()
    fact = info(
        Event.DRIFT_DETECTED,
        missing=shown(drift.missing),
        replaced=shown(drift.replaced),
        unexpected=shown(drift.unexpected),
    )
    return drift, (fact,)


def _due(
    missing: Mapping[str, Adapter], blocked: Mapping[str, str], work: Work, seen: Observed, now: float
) -> tuple[tuple[Adapter, ...], float | None]:
    """What to load now, in order, and when something more falls due."""
    wanted = [adapter for name, adapter in missing.items() if name not in blocked]
    if not wanted or seen.runtime_loading is False:
        return (), None
    if work.hold is not None and work.hold.until > now:
        return (), work.hold.until
    due: list[Adapter] = []
    wake_at: float | None = None
    for adapter in wanted:
        attempt = work.attempts.get(adapter.name, _UNTRIED)
        if undecided(attempt, seen.at):
            continue
        if attempt.not_before > now:
            wake_at = attempt.not_before if wake_at is None else min(wake_at, attempt.not_before)
        else:
            due.append(adapter)
    # Where not all are kept, those loaded last stay: the most urgent ones.
    ordered = sorted(due, key=_urgency, reverse=crowding(seen, len(wanted)))
    return tuple(replacement.source(adapter, work.swaps) for adapter in ordered), wake_at


def _started(restores: tuple[Adapter, ...], judgement: Judgement) -> tuple[Fact, ...]:
    names = shown(adapter.name for adapter in restores)
    return (
        info(
            Event.RESTORE_STARTED,
            incarnation=judgement.incarnation.number,
            adapters=len(restores),
            first=restores[0].name,
            names=names,
        ),
    )


_UNTRIED = Attempt()


def _urgency(adapter: Adapter) -> tuple[int, bool, str]:
    return -adapter.priority, not adapter.required, adapter.name


def _verdict(missing: Mapping[str, Adapter], restores: tuple[Adapter, ...]) -> Verdict:
    if not missing:
        return Verdict.STEADY
    return Verdict.RESTORING if restores else Verdict.WAITING
