"""The adapters that the server has yet to be told to unload: what came of telling it, and when to tell it again.

Three traps are guarded against. An unload that came too early: a load of the same name may still be under way and land
after it; so the server is told even where the adapter is not listed, since it answers after a load of that name. And an
unload that fights: once the server has said that it is done, an adapter that is listed again was loaded by somebody,
and stays. And our own unload taken for somebody else's: an adapter that is wanted again meanwhile would be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import assert_never

from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.events import Event, EventName, info, warning
from lora_sidecar.core.model import Adapter, Desired, Withdrawn
from lora_sidecar.core.outcomes import Accepted, Failure, Retired, Unloaded
from lora_sidecar.reconcile.backoff import delay
from lora_sidecar.reconcile.loads import Now, undecided
from lora_sidecar.reconcile.state import Attempt, State


def absorb_unloads(
    work: State, ended: Iterable[Unloaded], incarnation: int, backoff: BackoffConfig, clock: Now
) -> tuple[State, tuple[Event, ...]]:
    """Take what came of unloads into account; those of another incarnation say nothing any more."""
    unloads = dict(work.unloads)
    facts: list[Event] = []
    for one in ended:
        if one.incarnation != incarnation:
            continue
        before = unloads.get(one.name, Attempt())
        match one.result:
            case Accepted():
                # If it is listed all the same, it is not to be told so at every heartbeat.
                unloads[one.name] = Attempt(not_before=clock.now + backoff.max, ended_at=one.at, accepted=True)
            case Failure():
                failures = before.failures + 1
                wait = delay(failures, one.result.kind, backoff, clock.jitter)
                not_before = clock.now + wait
                unloads[one.name] = Attempt(failures, one.result, not_before, ended_at=one.at)
                facts.append(_failed(one.name, failures, one.result))
            case _:
                assert_never(one.result)
    return (replace(work, unloads=unloads) if unloads != work.unloads else work), tuple(facts)


def _failed(name: str, failures: int, failure: Failure) -> Event:
    return warning(
        EventName.UNLOAD_FAILED,
        repeats=f"{name} {failure.kind}",
        adapter=name,
        kind=failure.kind.value,
        status=failure.status,
        message=failure.message,
        consecutive=failures,
    )


def settle_unloads(
    desired: Desired, unloads: Mapping[str, Attempt], listed: Mapping[str, str], asked_at: float, *, restarted: bool
) -> tuple[Desired, Mapping[str, Attempt], tuple[Event, ...]]:
    """Decide by a listing what became of the withdrawn adapters, and take back what somebody loaded again.

    `listed` maps names to paths, `asked_at` is when it was asked for, `restarted` whether this is the first listing of
    another incarnation. The same `desired` is returned if nothing changed.
    """
    if not desired.withdrawn:
        return desired, {}, ()
    withdrawn: dict[str, Withdrawn] = {}
    back: dict[str, Adapter] = {}
    facts: list[Event] = []
    for name, one in desired.withdrawn.items():
        if one.pending:
            attempt = unloads.get(name, Attempt())
            told = attempt.accepted and not undecided(attempt, asked_at)
            if not told and not (restarted and name not in listed):
                withdrawn[name] = one
                continue
            facts.append(info(EventName.ADAPTER_UNLOADED, adapter=name))
        if one.declared is not None and name not in listed:
            withdrawn[name] = replace(one, pending=False)
        elif one.declared is not None:
            back[name] = one.declared
            facts.append(info(EventName.ADAPTER_REINSTATED, adapter=name, reason="loaded again by somebody else"))
    left = {name: attempt for name, attempt in unloads.items() if name in withdrawn and withdrawn[name].pending}
    if withdrawn == desired.withdrawn:
        return desired, left, tuple(facts)
    return replace(desired, adapters={**desired.adapters, **back}, withdrawn=withdrawn), left, tuple(facts)


def unloaded_by_us(desired: Desired, ended: Iterable[Unloaded | Retired]) -> Desired:
    """Take back that adapters were seen listed which this program has unloaded since: nobody else did.

    Where one of them is desired, or is desired again, its absence is a loss. The same object is returned if nothing
    changed.
    """
    number = desired.incarnation.number
    ours = {one.name for one in ended if one.incarnation == number and isinstance(one.result, Accepted)}
    return replace(desired, listed=desired.listed - ours) if ours & desired.listed else desired


def due_unloads(
    names: Iterable[str], unloads: Mapping[str, Attempt], asked_at: float, now: float
) -> tuple[tuple[str, ...], float | None]:
    """Those of `names` that are to be unloaded now, and when something more falls due."""
    due: list[str] = []
    wake_at: float | None = None
    for name in names:
        attempt = unloads.get(name, Attempt())
        if undecided(attempt, asked_at):
            continue
        if attempt.not_before > now:
            wake_at = attempt.not_before if wake_at is None else min(wake_at, attempt.not_before)
        else:
            due.append(name)
    return tuple(due), wake_at
