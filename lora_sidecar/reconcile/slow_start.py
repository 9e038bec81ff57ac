"""How fast a restore goes: all that is due at once, or few, and ever more as they are seen to do no harm.

Two traps are guarded against. Haste where it does harm: a suspect that is loaded amid others kills them with the server
and makes its neighbours suspects, too. And caution without an end: slowing every load down because a server keeps
restarting kept adapters away for minutes that had nothing to do with it. So a restore starts slowly only where loading
may have been the cause, and its batches double: N adapters wait for at most log2 N + 2 seconds beyond their loads.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from lora_sidecar.core.model import Adapter
from lora_sidecar.reconcile.backoff import UNTRIED
from lora_sidecar.reconcile.beat import ListingBeat

HELD = 5.0
"""Seconds after the last load's end for which the server must have been seen alive: then no load was the cause."""

PAUSE = 1.0
"""Seconds after the last load's end from which on a listing confirms that the server has taken it well."""


class SlowStart(Struct, frozen=True):
    """How many adapters may be sent at once, and which ones are.

    `batch` is None while nothing speaks for caution: everything goes at once. `names` are the adapters of the newest
    batch, `chosen_at` is when it was chosen.
    """

    batch: int | None = None
    names: frozenset[str] = frozenset()
    chosen_at: float = float("-inf")

    @property
    def is_slow(self) -> bool:
        """Whether the restore is held back for now."""
        return self.batch is not None


def learn(state: SlowStart, load_ended: float, beat: ListingBeat) -> SlowStart:
    """Start slowly in a life of the server that follows one which loading may have ended.

    That is one that ended with a load in flight, which its accusation tells, or so soon after the end of the last load
    (`load_ended`) that no listing has shown the server alive since. Full speed again once everything is back.
    """
    if not beat.restarted:
        return state
    accused = any(one.accused for one in beat.desired.suspects.values())
    soon_after = beat.last is not None and load_ended > beat.last.at - HELD
    return SlowStart(1) if accused or soon_after else SlowStart()


def decide(state: SlowStart, ordered: Sequence[Adapter], beat: ListingBeat) -> tuple[SlowStart, tuple[Adapter, ...]]:
    """What of the due loads may be sent now; `ordered` has the most urgent first.

    Everything above suspicion goes before the suspects, which go one at a time. A batch, and a suspect, waits for a
    listing that was asked for a second after the last load ended.
    """
    innocent = [adapter for adapter in ordered if adapter.name not in beat.alone]
    if innocent and state.batch is None:
        return state, tuple(innocent)
    under_way = tuple(adapter for adapter in ordered if _is_untried(adapter.name, state, beat))
    if under_way:
        return state, under_way
    if not beat.missing:
        return SlowStart(), ()
    if not ordered or _is_open(state, beat):
        return state, ()
    confirmed_from = beat.last_load_ended + PAUSE
    if beat.at < confirmed_from:
        beat.wake(max(confirmed_from, beat.now))
        return state, ()
    if not innocent:
        return SlowStart(state.batch, frozenset({ordered[0].name}), beat.at), (ordered[0],)
    size = 1 if not state.names or state.batch is None else 2 * state.batch
    chosen = tuple(innocent[:size])
    return SlowStart(size, frozenset(adapter.name for adapter in chosen), beat.at), chosen


def _is_untried(name: str, state: SlowStart, beat: ListingBeat) -> bool:
    """Whether an adapter of the newest batch has yet to be sent: one that failed meanwhile waits for its next turn."""
    return name in state.names and beat.attempts.get(name, UNTRIED).ended_at < state.chosen_at


def _is_open(state: SlowStart, beat: ListingBeat) -> bool:
    """Whether a load of the newest batch ended, or is under way, and no listing has told what came of it."""
    in_flight = {adapter.name for adapter in beat.in_flight}
    names = state.names & beat.missing.keys()
    return any(name in in_flight or not beat.attempts.get(name, UNTRIED).predates(beat.at) for name in names)
