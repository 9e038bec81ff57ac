"""Whether two listings come from the same life of the server: the evidence behind "restart or deliberate unload?".

The trap guarded against is forgetting an adapter that a restart lost, which is the very failure this program exists
to prevent. So evidence is ranked (the server's own start time, then a silent connection that outlasted both listings,
then an outage seen, then everything gone at once), and where none of it decides, the caller is told that the answer is
a guess.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from lora_sidecar.core.model import Desired, Incarnation
from lora_sidecar.core.observation import Observed
from lora_sidecar.reconcile.state import State

_ALL = 2
"""From how many adapters on "all of them are gone" is taken for a restart; one alone is likelier an unload."""


class Evidence(StrEnum):
    """What a judgement rests on, strongest first."""

    START_TIME = "start_time"
    SILENT_CONNECTION = "silent_connection"
    OUTAGE = "outage"
    ALL_MISSING = "all_missing"
    NONE = "none"
    FIRST_SIGHT = "first_sight"


class Identified(Struct, frozen=True):
    """Which incarnation a listing belongs to, whether that is another one than before, and on what evidence."""

    incarnation: Incarnation
    restarted: bool
    evidence: Evidence


def judge(desired: Desired, work: State, seen: Observed) -> Identified:
    """Compare a good listing with what is remembered of the incarnation before it.

    An interruption of the watch (an outage, or our own restart) counts as a restart unless the start times are equal,
    or one silent connection was open before the earlier listing and still after the later one.
    """
    known = desired.incarnation
    if known.number == 0:
        return Identified(Incarnation(1, seen.start_time), restarted=False, evidence=Evidence.FIRST_SIGHT)
    if known.start_time is not None and seen.start_time is not None:
        if known.start_time == seen.start_time:
            return Identified(known, restarted=False, evidence=Evidence.START_TIME)
        return _next(known, seen, Evidence.START_TIME)
    if work.last is not None and work.last.line is not None and work.last.line == seen.line:
        return Identified(_with_start_time(known, seen), restarted=False, evidence=Evidence.SILENT_CONNECTION)
    if work.last is None or work.server.interrupted:
        return _next(known, seen, Evidence.OUTAGE)
    if _all_gone(work.last, seen):
        return _next(known, seen, Evidence.ALL_MISSING)
    # A start time that is first read together with an absence may be that of the next life: it proves nothing yet.
    whole = desired.listed <= {card.name for card in seen.adapters}
    same = _with_start_time(known, seen) if whole else known
    return Identified(same, restarted=False, evidence=Evidence.NONE)


def _with_start_time(known: Incarnation, seen: Observed) -> Incarnation:
    """The same incarnation, with its start time where that is learned only now."""
    return known if seen.start_time is None else Incarnation(known.number, seen.start_time)


def _next(known: Incarnation, seen: Observed, evidence: Evidence) -> Identified:
    return Identified(Incarnation(known.number + 1, seen.start_time), restarted=True, evidence=evidence)


def _all_gone(last: Observed, seen: Observed) -> bool:
    if seen.adapters is last.adapters or len(last.adapters) < _ALL:
        return False
    if seen.capacity is not None and len(seen.adapters) >= seen.capacity:
        # The server makes room by itself: others in their place are no sign of a restart.
        return False
    return {card.name for card in last.adapters}.isdisjoint(card.name for card in seen.adapters)
