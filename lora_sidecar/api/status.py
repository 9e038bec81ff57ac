"""The newest snapshot as the documents that `/status`, the page and the control port show.

Three traps are guarded against. Faces that are made apart come to disagree; so each adapter, server and condition is
worded here and nowhere else. Ten thousand adapters, or a text without end, must not make an answer slow or endless:
adapters come in pages, those that need attention first, every text has a limit, and what is left out is counted. And
one text that UTF-8 cannot carry, or a number that JSON cannot, must not cost the whole answer.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from lora_sidecar import __version__
from lora_sidecar.api.document import (
    VERSION,
    AdapterPage,
    AdapterView,
    ConditionView,
    Document,
    EventView,
    Query,
    RecoveryView,
    ServerView,
    SpanView,
)
from lora_sidecar.core.conditions import Condition
from lora_sidecar.core.text import TEXT_LENGTH_SHOWN, encodable, printable
from lora_sidecar.log import dates
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.status.adapters import AdapterState, AdapterStatus, WithdrawnStatus, withdrawn_of
from lora_sidecar.status.board import ServerStatus, Snapshot, not_live, not_ready
from lora_sidecar.status.history import EVENTS_KEPT, Entry, Recovered, Span

NOT_READY_SHOWN: Final = 20

_MESSAGE_LIMIT: Final = 4000
"""Characters of what a person wrote, or of a condition's message, which lists up to twenty names and reasons."""

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
        not_ready=tuple(printable(line, TEXT_LENGTH_SHOWN) for line in first(waiting)),
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


def first(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The lines themselves, or the first of them where there are many, and how many more there are."""
    if len(lines) <= NOT_READY_SHOWN:
        return lines
    return (*lines[: NOT_READY_SHOWN - 1], f"and {len(lines) - NOT_READY_SHOWN + 1} more")


def _condition(held: Condition) -> ConditionView:
    return ConditionView(held.type.value, printable(held.message, _MESSAGE_LIMIT), printable(held.hint, _MESSAGE_LIMIT))


def _bounded(number: int) -> int:
    """A number that a checkpoint held, as JSON and its readers can take it."""
    return min(number, sys.maxsize)


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
        detail="" if up else printable(server.detail, TEXT_LENGTH_SHOWN),
        hint="" if up else printable(server.hint, TEXT_LENGTH_SHOWN),
        failing=printable(status.failing, TEXT_LENGTH_SHOWN),
        incarnation=_bounded(status.desired.incarnation.number),
        last_good=None if server.last_good is None else date(server.last_good),
        heartbeats=status.beats,
        heartbeat_ended=date(status.beat_at) if status.beats else None,
        heartbeat_seconds=round(status.beat_seconds, 4),
        verdict=status.verdict.value,
        checkpoint_generation=_bounded(status.saved_generation),
        adapters={state.value: counts[state] for state in AdapterState},
        conditions=tuple(map(_condition, status.conditions)),
        timeline=tuple(_span(span, date, now) for span in status.spans),
        recoveries=(*(_recovery(one, date) for one in status.recoveries), *_under_way(status, date, now)),
    )


def _span(span: Span, date: Date, now: float) -> SpanView:
    ended = now if span.ended is None else span.ended
    return SpanView(
        phase=span.phase.value,
        incarnation=_bounded(span.incarnation),
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


def control_document(statuses: Iterable[ServerStatus], date: Date) -> dict[str, Any]:
    """What `GET /v1/adapters` answers: these servers, and every adapter of theirs."""
    known = tuple(statuses)
    return {
        "servers": [_of_control(status, date) for status in known],
        "adapters": [_adapter(status.name, one, date) for status in known for one in _everything(status)],
    }


def pause_view(status: ServerStatus) -> dict[str, Any]:
    """Whether loads and unloads of a server are paused, and why."""
    held = status.desired.paused
    reason = "" if held is None else printable(held.reason, _MESSAGE_LIMIT)
    return {"server": status.name, "paused": held is not None, "reason": reason}


def _of_control(status: ServerStatus, date: Date) -> dict[str, Any]:
    server = status.work.server
    return {
        **pause_view(status),
        "state": server.phase.value,
        "since": date(server.since),
        "detail": printable(server.detail, TEXT_LENGTH_SHOWN),
        "failing": printable(status.failing, TEXT_LENGTH_SHOWN),
        "heartbeat": date(status.beat_at),
        "incarnation": _bounded(status.desired.incarnation.number),
        "generation": _bounded(status.saved_generation),
        "conditions": [_condition(held) for held in status.conditions],
    }


def _everything(status: ServerStatus) -> tuple[Shown, ...]:
    """Every adapter of a server, desired or withdrawn."""
    return (*status.adapters, *withdrawn_of(status.desired))


def _adapters(snapshot: Snapshot, query: Query, date: Date) -> AdapterPage:
    total = 0
    matching: list[tuple[str, Shown]] = []
    text = query.text.casefold()
    for status in snapshot.servers:
        known = _everything(status)
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
    items = tuple(_adapter(server, one, date) for server, one in chosen)
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


def _adapter(server: str, one: Shown, date: Date) -> AdapterView:
    match one:
        case AdapterStatus(adapter, state, reason, since, proven):
            return AdapterView(
                server=server,
                name=encodable(adapter.name),
                path=encodable(adapter.path),
                origin=adapter.origin.value,
                required=adapter.required,
                priority=adapter.priority,
                state=state.value,
                reason=printable(reason, TEXT_LENGTH_SHOWN),
                since=date(since),
                proven=proven,
            )
        case WithdrawnStatus(name, declared, reason):
            return AdapterView(
                server=server,
                name=encodable(name),
                path=None if declared is None else encodable(declared.path),
                origin=None if declared is None else declared.origin.value,
                required=False,
                priority=0,
                state=AdapterState.WITHDRAWN.value,
                reason=reason,
                since=None,
                proven=False,
            )


def _event(entry: Entry, date: Date) -> EventView:
    return EventView(
        at=date(entry.at),
        level=entry.level.value,
        event=entry.event.value,
        server=entry.server,
        text=entry.text,
        count=entry.count,
    )
