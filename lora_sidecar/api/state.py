"""What `GET /v1/adapters` and the pauses of the control port answer: servers, and every adapter of theirs.

The trap guarded against is a second account of an adapter: each is worded where `/status` words it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lora_sidecar.api.status import adapter_view, everything
from lora_sidecar.status.board import ServerStatus

Date = Callable[[float], str]


def state(statuses: Iterable[ServerStatus], date: Date) -> dict[str, Any]:
    """The document of these servers; `date` spells a time of the loop's clock."""
    known = tuple(statuses)
    return {
        "servers": [_server(status, date) for status in known],
        "adapters": [adapter_view(status.name, one, date) for status in known for one in everything(status)],
    }


def paused(status: ServerStatus) -> dict[str, Any]:
    """Whether loads and unloads of a server are paused, and why."""
    held = status.desired.paused
    return {"server": status.name, "paused": held is not None, "reason": "" if held is None else held.reason}


def _server(status: ServerStatus, date: Date) -> dict[str, Any]:
    server = status.work.server
    return {
        **paused(status),
        "state": server.phase.value,
        "since": date(server.since),
        "detail": server.detail,
        "failing": status.failing,
        "heartbeat": date(status.beat_at),
        "incarnation": status.desired.incarnation.number,
        "generation": status.saved_generation,
        "conditions": [{"type": c.type.value, "message": c.message, "hint": c.hint} for c in status.conditions],
    }
