"""What is exposed, read with the parser of Prometheus' own client and held against what that client would say."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from lora_sidecar.api.exposition import Family, Histogram, Total, exposition
from lora_sidecar.api.metrics import Metrics
from lora_sidecar.api.process import process
from lora_sidecar.core.events import Event, EventName, Level
from tests.support.snapshots import HOSTILE, a_board

Sample = tuple[str, tuple[tuple[str, str], ...], float]

LABELS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SECONDS = st.floats(min_value=0, max_value=1e6) | st.sampled_from([0.0, 0.1, 1.0, 2.5])
BOUNDS = (0.1, 1.0, 2.5)

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


def samples(text: bytes) -> dict[str, tuple[str, str, list[Sample]]]:
    """By each family's name its type, its help and its samples."""
    return {
        family.name: (
            family.type,
            family.documentation,
            sorted((one.name, tuple(sorted(one.labels.items())), one.value) for one in family.samples),
        )
        for family in text_string_to_metric_families(text.decode())
    }


@given(
    observed=st.lists(st.tuples(LABELS, SECONDS), max_size=8), counted=st.lists(st.tuples(LABELS, LABELS), max_size=8)
)
def test_the_same_as_the_client_library(observed: list[tuple[str, float]], counted: list[tuple[str, str]]) -> None:
    """Whatever labels hold and however long things took, a scraper reads what it would read from that library."""
    registry = prometheus_client.CollectorRegistry()
    their_histogram = prometheus_client.Histogram("took", "How long.", ["one"], buckets=BOUNDS, registry=registry)
    their_total = prometheus_client.Counter("came", "How many.", ["two", "one"], registry=registry)
    histogram, total = Histogram("took", "How long.", BOUNDS, "one"), Total("came", "How many.", "two", "one")
    for label, seconds in observed:
        their_histogram.labels(label).observe(seconds)
        histogram.observe(label, seconds=seconds)
    for labels in counted:
        their_total.labels(*labels).inc()
        total.add(*labels)

    ours = exposition((histogram.family(), total.family()))

    assert samples(ours) == samples(prometheus_client.generate_latest(registry))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.0"),
        (1.5, "1.5"),
        (1e21, "1e+21"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    """Each as Prometheus reads numbers."""
    family = Family("gauge", "x", "An x.")
    family.add((), value)
    assert family.text() == f"# HELP x An x.\n# TYPE x gauge\nx {text}\n"
    (read,) = text_string_to_metric_families(family.text())
    assert read.samples[0].value == pytest.approx(value, nan_ok=True)


def test_a_value_too_few_is_an_error() -> None:
    """A series without one of its labels would be another series."""
    with pytest.raises(ValueError, match="shorter"):
        Family("gauge", "x", "An x.", "one", "two").add(("a",), 1)


def test_series_are_there_before_the_first_event_and_count_from_it() -> None:
    """A rate can be taken of the first event, and every name that a client chose is read back."""
    board = a_board(hostile=True)
    metrics = Metrics(board, lambda: 100.0, lambda: 30.0)
    before = samples(metrics.text())
    assert before["lora_sidecar_restores"][2][0][2] == 0
    metrics.count("vllm", [Event(EventName.RESTORE_SUCCEEDED, Level.INFO, {"seconds": 0.3})])

    after = samples(metrics.text())

    assert ("lora_sidecar_restores_total", (("result", "succeeded"), ("server", "vllm")), 1.0) in after[
        "lora_sidecar_restores"
    ][2]
    assert before.keys() == after.keys()
    assert all(kind == after[name][0] and len(many) == len(after[name][2]) for name, (kind, _, many) in before.items())
    names = {dict(labels)["adapter"] for _, labels, _ in after["lora_sidecar_adapter_state"][2]}
    assert names == {name.replace("\ud800", "\\ud800") for name in HOSTILE}


def test_the_process_tells_what_every_client_tells() -> None:
    """Names, types and help as the library has them, and the same values of this very process."""
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=registry)
    theirs = samples(prometheus_client.generate_latest(registry))
    ours = samples(exposition(process()))
    assert {name: told[:2] for name, told in ours.items()} == {name: told[:2] for name, told in theirs.items()}
    for name, tolerance in {"start_time_seconds": 0.0, "cpu_seconds": 1.0, "max_fds": 0.0, "open_fds": 2.0}.items():
        ((_, _, value),), ((_, _, expected),) = ours[f"process_{name}"][2], theirs[f"process_{name}"][2]
        assert value == pytest.approx(expected, abs=tolerance), name
    ((_, _, resident),) = ours["process_resident_memory_bytes"][2]
    assert resident == pytest.approx(theirs["process_resident_memory_bytes"][2][0][2], rel=0.05)
    ((_, _, started_at),) = ours["process_start_time_seconds"][2]
    assert 0 < time.clock_gettime(time.CLOCK_REALTIME) - started_at < 3600 * 24


def _proc(folder: Path) -> Path:
    (folder / "self" / "fd").mkdir(parents=True)
    for number in range(4):
        (folder / "self" / "fd" / str(number)).touch()
    fields = ["S", *("0" for _ in range(10)), "150", "50", *("0" for _ in range(6)), "700", "4096", "3"]
    (folder / "self" / "stat").write_text(f"1 (a) b) {' '.join(fields)} 0 0\n")
    (folder / "stat").write_text("cpu 1 2\nbtime 1000\nprocesses 3\n")
    return folder


def test_what_linux_says_is_read_by_its_fields(tmp_path: Path) -> None:
    """A program's name may hold brackets and spaces; times are in ticks, memory in pages."""
    tick = os.sysconf("SC_CLK_TCK")
    told = {name: values[0][2] for name, (_, _, values) in samples(exposition(process(_proc(tmp_path)))).items()}
    assert told["process_virtual_memory_bytes"] == 4096
    assert told["process_resident_memory_bytes"] == 3 * os.sysconf("SC_PAGE_SIZE")
    assert told["process_start_time_seconds"] == 1000 + 700 / tick
    assert told["process_cpu_seconds"] == 200 / tick
    assert told["process_open_fds"] == 3


@pytest.mark.parametrize(
    ("broken", "left"),
    [
        (("self/stat",), {"process_open_fds", "process_max_fds"}),
        (("stat",), {"process_open_fds", "process_max_fds"}),
        (("self/stat", "self/fd"), set()),
    ],
)
def test_what_cannot_be_read_is_left_out(tmp_path: Path, broken: tuple[str, ...], left: set[str]) -> None:
    """Where /proc is hidden or there is none, a scrape has the rest."""
    proc = _proc(tmp_path)
    for name in broken:
        (proc / name).rename(proc / "gone" if name != "self/fd" else proc / "gone-fd")
    assert samples(exposition(process(proc))).keys() == left
