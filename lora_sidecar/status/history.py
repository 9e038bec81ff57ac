"""What happened lately, kept for people: the last events, and a server's incarnations, outages and recoveries.

The trap guarded against is a memory that grows with trouble. Everything is in rings of a fixed length, a text is cut to
a fixed length, and a run of one event (a thousand adapters restored) becomes one entry with a count, so that it does
not push out the outage it belongs to. Nothing is decided from this, and none of it is durable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.core.events import Event, EventName, Level
from lora_sidecar.core.text import TEXT_LENGTH_SHOWN, printable
from lora_sidecar.reconcile.outage import Phase

EVENTS_KEPT: Final = 100
"""Entries that are kept of one server, and as many of the process itself."""

SPANS_KEPT: Final = 200
"""Incarnations and absences that are kept of one server."""

RECOVERIES_KEPT: Final = 50
"""Recoveries that are kept of one server."""

_RUN: Final = 3
"""Entries of one event in a row before further ones are only counted."""


class Entry(Struct, frozen=True):
    """An event, or a run of `count` equal ones of which the newest was at `at` and said `text`."""

    at: float
    level: Level
    event: EventName
    text: str
    server: str = ""
    count: int = 1
    repeats: str = ""


class Span(Struct, frozen=True):
    """A stretch in one phase: an incarnation of a server, or an absence. `ended` is None while it lasts."""

    phase: Phase
    incarnation: int
    began: float
    ended: float | None = None
    reason: str = ""


class Recovered(Struct, frozen=True):
    """A recovery that is over: from the first good answer to everything lost restored or known to fail.

    `outage_seconds` is None for the first restore after our own start, which follows no outage.
    """

    began: float
    ended: float
    lost: int
    restored: int
    failed: int
    outage_seconds: float | None = None


class History:
    """The rings of one server, or with the name "" those of the process."""

    def __init__(self, server: str = "") -> None:
        """`server` stands in every entry."""
        self._server = server
        self._entries: deque[Entry] = deque(maxlen=EVENTS_KEPT)
        self._spans: deque[Span] = deque(maxlen=SPANS_KEPT)
        self._recoveries: deque[Recovered] = deque(maxlen=RECOVERIES_KEPT)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The events kept, oldest first."""
        return tuple(self._entries)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The incarnations and absences kept, oldest first; only the last may still last."""
        return tuple(self._spans)

    @property
    def recoveries(self) -> tuple[Recovered, ...]:
        """The recoveries kept, oldest first."""
        return tuple(self._recoveries)

    def take(self, at: float, events: Iterable[Event]) -> None:
        """Keep what was told at `at`, but for what only somebody who debugs wants to see."""
        for event in events:
            if event.level is Level.DEBUG:
                continue
            if event.event in (EventName.RECOVERY_COMPLETED, EventName.RESTORE_COMPLETED):
                self._recoveries.append(_recovered(at, event.fields))
            self._keep(Entry(at, event.level, event.event, told(event), self._server, repeats=event.repeats))

    def _keep(self, entry: Entry) -> None:
        """Add an entry, or count it: as a repeat of one still kept, or as one more of a run."""
        if entry.repeats:
            for place, one in enumerate(self._entries):
                if one.event is entry.event and one.repeats == entry.repeats:
                    del self._entries[place]
                    self._entries.append(replace(entry, count=one.count + 1))
                    return
        run = list(self._entries)[-_RUN:]
        if len(run) == _RUN and all(one.event is entry.event and one.level is entry.level for one in run):
            self._entries[-1] = replace(entry, count=run[-1].count + 1)
            return
        self._entries.append(entry)

    def mark(self, phase: Phase, incarnation: int, since: float, reason: str) -> None:
        """Note the phase and the incarnation that a server is in since `since`; one that goes on is only noted once."""
        if self._spans:
            last = self._spans[-1]
            if last.phase is phase and (phase is not Phase.UP or last.incarnation == incarnation):
                if reason != last.reason:
                    self._spans[-1] = replace(last, reason=reason)
                return
            since = max(since, last.began)
            self._spans[-1] = replace(last, ended=since)
        self._spans.append(Span(phase, incarnation, since, reason=reason))


def _recovered(at: float, fields: Mapping[str, Any]) -> Recovered:
    seconds = fields["restore_seconds"]
    began = fields.get("up_at", at - seconds)
    return Recovered(
        began=began,
        ended=began + seconds,
        lost=fields["lost"],
        restored=fields["restored"],
        failed=fields["failed"],
        outage_seconds=fields.get("outage_seconds"),
    )


def told(event: Event) -> str:
    """What an event says, in one bounded line for a person who sees the event's name beside it."""
    return printable(_sentence(event.event, event.fields), TEXT_LENGTH_SHOWN)


def _sentence(event: EventName, said: Mapping[str, Any]) -> str:
    match event:
        case EventName.SERVER_DOWN | EventName.PROBE_FAILED:
            return str(said["detail"])
        case EventName.SERVER_UP:
            return f"after {said['away_seconds']:g} s"
        case EventName.SERVER_RESTARTED:
            return f"incarnation {said['incarnation']}; {_adapters(said['lost'])} lost (evidence: {said['evidence']})"
        case EventName.CONDITION_RAISED | EventName.CONDITION_CLEARED:
            return ": ".join(str(said[name]) for name in ("condition", "message") if name in said)
        case EventName.CONFIG_REJECTED:
            return "; ".join(said["problems"])
        case _:
            return _of_adapters(event, said)


def _of_adapters(event: EventName, said: Mapping[str, Any]) -> str:
    match event:
        case EventName.RECOVERY_COMPLETED | EventName.RESTORE_COMPLETED:
            failed = f", {said['failed']} failed" if said["failed"] else ""
            return f"{said['restored']} of {_adapters(said['lost'])} restored{failed}, in {said['restore_seconds']:g} s"
        case EventName.RESTORE_STARTED:
            return f"{_adapters(said['adapters'])}, first {said['first']}"
        case EventName.RESTORE_FAILED:
            return f"{said['adapter']}: {said['message']}"
        case _ if "adapter" in said:
            return f"{said['adapter']}: {said['reason']}" if "reason" in said else f"{said['adapter']} {_origin(said)}"
        case _:
            return ", ".join(f"{name} {_value(value)}" for name, value in said.items() if value not in ([], ""))


def _origin(said: Mapping[str, Any]) -> str:
    return f"from {said['path']}" if "path" in said else ""


def _adapters(count: int) -> str:
    return f"{count} adapter" if count == 1 else f"{count} adapters"


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return str(value)
