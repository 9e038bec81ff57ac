"""The log: one JSON object a line off a terminal, readable lines on one, and never in the heartbeat's way.

Three traps are guarded against. A log that is not read blocks whoever writes to it (a full pipe); so lines go through a
bounded queue to a thread, and what does not fit is dropped and counted. A failure that repeats every second buries what
matters; so repeats are thinned out and carry their count. And a wall clock in the logic breaks with the clock; so it
is read here only, to stamp lines.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TextIO

import msgspec
import structlog

from lora_sidecar.core.events import Event, EventName, Level

_QUEUE: Final = 2000
_REPEAT_SECONDS: Final = 30.0
_REMEMBERED: Final = 1000
_LINE_LIMIT: Final = 16_384
_RANKS: Final = {Level.DEBUG: 10, Level.INFO: 20, Level.WARNING: 30, Level.ERROR: 40}

Logger = structlog.typing.FilteringBoundLogger


class NonBlockingWriter:
    """A stream behind a bounded queue and a thread of its own; lines that do not fit are dropped and counted."""

    def __init__(self, stream: TextIO | None) -> None:
        """`stream` is None for a process that was started without a standard output: every line is dropped."""
        self._fd = -1 if stream is None else stream.fileno()
        self._lines: queue.Queue[bytes | None] = queue.Queue(_QUEUE)
        self.dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queue one line, without waiting."""
        try:
            self._lines.put_nowait(line.encode("utf-8", "backslashreplace") + b"\n")
        except queue.Full:
            self.dropped += 1

    def close(self, deadline: float = 1.0) -> None:
        """Write what is queued, for at most `deadline` seconds."""
        try:
            self._lines.put(None, timeout=deadline / 2)
        except queue.Full:
            return
        self._thread.join(deadline / 2)

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            except OSError:
                # The reader is gone; the heartbeat is worth more than its log.
                self.dropped += 1


class _WriterLogger:
    """What structlog calls with a rendered line."""

    def __init__(self, sink: NonBlockingWriter) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        self._sink.put(line)

    log = debug = info = warning = warn = error = critical = exception = fatal = msg


def configure(level: str, format_: str, stream: TextIO | None = None) -> NonBlockingWriter:
    """Set structlog up for the process. `format_` is "json", "pretty", or "auto": pretty on a terminal."""
    stream = sys.stdout if stream is None else stream
    sink = NonBlockingWriter(stream)
    terminal = stream is not None and stream.isatty()
    pretty = format_ == "pretty" or (format_ == "auto" and terminal)
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=terminal, pad_event_to=24, sort_keys=False) if pretty else _json
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _stamp,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_RANKS[Level(level)]),
        logger_factory=lambda *_: _WriterLogger(sink),
        cache_logger_on_first_use=False,
    )
    return sink


def set_level(level: str) -> None:
    """Change the least level that is logged, at once."""
    wrapper = structlog.make_filtering_bound_logger(_RANKS[Level(level)])
    structlog.configure(**{**structlog.get_config(), "wrapper_class": wrapper})


def _stamp(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    level = event.pop("level")
    return {"timestamp": _iso(datetime.now(UTC)), "level": level, "event": event.pop("event"), **event}


def _json(_: object, __: str, event: structlog.typing.EventDict) -> str:
    line = _encoded(event)
    if len(line) <= _LINE_LIMIT:
        return line
    kept = {key: value for key, value in event.items() if isinstance(value, int | float) or len(str(value)) <= 256}  # noqa: PLR2004
    if "exception" in event:
        kept["exception"] = event["exception"][-_LINE_LIMIT // 4 :]
    return _encoded({**kept, "truncated": True})


def _encoded(event: Mapping[str, Any]) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=repr).decode()
    except UnicodeEncodeError:
        # Half a surrogate pair, such as a file name that is no UTF-8 is read as: only this encoder escapes it.
        return json.dumps(event, default=repr)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def dates(now: float) -> Callable[[float], str]:
    """What makes dates of the loop's times, where `now` is the loop's time at this moment."""
    wall_now = datetime.now(UTC)
    return lambda at: _iso(wall_now - timedelta(seconds=now - at))


class EventLog:
    """Writes facts to the log: dates for the loop's times, and repeats at most every 30 s with their count."""

    def __init__(self, now: Callable[[], float], **bound: str) -> None:
        """`now` is the loop's clock; `bound` stands on every line."""
        self._now = now
        self._log: Logger = structlog.get_logger(**bound)
        self._repeats: dict[tuple[EventName, str], tuple[float, int]] = {}

    def write(self, *facts: Event) -> None:
        """Log facts in order."""
        for fact in facts:
            suppressed = self._suppressed(fact)
            if suppressed is not None:
                fields = self._dated(fact.fields) | ({"suppressed": suppressed} if suppressed else {})
                self._log.log(_RANKS[fact.level], fact.event.value, **fields)

    def _suppressed(self, fact: Event) -> int | None:
        """How many repeats were left out before this one, None if it is to be left out as well."""
        if not fact.repeats:
            return 0
        now = self._now()
        key = (fact.event, fact.repeats)
        said_at, count = self._repeats.get(key, (float("-inf"), 0))
        if now - said_at < _REPEAT_SECONDS:
            self._repeats[key] = (said_at, count + 1)
            return None
        if len(self._repeats) >= _REMEMBERED:
            self._repeats.clear()
        self._repeats[key] = (now, 0)
        return count

    def _dated(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        date = dates(self._now())
        return {
            key: date(value) if key.endswith("_at") and isinstance(value, float) else value
            for key, value in fields.items()
        }
