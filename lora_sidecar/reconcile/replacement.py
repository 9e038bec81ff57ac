"""Which loaded adapters are to be retired, because the config gives their name another path or does not name them.

The traps guarded against. Stale answers: vLLM 0.11.1 to 0.30 keys the blocks of its prefix cache by an adapter's name,
so the same name with other weights goes on with what the former ones computed; those versions are left alone. An
adapter lost by the swap: the new path may not load, so the former one is loaded again. A fight: what was replaced once
in a life of the server and is listed with another path again was loaded by somebody, and stays. And a config that was
emptied by mistake: nothing is pruned by one that declares no adapter at all.

`load_inplace` is not used in any version: it gives the requests that are under way other weights in mid-answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.events import Event, EventName, info, warning
from lora_sidecar.core.model import Adapter, Desired, Origin
from lora_sidecar.core.outcomes import Accepted, Failure, Retired
from lora_sidecar.core.text import printable
from lora_sidecar.reconcile.desired import is_listed_path, same_path
from lora_sidecar.reconcile.state import Attempt, Replacement, ReplacementPhase, Retire, State

Replace = Literal["never", "safe", "always"]

_UNDER_WAY = frozenset({ReplacementPhase.UNLOADING, ReplacementPhase.LOADING, ReplacementPhase.REVERTING})


_PAUSED = "it waits: loads and unloads are paused"


class Rule(Struct, frozen=True):
    """The part of the policy that decides; `declares` is whether the config names any adapter at all."""

    replace: Replace = "never"
    prune: bool = False
    declares: bool = True


class Seen(Struct, frozen=True):
    """What one good listing says of it: names to paths, when it was asked for, the server's version where known."""

    listed: Mapping[str, str]
    at: float
    version: str | None = None


def refusal(policy: Replace, version: str | None) -> str:
    """Why a loaded adapter must not be replaced by another path, empty if it may."""
    match policy:
        case "never":
            return "policy.replace is never"
        case "always":
            return ""
        case "safe":
            keyed = keys_by_path(version)
            if keyed is None:
                return "the server tells no version that is known: what the former weights computed might be used on"
            if not keyed:
                return (
                    f"vLLM {version} keys its prefix cache by name: what the former weights computed would be used on"
                )
            return ""
        case _:
            assert_never(policy)


def keys_by_path(version: str | None) -> bool | None:
    """Whether this vLLM tells an adapter loaded anew from its namesake in the prefix cache; None if that is not known.

    To 0.11.0 it does by a number that is new with each load, from 0.31 on by the path (source of 0.7 to 0.33).
    """
    match = re.match(r"(\d+)\.(\d+)\.(\d+)(\S*)", version or "")
    if match is None:
        return None
    release = (int(match[1]), int(match[2]), int(match[3]))
    if release < (0, 7, 0):
        return None
    if release == (0, 31, 0) and re.match(r"\.?(a|b|rc|dev)", match[4]):
        return False
    return release < (0, 11, 1) or release >= (0, 31, 0)


def absorb(
    work: State, ended: Iterable[Retired], desired: Desired, backoff: BackoffConfig, now: float
) -> tuple[State, tuple[Event, ...]]:
    """Take what came of retirements into account; those of another incarnation say nothing any more."""
    swaps, prunes = dict(work.swaps), dict(work.prunes)
    facts: list[Event] = []
    for one in ended:
        if one.incarnation != desired.incarnation.number:
            continue
        swap = swaps.get(one.name)
        match one.result:
            case Accepted():
                reason = "the config removed it" if swap is None else "the config gives it another path"
                facts.append(info(EventName.ADAPTER_RETIRED, adapter=one.name, reason=reason))
                if swap is not None:
                    swaps[one.name] = replace(swap, told_at=one.at)
                else:
                    prunes[one.name] = Attempt(not_before=now + backoff.max, ended_at=one.at)
            case Failure():
                facts.append(
                    warning(
                        EventName.UNLOAD_FAILED,
                        repeats=f"{one.name} {one.result.kind}",
                        adapter=one.name,
                        kind=one.result.kind.value,
                        message=one.result.message,
                    )
                )
                if swap is None:
                    prunes[one.name] = Attempt(failure=one.result, not_before=now + backoff.max, ended_at=one.at)
                else:
                    # Nothing was touched: files may still come, a key may be mended, a timeout may pass.
                    why, again = one.result.message, now + backoff.max
                    swaps[one.name] = replace(swap, stage=ReplacementPhase.REFUSED, why=why, retry_at=again)
            case _:
                assert_never(one.result)
    return replace(work, swaps=swaps, prunes=prunes), tuple(facts)


def advance(desired: Desired, work: State, seen: Seen, now: float) -> tuple[Desired, State, tuple[Event, ...]]:
    """Move every replacement on by a listing; a name that has left it may be loaded at once."""
    if not work.swaps:
        return desired, work, ()
    swaps: dict[str, Replacement] = {}
    attempts = dict(work.attempts)
    facts: list[Event] = []
    gone: set[str] = set()
    for name, swap in work.swaps.items():
        if _obsolete(swap, desired.adapters.get(name), now):
            continue
        path = seen.listed.get(name)
        if path is not None and is_listed_path(desired.adapters[name], path):
            if swap.stage is not ReplacementPhase.DONE:
                facts.append(info(EventName.ADAPTER_REPLACED, adapter=name, path=path, previous=swap.old))
            swaps[name] = replace(swap, stage=ReplacementPhase.DONE, why="")
            continue
        moved = _moved(swap, path, attempts.get(name), seen.at)
        if moved is None:
            # The former path, which was loaded in between, has left the listing: only the new one is wanted now.
            if swap.refused is not None:
                attempts[name] = swap.refused
            continue
        swaps[name] = moved
        if (
            moved.stage is not swap.stage
            and moved.stage in (ReplacementPhase.LOADING, ReplacementPhase.REVERTING)
            and moved.flips <= 1
        ):
            # The first load of each path does not wait for what became of another one.
            attempts.pop(name, None)
        gone |= (
            {name} if swap.stage is ReplacementPhase.UNLOADING and moved.stage is ReplacementPhase.LOADING else set()
        )
    if gone:
        desired = replace(desired, listed=desired.listed - gone)
    return desired, replace(work, swaps=swaps, attempts=attempts), tuple(facts)


def _obsolete(swap: Replacement, adapter: Adapter | None, now: float) -> bool:
    """Whether the config asks for something else by now, or it is time to try again."""
    return (
        adapter is None or adapter.path != swap.new or (swap.stage is ReplacementPhase.REFUSED and swap.retry_at <= now)
    )


def _moved(swap: Replacement, path: str | None, attempt: Attempt | None, asked_at: float) -> Replacement | None:
    """The replacement after a listing that shows `path` under the name; None where there is nothing to follow."""
    match swap.stage:
        case ReplacementPhase.UNLOADING:
            if path is None:
                return replace(swap, stage=ReplacementPhase.LOADING, failures=0)
            if swap.told_at is not None and swap.told_at < asked_at:
                return replace(
                    swap, stage=ReplacementPhase.REFUSED, why="somebody loaded it again from its former path"
                )
            return swap
        case ReplacementPhase.LOADING | ReplacementPhase.REVERTING:
            if path is not None:
                why = swap.why and f"it cannot be loaded from {swap.new}: {swap.why}; the former one is loaded again"
                return replace(
                    swap, stage=ReplacementPhase.REFUSED, why=why or "somebody loaded it again from another path"
                )
            if attempt is None or attempt.failure is None or attempt.failures <= swap.failures:
                return swap
            failures = attempt.failures
            if swap.stage is ReplacementPhase.REVERTING:
                return replace(swap, stage=ReplacementPhase.LOADING, failures=failures, flips=swap.flips + 1)
            kept = 0 if swap.flips == 0 else failures
            why = attempt.failure.message
            return replace(
                swap,
                stage=ReplacementPhase.REVERTING,
                why=why,
                failures=kept,
                flips=swap.flips + 1,
                refused=swap.refused or attempt,
            )
        case ReplacementPhase.DONE:
            why = "it was replaced once, and somebody loaded it from another path again"
            return swap if path is None else replace(swap, stage=ReplacementPhase.REFUSED, why=why)
        case ReplacementPhase.REFUSED:
            return None if path is None else swap
        case _:
            assert_never(swap.stage)


def source(adapter: Adapter, swaps: Mapping[str, Replacement]) -> Adapter:
    """The adapter as it is to be loaded now: from its former path while a replacement is being undone."""
    swap = swaps.get(adapter.name)
    return adapter if swap is None or swap.stage is not ReplacementPhase.REVERTING else replace(adapter, path=swap.old)


def retire(
    desired: Desired, work: State, seen: Seen, rule: Rule, now: float, *, steady: bool
) -> tuple[State, tuple[Retire, ...]]:
    """What is to be retired now, one replacement at a time and only while nothing is missing (`steady`)."""
    swaps = dict(work.swaps)
    refused = refusal(rule.replace, seen.version)
    reasons: dict[str, str] = {}
    for name, adapter in sorted(desired.adapters.items()):
        path = seen.listed.get(name)
        if adapter.origin is not Origin.DECLARED or path is None or is_listed_path(adapter, path):
            continue
        if name in swaps:
            waits = desired.paused is not None and swaps[name].stage in _UNDER_WAY
            reasons[name] = _PAUSED if waits else swaps[name].why or "it is being replaced"
        elif refused:
            reasons[name] = refused
        elif desired.paused is not None:
            reasons[name] = _PAUSED
        elif (attempt := work.attempts.get(name)) and attempt.failure and attempt.not_before > now:
            reasons[name] = f"it waits, for its last load failed: {attempt.failure.message}"
        elif steady and not any(swap.stage in _UNDER_WAY for swap in swaps.values()):
            swaps[name] = Replacement(path, adapter.path)
            reasons[name] = "it is being replaced"
        else:
            reasons[name] = "it waits for its turn to be replaced"
    due = [Retire(name, desired.adapters[name]) for name, s in swaps.items() if s.stage is ReplacementPhase.UNLOADING]
    if steady and not due and rule.prune and rule.declares:
        due = [Retire(name) for name in _prunable(desired, work.prunes, seen, now)]
    prunes = {name: one for name, one in work.prunes.items() if name in desired.released}
    return replace(work, swaps=swaps, prunes=prunes, path_reasons=reasons), tuple(due)


def _prunable(desired: Desired, prunes: Mapping[str, Attempt], seen: Seen, now: float) -> list[str]:
    released = (
        n for n, path in sorted(desired.released.items()) if n in seen.listed and same_path(seen.listed[n], path)
    )
    return [n for n in released if n not in prunes or (prunes[n].not_before <= now and prunes[n].ended_at < seen.at)]


def spared(desired: Desired, seen: Seen, rule: Rule) -> str:
    """Why adapters that the config removed are not pruned although it asks for that; empty where they are."""
    if not rule.prune or rule.declares:
        return ""
    kept = [printable(name) for name in sorted(desired.released) if name in seen.listed]
    return f"the config declares no adapter at all: {', '.join(kept[:20])} stay loaded" if kept else ""
