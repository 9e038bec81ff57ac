"""How fast a restore goes: all that is due at once, or one adapter and then a good heartbeat.

The trap guarded against is haste where it does harm. A suspect that is loaded amid others kills them with the server
and makes its neighbours suspects, too; and a server that keeps dying is not helped by a burst of loads at every birth.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.model import Adapter
from lora_sidecar.reconcile.beat import Evidence, ListingBeat

RESTARTS = 3
WINDOW = 600.0
"""A server flaps if it restarted so many times within so many seconds."""

Restarts = tuple[float, ...]
"""When restarts of the server were lately seen."""


def learn(restarts: Restarts, beat: ListingBeat) -> Restarts:
    """The restarts within the window.

    One that is only assumed, because an outage was seen or nobody watched, and has lost nothing, is no sign of a server
    that keeps dying; nor is the first that this process sees.
    """
    recent = tuple(at for at in restarts if beat.now - at < WINDOW)
    names = beat.desired.adapters
    assumed = beat.incarnation.evidence is Evidence.OUTAGE and all(name in beat.listed for name in names)
    if beat.restarted and beat.last is not None and not assumed:
        recent = (*recent, beat.now)
    if recent:
        beat.settled = False
    return recent


def is_flapping(restarts: Restarts) -> bool:
    """Whether the server restarted too often lately."""
    return len(restarts) >= RESTARTS


def decide(restarts: Restarts, ordered: Sequence[Adapter], beat: ListingBeat) -> tuple[Adapter, ...]:
    """What of the due loads may be sent now.

    `ordered` has the most urgent first. Everything above suspicion goes first and at once, unless the server flaps;
    what is left goes one at a time, each one heartbeat after the last load ended.
    """
    slowly = is_flapping(restarts)
    if slowly:
        message = f"{len(restarts)} lives of the server began within {WINDOW / 60:g} minutes"
        hint = "find out why the server dies; meanwhile one adapter is loaded a heartbeat"
        beat.raise_condition(ConditionType.SERVER_FLAPPING, message, hint)
    innocent = tuple(adapter for adapter in ordered if adapter.name not in beat.alone)
    if innocent and not slowly:
        return innocent
    careful = innocent or tuple(ordered)
    not_before = beat.last_load_ended + beat.policy.heartbeat.interval
    if careful and not_before > beat.now:
        beat.wake(not_before)
        return ()
    return careful[:1]
