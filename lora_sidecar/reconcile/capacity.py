"""What to load in which order where the engine keeps fewer adapters than are wanted, and when to stop.

Two traps are guarded against. vLLM takes any number of adapters and keeps the last `max_cpu_loras` of them in memory;
the rest is read from disk at a request, in the middle of everybody's. Loaded in the order of importance, the most
important are the first to be pushed out. And an engine that *unlists* what it pushes out (SGLang's `max_loaded_loras`)
looks as if it lost adapters: each load makes another vanish, for ever. So what does not fit is loaded before what does,
and two exchanges in a circle end the attempt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.core.model import Adapter
from lora_sidecar.reconcile.state import Attempt, Blocked, BlockReason, CapacityEstimate

EXCHANGES = 2
"""Exchanges in a circle, one of which pushes out what the next brings back, that are taken for the engine's limit."""

TRIED_AGAIN = 3600.0
"""Seconds after which one more load is tried where nothing fitted."""


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


class Displacement(Struct, frozen=True):
    """The desired adapters that vanished from the listing, and as many that we had loaded and that came meanwhile."""

    came: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()


def exchanged(
    before: Collection[str], listed: Collection[str], attempts: Mapping[str, Attempt], desired: Collection[str]
) -> Displacement:
    """What one listing exchanged for what, compared with the one before it; nothing where the numbers differ."""
    came = frozenset(name for name in listed if name not in before and name in attempts and attempts[name].ended_at)
    gone = frozenset(name for name in before if name not in listed and name in desired)
    return Displacement(came, gone) if gone and len(gone) == len(came) else Displacement()


def crowded(crowd: CapacityEstimate, exchange: Displacement, listed: int, now: float) -> CapacityEstimate:
    """What is known of the limit after one more listing.

    Somebody may unload one adapter while we load another. So an exchange counts on only if what came had itself been
    pushed out before, which is the beginning of a circle; a listing that has more refutes the limit, and it is tried
    again in time.
    """
    if crowd.fit is not None and listed > crowd.fit:
        return CapacityEstimate()
    if not exchange.gone:
        due = crowd.fit is not None and now >= crowd.until
        return replace(crowd, exchanges=EXCHANGES - 1, fit=None) if due else crowd
    exchanges = crowd.exchanges + 1 if exchange.came & crowd.pushed else 1
    pushed = exchange.gone | (crowd.pushed if exchanges > 1 else frozenset())
    full = exchanges >= EXCHANGES
    return CapacityEstimate(
        exchanges, listed if full else crowd.fit, pushed, now + TRIED_AGAIN if full else crowd.until
    )


def too_many(crowd: CapacityEstimate, missing: Iterable[Adapter], listed: int, wanted: int) -> dict[str, Blocked]:
    """The missing adapters for which there is no room."""
    if crowd.fit is None:
        return {}
    room = max(0, crowd.fit - listed)
    reason = f"{wanted} wanted, {crowd.fit} fit: loading one makes another vanish"
    left = sorted(missing, key=urgency)[room:]
    return {adapter.name: Blocked(BlockReason.CAPACITY, reason) for adapter in left}
