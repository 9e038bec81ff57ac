from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

import pytest
import structlog

from lora_sidecar.core.events import Event, EventName, Level, info, warning
from lora_sidecar.log import EventLog, NonBlockingWriter, configure, set_level

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Pipe:
    """A pipe to log into, read from at the other end."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.reader = os.fdopen(reader, "rb")
        self.writer: TextIO = os.fdopen(writer, "w")

    def rest(self) -> list[str]:
        """Close the writing end and return every line that was written."""
        self.writer.close()
        return self.reader.read().decode().split("\n")[:-1]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe, closed in the end."""
    pipe = Pipe()
    yield pipe
    pipe.writer.close()
    pipe.reader.close()


@pytest.fixture(autouse=True)
def _structlog_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class Now:
    """A loop's clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def written(pipe: Pipe, write: Callable[[EventLog, Now], None], level: str = "info") -> list[dict[str, Any]]:
    """The lines that `write` makes a journal log, read as JSON."""
    sink = configure(level, "json", pipe.writer)
    clock = Now()
    write(EventLog(clock, server="vllm"), clock)
    sink.close()
    return [json.loads(line) for line in pipe.rest()]


def test_one_line_a_fact(pipe: Pipe) -> None:
    """A fact is one line of JSON: when, how loud, what, of which server, and its fields in their order."""
    (line,) = written(pipe, lambda journal, _: journal.write(info(EventName.SERVER_UP, after="down", errors=3)))

    assert list(line) == ["timestamp", "level", "event", "server", "after", "errors"]
    assert STAMP.fullmatch(line["timestamp"])
    assert (line["level"], line["event"], line["server"]) == ("info", "server.up", "vllm")
    assert (line["after"], line["errors"]) == ("down", 3)


def test_every_event_keeps_its_name_and_level(pipe: Pipe) -> None:
    """Each event is written under its own name, at its own level."""
    facts = [Event(event, level, {}) for event in EventName for level in Level]

    lines = written(pipe, lambda journal, _: journal.write(*facts), "debug")

    assert [(line["event"], line["level"]) for line in lines] == [(f.event.value, f.level.value) for f in facts]


@pytest.mark.parametrize("nasty", ['a\nb\r\x00\x1b[31m"\\', "\u2028 ü 😀", "half a pair: \ud800", "\udcff.yaml"])
def test_strange_text_stays_in_one_line(pipe: Pipe, nasty: str) -> None:
    """A value from outside can neither begin a line of its own nor end the process by its encoding."""
    (line,) = written(pipe, lambda journal, _: journal.write(info(EventName.SERVER_UP, detail=nasty)))

    assert line["detail"] == nasty


def test_values_that_json_does_not_know(pipe: Pipe) -> None:
    """Whatever stands in a field is written somehow: a log never raises."""
    fields: dict[str, Any] = {"nan": float("nan"), "set": {"a"}, "object": object, "large": 10**30, "bytes": b"x"}

    (line,) = written(pipe, lambda journal, _: journal.write(Event(EventName.SERVER_UP, Level.INFO, fields)))

    assert line.keys() >= fields.keys()


def test_times_of_the_loop_become_dates(pipe: Pipe) -> None:
    """A field that ends in _at is a time of the loop's clock and is written as a date; other numbers stay."""

    def write(journal: EventLog, clock: Now) -> None:
        journal.write(info(EventName.RECOVERY_COMPLETED, down_at=clock.now - 60.0, up_at=None, seconds=60.0))

    before = datetime.now(UTC)
    (line,) = written(pipe, write)

    down_at = datetime.fromisoformat(line["down_at"])
    assert STAMP.fullmatch(line["down_at"])
    assert 59 < (before - down_at).total_seconds() < 61
    assert (line["up_at"], line["seconds"]) == (None, 60.0)


def test_repeats_are_thinned_out_with_their_count(pipe: Pipe) -> None:
    """A failure that repeats is told at once, then every 30 s with how often it was left out."""

    def write(journal: EventLog, clock: Now) -> None:
        for _second in range(61):
            journal.write(warning(EventName.PROBE_FAILED, repeats="timeout", at=clock.now))
            clock.now += 1.0

    lines = written(pipe, write)

    assert [line["at"] for line in lines] == [1000.0, 1030.0, 1060.0]
    assert [line.get("suppressed") for line in lines] == [None, 29, 29]


def test_another_failure_is_no_repeat(pipe: Pipe) -> None:
    """Failures of different kinds do not hide each other, nor do events that are no repeats."""

    def write(journal: EventLog, _: Now) -> None:
        for _round in range(2):
            journal.write(
                warning(EventName.PROBE_FAILED, repeats="timeout"),
                warning(EventName.PROBE_FAILED, repeats="reset"),
                warning(EventName.RESTORE_FAILED, repeats="timeout"),
                info(EventName.SERVER_UP),
            )

    names = [line["event"] for line in written(pipe, write)]

    assert names == ["probe.failed", "probe.failed", "restore.failed", "server.up", "server.up"]


def test_endless_kinds_of_repeats(pipe: Pipe) -> None:
    """What is remembered of repeats is bounded, however many kinds of them there are."""
    journals: list[EventLog] = []

    def write(journal: EventLog, _: Now) -> None:
        journals.append(journal)
        for number in range(5000):
            journal.write(Event(EventName.PROBE_FAILED, Level.DEBUG, {}, repeats=str(number)))

    written(pipe, write)

    assert len(journals[0]._repeats) <= 1000


def test_level(pipe: Pipe) -> None:
    """Only what is loud enough is written, and the level may change at any time."""

    def write(journal: EventLog, _: Now) -> None:
        journal.write(Event(EventName.SERVER_UP, Level.INFO, {"number": 1}))
        set_level("debug")
        journal.write(Event(EventName.SERVER_UP, Level.DEBUG, {"number": 2}))
        set_level("error")
        journal.write(
            Event(EventName.SERVER_UP, Level.WARNING, {"number": 3}), Event(EventName.SERVER_UP, Level.ERROR, {})
        )

    lines = written(pipe, write, "warning")

    assert [line.get("number") for line in lines] == [2, None]


def test_traceback(pipe: Pipe) -> None:
    """A bug's traceback is one field of one line."""

    def write(journal: EventLog, _: Now) -> None:
        try:
            dict[str, int]()["absent"]
        except KeyError:
            journal.write(Event(EventName.DAEMON_FAILED, Level.ERROR, {"exit_code": 70, "exc_info": sys.exc_info()}))

    (line,) = written(pipe, write)

    assert line["exit_code"] == 70
    assert line["exception"].startswith("Traceback (most recent call last)")
    assert line["exception"].endswith("KeyError: 'absent'")
    assert "exc_info" not in line


def test_endless_traceback(pipe: Pipe) -> None:
    """A traceback that is too long for a line keeps its end, which names the error."""

    def even(number: int) -> int:
        return odd(number - 1)

    def odd(number: int) -> int:
        return even(number - 1)

    def write(journal: EventLog, _: Now) -> None:
        try:
            even(0)
        except RecursionError:
            journal.write(Event(EventName.DAEMON_FAILED, Level.ERROR, {"exit_code": 70, "exc_info": sys.exc_info()}))

    (line,) = written(pipe, write)

    assert (line["exit_code"], line["truncated"]) == (70, True)
    assert "RecursionError" in line["exception"]


def test_long_line_is_cut(pipe: Pipe) -> None:
    """A line has a limit, since collectors split longer ones; what is short in it is kept, and the cut is said."""
    long = {"problems": ["x" * 100] * 1000, "source": "/etc/sidecar.yaml", "count": 1000}

    def write(journal: EventLog, _: Now) -> None:
        journal.write(Event(EventName.CONFIG_REJECTED, Level.WARNING, long))

    (line,) = written(pipe, write)

    assert len(json.dumps(line)) < 16_384
    assert (line["source"], line["count"], line["truncated"]) == ("/etc/sidecar.yaml", 1000, True)


def test_pretty_lines(pipe: Pipe) -> None:
    """The form for people has the event and its fields in one line, without colours off a terminal."""
    sink = configure("info", "pretty", pipe.writer)
    EventLog(Now(), server="vllm").write(info(EventName.SERVER_UP, after="down\nfaked"))
    sink.close()
    (line,) = pipe.rest()

    assert "server.up" in line
    assert "server=vllm" in line
    assert "\x1b" not in line


def test_auto_is_json_off_a_terminal(pipe: Pipe) -> None:
    """Where nobody looks on, lines are for machines."""
    sink = configure("info", "auto", pipe.writer)
    EventLog(Now()).write(info(EventName.SERVER_UP))
    sink.close()

    assert [json.loads(line)["event"] for line in pipe.rest()] == ["server.up"]


def test_auto_is_pretty_on_a_terminal() -> None:
    """On a terminal lines are for people."""
    leader, follower = os.openpty()
    with os.fdopen(leader, "rb", buffering=0) as screen, os.fdopen(follower, "w") as terminal:
        sink = configure("info", "auto", terminal)
        EventLog(Now()).write(info(EventName.SERVER_UP))
        sink.close()
        shown = screen.read(4096).decode()

    assert "server.up" in shown
    assert not shown.startswith("{")


def test_sink_that_is_not_read(pipe: Pipe) -> None:
    """With a full pipe lines are dropped and counted, and nobody who logs is made to wait."""
    sink = NonBlockingWriter(pipe.writer)
    for _ in range(5000):
        sink.put("x" * 1000)

    # What fits into the queue, the pipe and the line being written is less than half of it.
    assert 2500 < sink.dropped < 5000
    sink.close(deadline=0.02)
    pipe.reader.close()
    sink.close()


def test_sink_goes_on_once_it_is_read(pipe: Pipe) -> None:
    """Lines that waited for a slow reader arrive whole and in order."""
    sink = NonBlockingWriter(pipe.writer)
    for number in range(1000):
        sink.put(f"{number:0200}")
    read = [pipe.reader.readline() for _ in range(1000)]
    sink.close()

    assert [int(line) for line in read] == list(range(1000))
    assert sink.dropped == 0


def test_sink_whose_reader_is_gone(pipe: Pipe) -> None:
    """A closed pipe costs lines, which are counted, and nothing else."""
    sink = NonBlockingWriter(pipe.writer)
    pipe.reader.close()
    sink.put("one")
    sink.put("two")
    sink.close()

    assert sink.dropped == 2


def test_no_stream_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was started without a standard output logs to nowhere."""
    monkeypatch.setattr(sys, "stdout", None)
    sink = configure("info", "auto")
    EventLog(Now()).write(info(EventName.SERVER_UP))
    sink.close()

    assert sink.dropped == 1
