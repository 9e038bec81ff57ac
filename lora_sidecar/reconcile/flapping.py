"""Whether the server keeps restarting, which a person should know.

The trap guarded against is a condition that holds nothing back being taken for a rule that does: whatever ends the
server so often, its adapters are restored each time, and how fast is for `slow_start` to say.
"""

from __future__ import annotations

from lora_sidecar.core.conditions import ConditionType
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
    if len(recent) >= RESTARTS:
        message = f"it restarted {len(recent)} times within {WINDOW / 60:g} minutes"
        hint = "find out why the server ends: its log, its memory, its probes"
        beat.raise_condition(ConditionType.SERVER_FLAPPING, message, hint)
    return recent
