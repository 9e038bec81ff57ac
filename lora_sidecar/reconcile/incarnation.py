"""Whether two listings come from the same life of the server: the evidence behind "restart or deliberate unload?".

The trap guarded against is forgetting an adapter that a restart lost, which is the very failure this program exists
to prevent. So evidence is ranked (the server's own start time, then a silent connection that outlasted both listings,
then an outage seen, then everything gone at once), and where none of it decides, the caller is told that the answer is
a guess.
"""

from __future__ import annotations

from msgspec.structs import replace

from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Desired, Incarnation
from lora_sidecar.core.observation import Observed
from lora_sidecar.core.paths import same_path
from lora_sidecar.core.text import shown
from lora_sidecar.reconcile.beat import Evidence, Identified, ListingBeat

_ALL = 2
"""From how many adapters on "all of them are gone" is taken for a restart; one alone is likelier an unload."""


def identify(desired: Desired, last: Observed | None, seen: Observed, *, interrupted: bool) -> Identified:
    """Compare a good listing with what is remembered of the incarnation before it.

    `last` is the good listing before, None where this process saw none. An interruption of the watch (an outage, or our
    own restart) counts as a restart unless the start times are equal, or one silent connection was open before the
    earlier listing and still after the later one.
    """
    known = desired.incarnation
    if known.number == 0:
        return Identified(Incarnation(1, seen.start_time), restarted=False, evidence=Evidence.FIRST_SIGHT)
    if known.start_time is not None and seen.start_time is not None:
        if known.start_time == seen.start_time:
            return Identified(known, restarted=False, evidence=Evidence.START_TIME)
        return _next(known, seen, Evidence.START_TIME)
    if last is not None and None not in (last.start_time, seen.start_time) and last.start_time != seen.start_time:
        # That of the listing before was not taken over, since it came together with an absence.
        return _next(known, seen, Evidence.START_TIME)
    if last is not None and last.line is not None and last.line == seen.line:
        return Identified(_with_start_time(known, seen), restarted=False, evidence=Evidence.SILENT_CONNECTION)
    if last is None or interrupted:
        return _next(known, seen, Evidence.OUTAGE)
    if _all_gone(last, seen):
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
    if len(last.adapters) < _ALL:
        return False
    if seen.capacity is not None and len(seen.adapters) >= seen.capacity:
        # The server makes room by itself: others in their place are no sign of a restart.
        return False
    return {card.name for card in last.adapters}.isdisjoint(card.name for card in seen.adapters)


def learn(beat: ListingBeat) -> None:
    """Take over the incarnation; a new one has listed nothing yet, and what was orphaned and has left is dropped.

    A restart that is only assumed because nobody watched, and that has lost nothing, is not told.
    """
    _drop_orphans(beat)
    desired, found = beat.desired, beat.incarnation
    if found.incarnation == desired.incarnation:
        return
    kept = frozenset[str]() if beat.restarted else desired.listed
    beat.desired = replace(desired, incarnation=found.incarnation, listed=kept)
    lost = [name for name in desired.adapters if name not in beat.listed]
    assumed = found.evidence is Evidence.OUTAGE and beat.last is None
    if not beat.restarted or (assumed and not lost):
        return
    beat.warn(
        EventName.SERVER_RESTARTED,
        incarnation=found.incarnation.number,
        evidence=found.evidence.value,
        lost=len(lost),
        lost_adapters=shown(lost),
    )


def _drop_orphans(beat: ListingBeat) -> None:
    desired, listed = beat.desired, beat.listed
    gone = {
        name
        for name, path in desired.orphaned.items()
        if (name not in listed and (beat.restarted or (beat.seen.capacity is None and name in desired.listed)))
        or (name in listed and not same_path(listed[name], path))
    }
    if gone:
        beat.desired = replace(desired, orphaned={n: p for n, p in desired.orphaned.items() if n not in gone})
