"""`/status`: the newest snapshot as JSON, for programs; the page shows the same document to people.

Two traps are guarded against. A page and an API that are made apart come to disagree; so both are this one value. And
ten thousand adapters, or a name without end, must not make an answer slow or endless: adapters come in pages, those
that need attention first, every text has a limit, and what is left out is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec
from msgspec import Struct

from lora_sidecar import __version__
from lora_sidecar.history import EVENTS_KEPT, Entry, Recovered, Span, clipped
from lora_sidecar.log import dates
from lora_sidecar.status import AdapterState, AdapterStatus, ServerStatus, Snapshot, not_live, not_ready
from lora_sidecar.work import Condition, Phase

VERSION: Final = 1
"""Of the document: raised when a field is removed or changes its meaning, not when one is added."""

PAGE_SIZE: Final = 50
LARGEST_PAGE: Final = 1000
NOT_READY_SHOWN: Final = 20

Date = Callable[[float], str]


class Query(Struct, frozen=True):
    """Which adapters are asked for: of one server, in one state, with a text in name or path; and which page."""

    server: str = ""
    state: AdapterState | None = None
    text: str = ""
    offset: int = 0
    limit: int = PAGE_SIZE


class BadQueryError(Exception):
    """A query that cannot be understood; the message is for a person."""


def read_query(given: Mapping[str, str]) -> Query:
    """The query of a request's parameters `server`, `state`, `q`, `offset` and `limit`. Raises `BadQueryError`."""
    state = given.get("state", "")
    if state and state not in tuple(AdapterState):
        raise BadQueryError(f"state is one of {', '.join(AdapterState)}")
    return Query(
        server=given.get("server", "")[:256],
        state=AdapterState(state) if state else None,
        text=given.get("q", "")[:256],
        offset=_number(given, "offset", 0, 10**9, 0),
        limit=_number(given, "limit", 1, LARGEST_PAGE, PAGE_SIZE),
    )


def _number(given: Mapping[str, str], name: str, least: int, most: int, default: int) -> int:
    text = given.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):  # noqa: PLR2004
        raise BadQueryError(f"{name} is a number from {least} to {most}")
    return int(text)


class ConditionView(Struct, frozen=True):
    """A condition that holds."""

    type: str
    message: str
    hint: str


class AdapterView(Struct, frozen=True):
    """One desired adapter."""

    server: str
    name: str
    path: str
    origin: str
    required: bool
    priority: int
    state: str
    reason: str
    since: str


class SpanView(Struct, frozen=True):
    """A life of the server (phase up) or an absence of it; `ended` is null while it lasts."""

    phase: str
    incarnation: int
    began: str
    ended: str | None
    seconds: float
    reason: str


class RecoveryView(Struct, frozen=True):
    """A way back; `ended`, `restored` and `failed` are null while it lasts, `outage_seconds` where there was none."""

    began: str
    ended: str | None
    seconds: float
    lost: int
    restored: int | None
    failed: int | None
    outage_seconds: float | None


class ServerView(Struct, frozen=True):
    """One server; `adapters` counts its desired adapters by state."""

    name: str
    phase: str
    since: str
    reason: str
    detail: str
    hint: str
    incarnation: int
    last_good: str | None
    heartbeats: int
    heartbeat_ended: str | None
    heartbeat_seconds: float
    verdict: str
    checkpoint_generation: int
    adapters: Mapping[str, int]
    conditions: tuple[ConditionView, ...]
    timeline: tuple[SpanView, ...]
    recoveries: tuple[RecoveryView, ...]


class AdapterPage(Struct, frozen=True):
    """The adapters asked for: `total` are desired, `matching` of them match, `items` are this page."""

    total: int
    matching: int
    offset: int
    limit: int
    items: tuple[AdapterView, ...]


class EventView(Struct, frozen=True):
    """An event, or `count` of them of which this is the newest; `server` is "" for the process itself."""

    at: str
    level: str
    event: str
    server: str
    text: str
    count: int


class Document(Struct, frozen=True):
    """What `/status` answers."""

    format: Literal["lora-sidecar/status"]
    version: int
    at: str
    revision: int
    sidecar_version: str
    started: str
    ready: bool
    live: bool
    not_ready: tuple[str, ...]
    not_live: tuple[str, ...]
    config_generation: int
    conditions: tuple[ConditionView, ...]
    servers: tuple[ServerView, ...]
    adapters: AdapterPage
    events: tuple[EventView, ...]


def document(snapshot: Snapshot, query: Query) -> Document:
    """The document of a snapshot that was taken just now."""
    date = dates(snapshot.at)
    waiting = not_ready(snapshot)
    stalled = not_live(snapshot)
    return Document(
        format="lora-sidecar/status",
        version=VERSION,
        at=date(snapshot.at),
        revision=snapshot.revision,
        sidecar_version=__version__,
        started=date(snapshot.started_at),
        ready=not waiting,
        live=not stalled,
        not_ready=tuple(clipped(line) for line in _first(waiting)),
        not_live=stalled,
        config_generation=snapshot.config_generation,
        conditions=tuple(map(_condition, snapshot.config_conditions)),
        servers=tuple(_server(status, date, snapshot.at) for status in snapshot.servers),
        adapters=_adapters(snapshot, query, date),
        events=tuple(_event(entry, date) for entry in snapshot.events[-EVENTS_KEPT:]),
    )


def encoded(shown: Document) -> bytes:
    """The document as JSON in UTF-8."""
    return msgspec.json.format(msgspec.json.encode(shown), indent=2)


def _first(lines: tuple[str, ...]) -> tuple[str, ...]:
    if len(lines) <= NOT_READY_SHOWN:
        return lines
    return (*lines[: NOT_READY_SHOWN - 1], f"and {len(lines) - NOT_READY_SHOWN + 1} more")


def _condition(held: Condition) -> ConditionView:
    # Its message lists up to twenty names, each with its reason.
    return ConditionView(held.type.value, clipped(held.message, 4000), held.hint)


def _server(status: ServerStatus, date: Date, now: float) -> ServerView:
    server = status.work.server
    up = server.phase is Phase.UP
    counts = Counter(one.state for one in status.adapters)
    return ServerView(
        name=status.name,
        phase=server.phase.value,
        since=date(server.since),
        reason="" if up or server.reason is None else server.reason.value,
        detail="" if up else clipped(server.detail),
        hint="" if up else server.hint,
        incarnation=status.desired.incarnation.number,
        last_good=None if server.last_good is None else date(server.last_good),
        heartbeats=status.beats,
        heartbeat_ended=date(status.beat_at) if status.beats else None,
        heartbeat_seconds=round(status.beat_seconds, 4),
        verdict=status.verdict.value,
        checkpoint_generation=status.saved_generation,
        adapters={state.value: counts[state] for state in AdapterState},
        conditions=tuple(map(_condition, status.conditions)),
        timeline=tuple(_span(span, date, now) for span in status.spans),
        recoveries=(*(_recovery(one, date) for one in status.recoveries), *_under_way(status, date, now)),
    )


def _span(span: Span, date: Date, now: float) -> SpanView:
    ended = now if span.ended is None else span.ended
    return SpanView(
        phase=span.phase.value,
        incarnation=span.incarnation,
        began=date(span.began),
        ended=None if span.ended is None else date(span.ended),
        seconds=round(max(0.0, ended - span.began), 3),
        reason=span.reason,
    )


def _recovery(one: Recovered, date: Date) -> RecoveryView:
    return RecoveryView(
        began=date(one.began),
        ended=date(one.ended),
        seconds=round(one.ended - one.began, 3),
        lost=one.lost,
        restored=one.restored,
        failed=one.failed,
        outage_seconds=one.outage_seconds,
    )


def _under_way(status: ServerStatus, date: Date, now: float) -> tuple[RecoveryView, ...]:
    recovery = status.work.recovery
    if recovery is None or recovery.up_at is None or status.work.server.phase is not Phase.UP:
        return ()
    seconds = round(max(0.0, now - recovery.up_at), 3)
    return (RecoveryView(date(recovery.up_at), None, seconds, len(recovery.lost), None, None, None),)


def _adapters(snapshot: Snapshot, query: Query, date: Date) -> AdapterPage:
    total = 0
    matching: list[tuple[str, AdapterStatus]] = []
    text = query.text.casefold()
    for status in snapshot.servers:
        total += len(status.adapters)
        if query.server not in ("", status.name):
            continue
        for one in status.adapters:
            if query.state is not None and one.state is not query.state:
                continue
            if text and text not in one.adapter.name.casefold() and text not in one.adapter.path.casefold():
                continue
            matching.append((status.name, one))
    # Stable: within a rank they stay by server and name.
    matching.sort(key=_rank)
    chosen = matching[query.offset : query.offset + query.limit]
    items = tuple(_adapter(server, one, date) for server, one in chosen)
    return AdapterPage(total, len(matching), query.offset, query.limit, items)


_FINE: Final = frozenset({AdapterState.LISTED, AdapterState.UNKNOWN})


def _rank(pair: tuple[str, AdapterStatus]) -> int:
    one = pair[1]
    return 2 * (one.state in _FINE) + (not one.adapter.required)


def _adapter(server: str, one: AdapterStatus, date: Date) -> AdapterView:
    adapter = one.adapter
    return AdapterView(
        server=server,
        name=_encodable(adapter.name),
        path=_encodable(adapter.path),
        origin=adapter.origin.value,
        required=adapter.required,
        priority=adapter.priority,
        state=one.state.value,
        reason=clipped(one.reason),
        since=date(one.since),
    )


def _encodable(text: str) -> str:
    """The text itself, unless it has half a surrogate pair, which no JSON in UTF-8 can carry."""
    return text.encode("utf-8", "backslashreplace").decode()


def _event(entry: Entry, date: Date) -> EventView:
    return EventView(
        at=date(entry.at),
        level=entry.level.value,
        event=entry.event.value,
        server=entry.server,
        text=entry.text,
        count=entry.count,
    )
