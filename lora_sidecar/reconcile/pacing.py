"""How many of the due loads are sent at once: all, or one and then a good heartbeat.

The trap guarded against is haste where it does harm. A suspect that is loaded amid others kills them with the server
and makes its neighbours suspects, too; and a server that keeps dying is not helped by a burst of loads at every birth.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from lora_sidecar.core.model import Adapter

LIVES = 3
WINDOW = 600.0
"""A server flaps if so many of its lives began within so many seconds."""


def born(lives: Sequence[float], now: float, *, restarted: bool) -> tuple[float, ...]:
    """The times within the window at which a life of the server was seen to begin."""
    recent = tuple(at for at in lives if now - at < WINDOW)
    return (*recent, now) if restarted else recent


def flapping(lives: Sequence[float]) -> bool:
    """Whether the server died too often lately; `lives` are those of `born`."""
    return len(lives) >= LIVES


def paced(
    due: Sequence[Adapter], suspects: Container[str], *, slowly: bool, not_before: float, now: float
) -> tuple[tuple[Adapter, ...], float | None]:
    """What of the due loads may be sent now, and when something more may.

    `due` is in the order of urgency. Everything above suspicion goes first and at once, unless `slowly`; what is left
    goes one at a time, each not before `not_before`, which is one heartbeat after the last load ended.
    """
    innocent = tuple(adapter for adapter in due if adapter.name not in suspects)
    if innocent and not slowly:
        return innocent, None
    careful = innocent or tuple(due)
    if not careful:
        return (), None
    return ((), not_before) if not_before > now else (careful[:1], None)
