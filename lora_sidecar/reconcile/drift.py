"""How the listing differs from what is desired, and when that is told.

The trap guarded against is a log line for every heartbeat of a drift that lasts: it is told when it grows.
"""

from __future__ import annotations

from msgspec import Struct

from lora_sidecar.core.events import EventName
from lora_sidecar.core.paths import is_listed_path
from lora_sidecar.core.text import shown
from lora_sidecar.reconcile.beat import ListingBeat


class Drift(Struct, frozen=True):
    """How the listing differs from desired: names missing, listed with another path, listed and not desired."""

    missing: frozenset[str] = frozenset()
    replaced: frozenset[str] = frozenset()
    unexpected: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.missing or self.replaced or self.unexpected)


def decide(before: Drift, beat: ListingBeat) -> Drift:
    """The drift now, told where it differs in more than before."""
    adapters = beat.desired.adapters
    replaced = {n for n, path in beat.listed.items() if n in adapters and not is_listed_path(adapters[n], path)}
    drift = Drift(frozenset(beat.missing), frozenset(replaced), frozenset(beat.refused.keys() - adapters.keys()))
    grown = drift.missing - before.missing or drift.replaced - before.replaced or drift.unexpected - before.unexpected
    if grown:
        beat.say(
            EventName.DRIFT_DETECTED,
            missing=shown(drift.missing),
            replaced=shown(drift.replaced),
            unexpected=shown(drift.unexpected),
        )
    return drift
