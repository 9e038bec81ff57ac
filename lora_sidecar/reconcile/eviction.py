"""What a server took out of its listing by itself, to make room: neither lost nor unloaded.

The trap guarded against is thrashing. SGLang (0.5.6 and later) lists at most `max_loaded_loras` adapters, takes out the
least recently used one for each that comes in, and loads it again by itself at the next request for it. Restoring what
is missing there would push out another adapter, for ever; forgetting it would lose it at the next restart.

The rule: where more adapters were registered in this incarnation than the server lists at most, one of them that is
missing was evicted, whoever else may have unloaded it, and stays so until it is listed again or the incarnation ends.
The price is that a deliberate unload is not respected there; SGLang, too, loads such an adapter again when it is
asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from lora_sidecar.core.model import Desired
from lora_sidecar.core.observation import Observed
from lora_sidecar.reconcile.loads import undecided
from lora_sidecar.reconcile.state import State


def full(seen: Observed) -> bool:
    """Whether the server lists as many adapters as it ever does: the next one pushes another out."""
    return seen.capacity is not None and len(seen.adapters) >= seen.capacity


def registered(desired: Desired, work: State, seen: Observed, listed: Mapping[str, str]) -> Desired:
    """Note the adapters that the server loaded and evicted before any listing showed them.

    The same object is returned if nothing changed.
    """
    if not full(seen):
        return desired
    pushed_out = frozenset(
        name
        for name, attempt in work.attempts.items()
        if attempt.accepted and not undecided(attempt, seen.at) and name in desired.adapters and name not in listed
    )
    return desired if pushed_out <= desired.listed else replace(desired, listed=desired.listed | pushed_out)


def evicted(desired: Desired, work: State, seen: Observed, listed: Mapping[str, str]) -> frozenset[str]:
    """The desired adapters that the server holds, and left out of this listing to make room."""
    if seen.capacity is None:
        return frozenset()
    absent = (desired.listed & desired.adapters.keys()) - listed.keys()
    crowded = len(desired.listed | listed.keys()) > seen.capacity
    # What went while nobody watched may have gone either way, and forgetting is what cannot be made good.
    return frozenset(absent) if crowded or work.last is None else work.evicted & absent


def crowding(seen: Observed, wanted: int) -> bool:
    """Whether not all that is listed and `wanted` adapters more will be listed together."""
    return seen.capacity is not None and len(seen.adapters) + wanted > seen.capacity
