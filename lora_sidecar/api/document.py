"""What `/status` is asked for and what it answers, as values: every field has its words in docs/operations.md.

Two traps are guarded against. A field that changes its meaning under those who read it: the version says so. And a
parameter that is guessed at: what cannot be understood is refused with the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

from lora_sidecar.status.adapters import AdapterState

VERSION: Final = 1
"""Of the document: raised when a field is removed or changes its meaning, not when one is added."""

PAGE_SIZE: Final = 50
LARGEST_PAGE: Final = 1000


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
    """One adapter, desired or withdrawn.

    Of one that was withdrawn, `path` and `origin` are what the config says of it, null where it says nothing. `proven`
    is whether it answered its last probe by inference, and not as the base model does.
    """

    server: str
    name: str
    path: str | None
    origin: str | None
    required: bool
    priority: int
    state: str
    reason: str
    since: str | None
    proven: bool


class SpanView(Struct, frozen=True):
    """An incarnation of the server (phase up) or an absence of it; `ended` is null while it lasts."""

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
    """One server; `adapters` counts its adapters by state. `failing` is why its own container should be ended."""

    name: str
    phase: str
    since: str
    reason: str
    detail: str
    hint: str
    failing: str
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
    """The adapters asked for: `total` are desired or withdrawn, `matching` of them match, `items` are this page."""

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
