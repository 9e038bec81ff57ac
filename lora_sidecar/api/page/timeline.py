"""A server's past on a line: where each stretch of it lies in the window that is asked for.

Two traps are guarded against. An outage of a second in a day is narrower than a pixel, and is what the line is for; so
everything but being up has a least width and lies on top. And colours alone tell some people nothing; so each piece
carries its words, and the list below the line says the same in text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from lora_sidecar.api.document import BadQueryError, ServerView
from lora_sidecar.api.page.text import clock, duration, seconds_between
from lora_sidecar.reconcile.outage import Phase

WINDOWS: Final = {"2m": 120, "10m": 600, "1h": 3600, "6h": 21_600, "24h": 86_400, "7d": 604_800}
"""The windows that can be looked at, in seconds."""

WIDTH: Final = 1000
"""Units from the start of the window to now."""

_LEAST: Final = 5.0


def read_window(given: Mapping[str, str]) -> str:
    """The window of a request's parameters, "" for one that shows everything. Raises `BadQueryError`."""
    window = given.get("window", "")
    if window and window not in WINDOWS:
        raise BadQueryError(f"window is one of {', '.join(WINDOWS)}")
    return window


class Piece(Struct, frozen=True):
    """One stretch on the line, in units of `WIDTH`, with what it is and says."""

    kind: str
    x: float
    width: float
    text: str


def window_for(seconds: float) -> str:
    """The least window that shows all of `seconds`."""
    return next((name for name, length in WINDOWS.items() if seconds <= length), "7d")


def pieces(server: ServerView, now: str, window: str) -> tuple[Piece, ...]:
    """What lies within the window, in the order of drawing: incarnations, recoveries, then what was not up."""
    length = WINDOWS[window]
    present: list[Piece] = []
    absences: list[Piece] = []
    for span in server.timeline:
        up = span.phase == Phase.UP.value
        label = f"incarnation {span.incarnation}" if up else span.phase
        lasted = f"{label} from {clock(span.began, now)}, {duration(span.seconds)}{' so far' if not span.ended else ''}"
        text = lasted if up or not span.reason else f"{lasted}: {span.reason}"
        piece = _piece(span.phase, span.began, span.seconds, text, now, length)
        if piece is not None:
            (present if up else absences).append(piece)
    recoveries = [
        piece
        for one in server.recoveries
        if (piece := _piece("recovery", one.began, one.seconds, f"recovery, {duration(one.seconds)}", now, length))
    ]
    return (*present, *recoveries, *absences)


def _piece(kind: str, began: str, seconds: float, text: str, now: str, length: int) -> Piece | None:
    age = seconds_between(began, now)
    if age - seconds >= length:
        return None
    left = max(0.0, WIDTH * (1 - age / length))
    right = min(float(WIDTH), WIDTH * (1 - (age - seconds) / length))
    wide = max(0.0, right - left)
    if kind != Phase.UP.value and wide < _LEAST:
        wide = _LEAST
        left = min(left, WIDTH - wide)
    return Piece(kind, round(left, 2), round(wide, 2), text)
