"""What the page shows of a server besides its document: the words and pictures that a template should not work out.

The trap guarded against is a page that only its author can read: nothing is told by colour or place alone, every time
has its date behind it, and a list that was cut says so.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from lora_sidecar.api.document import AdapterView, Document, RecoveryView, ServerView, SpanView
from lora_sidecar.api.page.text import PHASES, STATES, Mood, duration, number
from lora_sidecar.api.page.timeline import Piece, pieces
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.status.adapters import AdapterState

TOLD_SHOWN: Final = 12
PROBLEMS_SHOWN: Final = 5

_LISTED: Final = (AdapterState.LISTED, AdapterState.DEAD, AdapterState.NOT_APPLIED)
"""The states of adapters that are listed as they should be."""

_STRETCHES: Final = {Phase.DOWN.value: "down", Phase.UNKNOWN.value: "unknown", Phase.STARTING.value: "not seen yet"}


class Told(Struct, frozen=True):
    """One line of a server's history: an incarnation, an absence or a recovery that began at a date."""

    began: str
    mood: Mood
    what: str
    text: str


class Card(Struct, frozen=True):
    """One server: how it is, the line of its past, and the newest of it in words."""

    server: ServerView
    mood: Mood
    phase: str
    listed: str
    line: tuple[Piece, ...]
    line_in_words: str
    summary: str
    told: tuple[Told, ...]
    earlier: int


def card(server: ServerView, now: str, window: str) -> Card:
    """The card of one server, with as much of its past on the line as `window` shows."""
    mood, phase = PHASES[server.phase]
    absences = sum(span.phase == Phase.DOWN.value for span in server.timeline)
    away = sum(span.phase != Phase.UP.value for span in server.timeline)
    seen = f"now {server.phase}, incarnation {server.incarnation}, {away} times not up"
    recoveries = number(len(server.recoveries), "recovery", "recoveries")
    told = [_span(span) for span in server.timeline] + [_recovery(one) for one in server.recoveries]
    told.sort(key=lambda one: one.began, reverse=True)
    return Card(
        server=server,
        mood=mood,
        phase=phase,
        listed=_share(server),
        line=pieces(server, now, window),
        line_in_words=f"{server.name}: {seen}; listed below",
        summary=f"Incarnation {server.incarnation}, {number(absences, 'outage')}, {recoveries}",
        told=tuple(told[:TOLD_SHOWN]),
        earlier=max(0, len(told) - TOLD_SHOWN),
    )


def _share(server: ServerView) -> str:
    """How many of a server's desired adapters are listed."""
    desired = sum(server.adapters.values()) - server.adapters[AdapterState.WITHDRAWN.value]
    if not desired:
        return "no adapters"
    if server.phase != Phase.UP.value:
        return f"{number(desired, 'adapter')}, not known to be listed"
    return f"{sum(server.adapters[state.value] for state in _LISTED):,} of {number(desired, 'adapter')} listed"


def _span(span: SpanView) -> Told:
    what = f"up, incarnation {span.incarnation}" if span.phase == Phase.UP.value else _STRETCHES[span.phase]
    reason = "" if span.phase == Phase.UP.value or not span.reason else f": {span.reason}"
    lasted = f"{duration(span.seconds)}{'' if span.ended else ' so far'}"
    return Told(span.began, PHASES[span.phase][0], what, f"{lasted}{reason}")


def _recovery(one: RecoveryView) -> Told:
    if one.ended is None:
        return Told(one.began, Mood.BUSY, "recovery", f"under way: {number(one.lost, 'adapter')} lost")
    failed = f", {one.failed} failed" if one.failed else ""
    away = "" if one.outage_seconds is None else f"; {duration(one.outage_seconds)} without a good answer before it"
    text = f"in {duration(one.seconds)}: {one.restored} of {number(one.lost, 'adapter')} restored{failed}{away}"
    return Told(one.began, Mood.WARN if one.failed else Mood.BUSY, "recovery", text)


def mood_of(one: AdapterView) -> Mood:
    """How good or bad the state of an adapter is: what is listed and has something to say of itself is in danger."""
    in_danger = one.state == AdapterState.LISTED.value and bool(one.reason)
    return Mood.WARN if in_danger else STATES[one.state]


def problems(shown: Document) -> tuple[str, ...]:
    """Why the process is not live or not ready, a line each."""
    return (*(line for line in shown.not_live if line not in shown.not_ready), *shown.not_ready)


def title(shown: Document) -> str:
    """How many adapters there are, and how many of them were asked for."""
    whole = number(shown.adapters.total, "adapter")
    same = shown.adapters.matching == shown.adapters.total
    return whole if same else f"{shown.adapters.matching:,} of {whole}"
