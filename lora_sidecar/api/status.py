"""`/status`: the newest snapshot as JSON, for programs; the page shows the same document to people.

Two traps are guarded against. A page and an API that are made apart come to disagree; so both are this one value. And
ten thousand adapters, or a name without end, must not make an answer slow or endless: adapters come in pages, those
that need attention first, every text has a limit, and what is left out is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from lora_sidecar import __version__
from lora_sidecar.api.document import (
    VERSION,
    AdapterPage,
    AdapterView,
    ConditionView,
    Document,
    EventView,
    RecoveryView,
    ServerView,
    SpanView,
)
from lora_sidecar.api.query import Query
from lora_sidecar.core.conditions import Condition
from lora_sidecar.log import dates
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.status.adapters import AdapterState, AdapterStatus, WithdrawnStatus, withdrawn_of
from lora_sidecar.status.board import ServerStatus, Snapshot, not_live, not_ready
from lora_sidecar.status.history import EVENTS_KEPT, Entry, Recovered, Span, truncate

NOT_READY_SHOWN: Final = 20

Date = Callable[[float], str]
Shown = AdapterStatus | WithdrawnStatus


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
        not_ready=tuple(truncate(line) for line in _first(waiting)),
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
    return ConditionView(held.type.value, truncate(held.message, 4000), held.hint)


def _server(status: ServerStatus, date: Date, now: float) -> ServerView:
    server = status.work.server
    up = server.phase is Phase.UP
    counts = Counter(one.state for one in status.adapters)
    counts[AdapterState.WITHDRAWN] = len(status.desired.withdrawn)
    return ServerView(
        name=status.name,
        phase=server.phase.value,
        since=date(server.since),
        reason="" if up or server.reason is None else server.reason.value,
        detail="" if up else truncate(server.detail),
        hint="" if up else server.hint,
        failing=status.failing,
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


def everything(status: ServerStatus) -> tuple[Shown, ...]:
    """Every adapter of a server, desired or withdrawn."""
    return (*status.adapters, *withdrawn_of(status.desired))


def _adapters(snapshot: Snapshot, query: Query, date: Date) -> AdapterPage:
    total = 0
    matching: list[tuple[str, Shown]] = []
    text = query.text.casefold()
    for status in snapshot.servers:
        known = everything(status)
        total += len(known)
        if query.server not in ("", status.name):
            continue
        for one in known:
            if query.state is not None and _state(one) is not query.state:
                continue
            if text and not any(text in said.casefold() for said in _searched(one)):
                continue
            matching.append((status.name, one))
    # Stable: within a rank they stay by server and name.
    matching.sort(key=_rank)
    chosen = matching[query.offset : query.offset + query.limit]
    items = tuple(adapter_view(server, one, date) for server, one in chosen)
    return AdapterPage(total, len(matching), query.offset, query.limit, items)


_FINE: Final = frozenset({AdapterState.LISTED, AdapterState.EVICTED, AdapterState.UNKNOWN})


def _rank(pair: tuple[str, Shown]) -> int:
    match pair[1]:
        case AdapterStatus() as one:
            threatened = one.state is AdapterState.LISTED and bool(one.reason)
            return 2 * (one.state in _FINE and not threatened) + (not one.adapter.required)
        case WithdrawnStatus():
            return _LAST


_LAST: Final = 4


def _state(one: Shown) -> AdapterState:
    return one.state if isinstance(one, AdapterStatus) else AdapterState.WITHDRAWN


def _searched(one: Shown) -> tuple[str, ...]:
    adapter = one.adapter if isinstance(one, AdapterStatus) else one.declared
    name = one.name if isinstance(one, WithdrawnStatus) else one.adapter.name
    return (name,) if adapter is None else (name, adapter.path)


def adapter_view(server: str, one: Shown, date: Date) -> AdapterView:
    """One adapter as it is shown everywhere."""
    match one:
        case AdapterStatus(adapter, state, reason, since, proven):
            return AdapterView(
                server=server,
                name=_encodable(adapter.name),
                path=_encodable(adapter.path),
                origin=adapter.origin.value,
                required=adapter.required,
                priority=adapter.priority,
                state=state.value,
                reason=truncate(reason),
                since=date(since),
                proven=proven,
            )
        case WithdrawnStatus(name, declared, reason):
            return AdapterView(
                server=server,
                name=_encodable(name),
                path=None if declared is None else _encodable(declared.path),
                origin=None if declared is None else declared.origin.value,
                required=False,
                priority=0,
                state=AdapterState.WITHDRAWN.value,
                reason=reason,
                since=None,
                proven=False,
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
