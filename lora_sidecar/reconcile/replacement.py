"""Which loaded adapters are unloaded because the config gives their name another path or does not name them.

The traps guarded against. Stale answers: vLLM 0.11.1 to 0.30 keys the blocks of its prefix cache by an adapter's name,
so the same name with other weights goes on with what the former ones computed; those versions are left alone. An
adapter lost by the swap: the new path may not load, so the former one is loaded again. A fight: what was replaced once
in a life of the server and is listed with another path again was loaded by somebody, and stays. And a config that was
emptied by mistake: nothing is pruned by one that declares no adapter at all.

`load_inplace` is not used in any version: it gives the requests that are under way other weights in mid-answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Adapter, Origin
from lora_sidecar.core.outcomes import Accepted, Failure, Retired
from lora_sidecar.core.paths import is_listed_path, same_path
from lora_sidecar.core.text import printable, reasons
from lora_sidecar.reconcile.backoff import Attempt, Attempts
from lora_sidecar.reconcile.beat import Beat, ListingBeat
from lora_sidecar.reconcile.prefix_cache import refusal


class ReplacementPhase(StrEnum):
    """How far a replacement is."""

    UNLOADING = "unloading"
    LOADING = "loading"
    REVERTING = "reverting"
    """The new path could not be loaded, so the former one is loaded again."""
    DONE = "done"
    REFUSED = "refused"


class Replacement(Struct, frozen=True):
    """One adapter that is listed from `old` and is to be loaded from `new` under the same name.

    `unload_confirmed_at` is when the server said that it is unloaded. `failures` is how many failed loads are accounted
    for, `direction_changes` how often the path to load was changed since. `why` is what went wrong, `retry_at` when it
    is tried again. `refused` is what became of the first load from `new`, if it failed.
    """

    old: str
    new: str
    phase: ReplacementPhase = ReplacementPhase.UNLOADING
    unload_confirmed_at: float | None = None
    failures: int = 0
    direction_changes: int = 0
    why: str = ""
    retry_at: float = float("inf")
    refused: Attempt | None = None


class Retire(Struct, frozen=True):
    """An adapter to be unloaded because of the config; `successor` is what is loaded under its name then, or None."""

    name: str
    successor: Adapter | None = None


class Replacements(Struct, frozen=True):
    """What is known of this incarnation's replacements, and of the unloads of removed adapters that were tried.

    `reasons` says for each declared adapter that is listed with another path why it still is.
    """

    by_name: Mapping[str, Replacement] = {}
    prunes: Attempts = {}
    reasons: Mapping[str, str] = {}


_UNDER_WAY = frozenset({ReplacementPhase.UNLOADING, ReplacementPhase.LOADING, ReplacementPhase.REVERTING})

_PAUSED = "it waits: loads and unloads are paused"

_PRUNE_SHOWN = 20


def record_outcomes(state: Replacements, beat: Beat) -> Replacements:
    """Take what came of these unloads into account; those of another incarnation say nothing any more."""
    by_name, prunes = dict(state.by_name), dict(state.prunes)
    again = beat.now + beat.policy.backoff.max
    for one in beat.unloads:
        if not isinstance(one, Retired) or one.incarnation != beat.desired.incarnation.number:
            continue
        known = by_name.get(one.name)
        match one.result:
            case Accepted():
                reason = "the config removed it" if known is None else "the config gives it another path"
                beat.say(EventName.ADAPTER_RETIRED, adapter=one.name, reason=reason)
                if known is not None:
                    by_name[one.name] = replace(known, unload_confirmed_at=one.at)
                else:
                    prunes[one.name] = Attempt(not_before=again, ended_at=one.at)
            case Failure():
                _tell_failure(one.name, one.result, beat)
                if known is None:
                    prunes[one.name] = Attempt(failure=one.result, not_before=again, ended_at=one.at)
                else:
                    # Nothing was touched: files may still come, a key may be mended, a timeout may pass.
                    refused, why = ReplacementPhase.REFUSED, one.result.message
                    by_name[one.name] = replace(known, phase=refused, why=why, retry_at=again)
            case _:
                assert_never(one.result)
    beat.former_paths = {name: one.old for name, one in state.by_name.items()}
    return replace(state, by_name=by_name, prunes=prunes)


def _tell_failure(name: str, failure: Failure, beat: Beat) -> None:
    repeats = f"{name} {failure.kind}"
    beat.warn(EventName.UNLOAD_FAILED, repeats=repeats, adapter=name, kind=failure.kind.value, message=failure.message)


def learn(state: Replacements, beat: ListingBeat) -> Replacements:
    """Move every replacement on by a listing; a name that has left it may be loaded at once."""
    state = Replacements() if beat.restarted else state
    by_name: dict[str, Replacement] = {}
    gone: set[str] = set()
    for name, before in state.by_name.items():
        if _is_obsolete(before, beat.desired.adapters.get(name), beat.now):
            continue
        after = _advance(name, before, beat)
        if after is None:
            # The former path, which was loaded in between, has left the listing: only the new one is wanted now.
            if before.refused is not None:
                beat.attempts[name] = before.refused
            continue
        by_name[name] = after
        loads = after.phase in (ReplacementPhase.LOADING, ReplacementPhase.REVERTING)
        if after.phase is not before.phase and loads and after.direction_changes <= 1:
            # The first load of each path does not wait for what became of another one.
            beat.attempts.pop(name, None)
        if before.phase is ReplacementPhase.UNLOADING and after.phase is ReplacementPhase.LOADING:
            gone.add(name)
    if gone:
        beat.desired = replace(beat.desired, listed=beat.desired.listed - gone)
    return replace(state, by_name=by_name)


def _is_obsolete(known: Replacement, adapter: Adapter | None, now: float) -> bool:
    """Whether the config asks for something else by now, or it is time to try again."""
    due = known.phase is ReplacementPhase.REFUSED and known.retry_at <= now
    return adapter is None or adapter.path != known.new or due


def _advance(name: str, known: Replacement, beat: ListingBeat) -> Replacement | None:
    path = beat.listed.get(name)
    if path is not None and is_listed_path(beat.desired.adapters[name], path):
        if known.phase is not ReplacementPhase.DONE:
            beat.say(EventName.ADAPTER_REPLACED, adapter=name, path=path, previous=known.old)
        return replace(known, phase=ReplacementPhase.DONE, why="")
    return _moved(known, path, beat.attempts.get(name), beat.at)


def _moved(known: Replacement, path: str | None, attempt: Attempt | None, asked_at: float) -> Replacement | None:
    """The replacement after a listing that shows `path` under the name; None where there is nothing to follow."""
    match known.phase:
        case ReplacementPhase.UNLOADING:
            if path is None:
                return replace(known, phase=ReplacementPhase.LOADING, failures=0)
            if known.unload_confirmed_at is not None and known.unload_confirmed_at < asked_at:
                return _refused(known, "somebody loaded it again from its former path")
            return known
        case ReplacementPhase.LOADING | ReplacementPhase.REVERTING:
            if path is not None:
                why = known.why and f"it cannot be loaded from {known.new}: {known.why}; the former one is loaded again"
                return _refused(known, why or "somebody loaded it again from another path")
            if attempt is None or attempt.failure is None or attempt.failures <= known.failures:
                return known
            return _turned(known, attempt, attempt.failure)
        case ReplacementPhase.DONE:
            why = "it was replaced once, and somebody loaded it from another path again"
            return known if path is None else _refused(known, why)
        case ReplacementPhase.REFUSED:
            return None if path is None else known
        case _:
            assert_never(known.phase)


def _refused(known: Replacement, why: str) -> Replacement:
    return replace(known, phase=ReplacementPhase.REFUSED, why=why)


def _turned(known: Replacement, attempt: Attempt, failure: Failure) -> Replacement:
    """The replacement after a load that failed: the other path is tried."""
    changes = known.direction_changes + 1
    if known.phase is ReplacementPhase.REVERTING:
        phase = ReplacementPhase.LOADING
        return replace(known, phase=phase, failures=attempt.failures, direction_changes=changes)
    return replace(
        known,
        phase=ReplacementPhase.REVERTING,
        why=failure.message,
        failures=0 if known.direction_changes == 0 else attempt.failures,
        direction_changes=changes,
        refused=known.refused or attempt,
    )


def decide(state: Replacements, beat: ListingBeat, *, quiet: bool) -> tuple[Replacements, tuple[Retire, ...]]:
    """What is to be unloaded now, one replacement at a time and only while nothing is missing (`quiet`)."""
    by_name = dict(state.by_name)
    why = {
        name: _why_not(name, adapter, path, by_name, beat, quiet=quiet)
        for name, adapter, path in _moved_by_config(beat)
    }
    due = [Retire(n, beat.desired.adapters[n]) for n, one in by_name.items() if one.phase is ReplacementPhase.UNLOADING]
    rules = beat.policy.rules
    if quiet and not due and rules.prune and beat.policy.declares:
        due = [Retire(name) for name in _prunable(state.prunes, beat)]
    prunes = {name: one for name, one in state.prunes.items() if name in beat.desired.orphaned}
    _raise_conditions(why, beat)
    if why or (rules.prune and beat.desired.orphaned):
        beat.settled = False
    after = Replacements(by_name, prunes, why)
    return after, () if beat.desired.paused is not None else tuple(due)


def _moved_by_config(beat: ListingBeat) -> list[tuple[str, Adapter, str]]:
    """The declared adapters that are listed with another path than the config gives them."""
    return [
        (name, adapter, beat.listed[name])
        for name, adapter in sorted(beat.desired.adapters.items())
        if adapter.origin is Origin.DECLARED and name in beat.listed and not is_listed_path(adapter, beat.listed[name])
    ]


def _why_not(
    name: str, adapter: Adapter, path: str, by_name: dict[str, Replacement], beat: ListingBeat, *, quiet: bool
) -> str:
    """Why a declared adapter is still listed with another path; begins its replacement where nothing is in the way."""
    paused = beat.desired.paused is not None
    known, attempt = by_name.get(name), beat.attempts.get(name)
    if known is not None:
        return _PAUSED if paused and known.phase in _UNDER_WAY else known.why or "it is being replaced"
    refused = refusal(beat.policy.rules.replace, beat.seen.version)
    if refused:
        return refused
    if paused:
        return _PAUSED
    if attempt is not None and attempt.failure is not None and attempt.not_before > beat.now:
        return f"it waits, for its last load failed: {attempt.failure.message}"
    if not quiet or any(one.phase in _UNDER_WAY for one in by_name.values()):
        return "it waits for its turn to be replaced"
    by_name[name] = Replacement(path, adapter.path)
    return "it is being replaced"


def _prunable(prunes: Attempts, beat: ListingBeat) -> list[str]:
    orphaned = sorted(beat.desired.orphaned.items())
    there = [name for name, path in orphaned if name in beat.listed and same_path(beat.listed[name], path)]
    return [n for n in there if n not in prunes or (prunes[n].not_before <= beat.now and prunes[n].ended_at < beat.at)]


def _raise_conditions(why: Mapping[str, str], beat: ListingBeat) -> None:
    adapters = beat.desired.adapters
    if why:
        differing = {n: f"listed with another path than the configured {adapters[n].path}; {w}" for n, w in why.items()}
        hint = "give the new weights a name of their own, restart the server, or unload it"
        beat.raise_condition(ConditionType.ADAPTER_PATH_DIFFERS, reasons(differing), hint)
    kept = [printable(name) for name in sorted(beat.desired.orphaned) if name in beat.listed]
    if kept and beat.policy.rules.prune and not beat.policy.declares:
        message = f"the config declares no adapter at all: {', '.join(kept[:_PRUNE_SHOWN])} stay loaded"
        hint = "was the config emptied by mistake? unload them by hand if it was not"
        beat.raise_condition(ConditionType.PRUNE_REFUSED, message, hint)


def source(adapter: Adapter, state: Replacements) -> Adapter:
    """The adapter as it is to be loaded now: from its former path while a replacement is being undone."""
    known = state.by_name.get(adapter.name)
    reverts = known is not None and known.phase is ReplacementPhase.REVERTING
    return replace(adapter, path=known.old) if known is not None and reverts else adapter
