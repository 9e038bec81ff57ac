"""What to load in which order where the engine keeps fewer adapters than are wanted, and when to stop.

Two traps are guarded against. vLLM takes any number of adapters and keeps the last `max_cpu_loras` of them in memory;
the rest is read from disk at a request, in the middle of everybody's. Loaded in the order of importance, the most
important are the first to be pushed out. And an engine that *unlists* what it pushes out (SGLang's `max_loaded_loras`)
looks as if it lost adapters: each load makes another vanish, for ever. So what does not fit is loaded before what does,
and two exchanges of one for another, without a load between them that pushed nothing out, end the attempt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from lora_sidecar.model import Adapter
from lora_sidecar.work import Attempt, Bar, Barred, Crowd

EXCHANGES = 2
"""Listings in which as many adapters vanished as we had loaded, after which that is taken for the engine's limit."""


def urgency(adapter: Adapter) -> tuple[int, bool, str]:
    """The key by which adapters are ordered, the most important first."""
    return -adapter.priority, not adapter.required, adapter.name


def first_tier(due: Sequence[Adapter], desired: Mapping[str, Adapter], capacity: int | None) -> tuple[Adapter, ...]:
    """What of the due loads goes first: what does not fit into the engine's memory, and once it is listed the rest.

    So what fits is loaded last and stays, and the most important of it is the first of it.
    """
    if capacity is None or len(desired) <= capacity:
        return tuple(due)
    fitting = {adapter.name for adapter in sorted(desired.values(), key=urgency)[:capacity]}
    overflow = tuple(adapter for adapter in due if adapter.name not in fitting)
    return overflow or tuple(due)


def noticed(
    crowd: Crowd,
    before: Collection[str],
    listed: Collection[str],
    attempts: Mapping[str, Attempt],
    known: Collection[str],
) -> Crowd:
    """What is known of the limit after one more listing.

    An exchange is a listing in which as many of the `known` (desired, and not unloaded by us) have vanished as have
    come that we had loaded. A load that pushed nothing out shows that there was room: what vanished before was unloaded
    by somebody.
    """
    came = {name for name in listed if name not in before and name in attempts and attempts[name].ended_at}
    gone = {name for name in before if name not in listed and name in known}
    if came and not gone and crowd.fit is None:
        return Crowd()
    if not gone or len(gone) != len(came):
        return crowd
    exchanges = crowd.exchanges + 1
    return Crowd(exchanges, len(listed) if exchanges >= EXCHANGES else crowd.fit)


def too_many(crowd: Crowd, missing: Iterable[Adapter], listed: int, wanted: int) -> dict[str, Barred]:
    """The missing adapters for which there is no room."""
    if crowd.fit is None:
        return {}
    room = max(0, crowd.fit - listed)
    reason = f"{wanted} wanted, {crowd.fit} fit: loading one makes another vanish"
    left = sorted(missing, key=urgency)[room:]
    return {adapter.name: Barred(Bar.CAPACITY, reason) for adapter in left}
