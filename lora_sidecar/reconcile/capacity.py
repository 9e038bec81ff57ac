"""What to load in which order where the engine keeps fewer adapters than are wanted, and when to stop.

Three traps are guarded against. vLLM takes any number of adapters and keeps the last `max_cpu_loras` of them in memory;
the rest is read from disk at a request, in the middle of everybody's. Loaded in the order of importance, the most
important are the first to be pushed out; so what does not fit is loaded before what does. SGLang (0.5.6 and later)
lists at most `max_loaded_loras`, takes out the least recently used one for each that comes in, and loads it again by
itself at the next request; restoring that would push out another, for ever, and forgetting it would lose it at the next
restart. And an engine that tells no limit looks as if it lost adapters: two displacements in a circle end the attempt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.model import Adapter
from lora_sidecar.reconcile.beat import BlockReason, ListingBeat

CIRCLE = 2
"""Displacements in a circle, one of which pushes out what the next brings back, that are taken for the limit."""

TRIED_AGAIN = 3600.0
"""Seconds after which one more load is tried where nothing fitted."""


class CapacityEstimate(Struct, frozen=True):
    """What was seen of an engine's limit in this life of the server.

    `displacements` counts the listings in a row in which as many adapters had vanished as we had loaded, each of them
    after one that it had pushed out itself; `displaced` are the names that vanished so. `fit` is how many it lists at
    most, None while that is not known, and `until` when that is to be tried again.
    """

    displacements: int = 0
    fit: int | None = None
    displaced: frozenset[str] = frozenset()
    until: float = 0.0


class Capacity(Struct, frozen=True):
    """What is known of the room for adapters; `evicted` are those that the server took out of its listing itself."""

    estimate: CapacityEstimate = CapacityEstimate()
    evicted: frozenset[str] = frozenset()


class Displacement(Struct, frozen=True):
    """The desired adapters that vanished from the listing, and as many that we had loaded and that came meanwhile."""

    came: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()


def learn(state: Capacity, beat: ListingBeat) -> Capacity:
    """See what the server evicted, and whether loads pushed others out of the listing."""
    state = Capacity() if beat.restarted else state
    _note_registered(beat)
    evicted = _evicted(state.evicted, beat)
    if evicted:
        beat.held = {**beat.listed, **{name: beat.desired.adapters[name].path for name in evicted}}
    estimate = _estimate(state.estimate, _displacement(beat), len(beat.held), beat.now)
    return Capacity(estimate, evicted)


def _note_registered(beat: ListingBeat) -> None:
    """Note the adapters that the server loaded and evicted before any listing showed them."""
    capacity, desired = beat.seen.capacity, beat.desired
    if capacity is None or len(beat.listed) < capacity:
        return
    loaded = frozenset(
        name
        for name, attempt in beat.attempts.items()
        if attempt.accepted and attempt.predates(beat.at) and name in desired.adapters and name not in beat.listed
    )
    if not loaded <= desired.listed:
        beat.desired = replace(desired, listed=desired.listed | loaded)


def _evicted(before: frozenset[str], beat: ListingBeat) -> frozenset[str]:
    """The desired adapters that the server holds, and left out of this listing to make room.

    Where more adapters were registered in this incarnation than the server lists at most, one of them that is missing
    was evicted, whoever else may have unloaded it, and stays so until it is listed again or the incarnation ends. The
    price is that a deliberate unload is not respected there; SGLang, too, loads such an adapter again when it is asked
    for.
    """
    if beat.seen.capacity is None:
        return frozenset()
    desired = beat.desired
    absent = (desired.listed & desired.adapters.keys()) - beat.listed.keys()
    is_full = len(desired.listed | beat.listed.keys()) > beat.seen.capacity
    # What went while nobody watched may have gone either way, and forgetting is what cannot be made good.
    return frozenset(absent) if is_full or beat.last is None else before & absent


def _displacement(beat: ListingBeat) -> Displacement:
    """What this listing exchanged for what, compared with the one before it; nothing where the numbers differ.

    What we unloaded ourselves, to replace it or because its files are gone, is not counted as listed any more.
    """
    if beat.last is None or beat.restarted:
        return Displacement()
    before: Collection[str] = {card.name for card in beat.last.adapters}
    known = beat.desired.listed & beat.desired.adapters.keys()
    attempts = beat.attempts
    came = frozenset(n for n in beat.held if n not in before and n in attempts and attempts[n].ended_at)
    gone = frozenset(n for n in before if n not in beat.held and n in known)
    return Displacement(came, gone) if gone and len(gone) == len(came) else Displacement()


def _estimate(before: CapacityEstimate, seen: Displacement, listed: int, now: float) -> CapacityEstimate:
    """What is known of the limit after one more listing.

    Somebody may unload one adapter while we load another. So a displacement counts on only if what came had itself been
    displaced before, which is the beginning of a circle; a listing that has more refutes the limit, and it is tried
    again in time.
    """
    if before.fit is not None and listed > before.fit:
        return CapacityEstimate()
    if not seen.gone:
        due = before.fit is not None and now >= before.until
        return replace(before, displacements=CIRCLE - 1, fit=None) if due else before
    count = before.displacements + 1 if seen.came & before.displaced else 1
    displaced = seen.gone | (before.displaced if count > 1 else frozenset())
    if count >= CIRCLE:
        return CapacityEstimate(count, listed, displaced, now + TRIED_AGAIN)
    return CapacityEstimate(count, before.fit, displaced, before.until)


def decide(state: Capacity, beat: ListingBeat) -> None:
    """Hold back the missing adapters for which there is no room, the least important first."""
    fit = state.estimate.fit
    if fit is None:
        return
    why = f"{len(beat.desired.adapters)} wanted, {fit} fit: loading one makes another vanish"
    room = max(0, fit - len(beat.listed))
    for adapter in sorted(beat.loadable.values(), key=_urgency)[room:]:
        beat.block(adapter.name, BlockReason.CAPACITY, why)
    hint = "raise the server's limit of loaded adapters, or want fewer"
    beat.raise_blocked(ConditionType.CAPACITY_EXCEEDED, BlockReason.CAPACITY, hint)


def in_order(ready: Sequence[Adapter], beat: ListingBeat) -> tuple[Adapter, ...]:
    """What of the ready adapters goes first, in order: what does not fit, and once it is listed the rest.

    So what fits is loaded last and stays, and the most important of it is the first of it. An engine that keeps the
    last ones listed is given the most urgent ones last.
    """
    limit = beat.seen.capacity
    is_over_capacity = limit is not None and len(beat.listed) + len(beat.loadable) > limit
    ordered = sorted(ready, key=_urgency, reverse=is_over_capacity)
    first = [adapter for adapter in ordered if adapter.name not in beat.alone] or ordered
    capacity, desired = beat.policy.capacity, beat.desired.adapters
    if capacity is None or len(desired) <= capacity:
        return tuple(first)
    fitting = {adapter.name for adapter in sorted(desired.values(), key=_urgency)[:capacity]}
    return tuple(adapter for adapter in first if adapter.name not in fitting) or tuple(first)


def _urgency(adapter: Adapter) -> tuple[int, bool, str]:
    return adapter.urgency
