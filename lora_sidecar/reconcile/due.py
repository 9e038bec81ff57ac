"""What may be sent to the server now, in which order, and when something more may.

The traps guarded against are a load sent again before the listing has told what became of the last one, and a paused
sidecar that acts in one of its three ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from lora_sidecar.core.model import Adapter, Desired
from lora_sidecar.core.observation import Observed
from lora_sidecar.reconcile.capacity import urgency
from lora_sidecar.reconcile.eviction import crowding
from lora_sidecar.reconcile.guard import in_turn
from lora_sidecar.reconcile.loads import undecided
from lora_sidecar.reconcile.policy import Policy
from lora_sidecar.reconcile.replacement import source
from lora_sidecar.reconcile.state import Attempt, Retire, State
from lora_sidecar.reconcile.unloads import due_unloads

_UNTRIED = Attempt()


class Due(Struct, frozen=True):
    """What to do now, in order, and when more falls due by the loop's clock; None if nothing will by itself."""

    restores: tuple[Adapter, ...] = ()
    unloads: tuple[str, ...] = ()
    retires: tuple[Retire, ...] = ()
    wake_at: float | None = None


def due(
    desired: Desired,
    work: State,
    seen: Observed,
    policy: Policy,
    now: float,
    *,
    loadable: Mapping[str, Adapter],
    bombs: Sequence[str],
    retires: tuple[Retire, ...],
) -> Due:
    """What of the `loadable`, of the unloads and of the `retires` is due.

    `bombs` are the listed adapters that are to be unloaded because their files are gone; one that is retired anyway is
    left to that.
    """
    if desired.paused is not None:
        return Due()
    ready, wake_at = _ready(loadable, work, seen, now)
    restores, later = in_turn(ready, desired, work, policy.capacity, policy.heartbeat.interval, now)
    retiring = {one.name for one in retires}
    pending = (name for name, one in sorted(desired.withdrawn.items()) if one.pending)
    unwanted = (*pending, *(name for name in bombs if name not in retiring))
    unloads, retry_at = due_unloads(unwanted, work.unloads, seen.at, now)
    return Due(
        restores,
        unloads,
        retires,
        min((at for at in (wake_at, later, retry_at) if at is not None), default=None),
    )


def _ready(
    loadable: Mapping[str, Adapter], work: State, seen: Observed, now: float
) -> tuple[tuple[Adapter, ...], float | None]:
    """The loads whose wait is over, in order, and when the next one's is."""
    if not loadable or seen.runtime_loading is False:
        return (), None
    if work.hold is not None and work.hold.until > now:
        return (), work.hold.until
    ready: list[Adapter] = []
    wake_at: float | None = None
    for adapter in loadable.values():
        attempt = work.attempts.get(adapter.name, _UNTRIED)
        if undecided(attempt, seen.at):
            continue
        if attempt.not_before > now:
            wake_at = attempt.not_before if wake_at is None else min(wake_at, attempt.not_before)
        else:
            ready.append(adapter)
    # Where not all are kept, those loaded last stay: the most urgent ones.
    ordered = sorted(ready, key=urgency, reverse=crowding(seen, len(loadable)))
    return tuple(source(adapter, work.swaps) for adapter in ordered), wake_at
