"""What `/status` answers, as values: every field has its place here and its words in docs/operations.md.

The trap guarded against is a field that changes its meaning under those who read it: the version says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

VERSION: Final = 1
"""Of the document: raised when a field is removed or changes its meaning, not when one is added."""


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
