"""What is exposed, read with the parser of Prometheus' own client."""

from __future__ import annotations

import time
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from lora_sidecar.api.metrics import ADAPTER_SERIES, Metrics, with_series
from lora_sidecar.core.events import Event, EventName, Level
from lora_sidecar.core.model import Incarnation
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.status.adapters import AdapterState
from lora_sidecar.status.board import Board
from tests.support.snapshots import HOSTILE, a_board, a_status

Sample = tuple[str, tuple[tuple[str, str], ...], float]

LIVENESS = 30.0


def exposed(board: Board, at: float = 52.0) -> str:
    """What a scrape of a fresh process gets."""
    return Metrics(("vllm",)).text(board.snapshot(at, LIVENESS)).decode()


def samples(text: bytes) -> dict[str, tuple[str, list[Sample]]]:
    """By each family's name its type and its samples."""
    return {
        family.name: (
            family.type,
            sorted((one.name, tuple(sorted(one.labels.items())), one.value) for one in family.samples),
        )
        for family in text_string_to_metric_families(text.decode())
    }


def test_series_are_there_before_the_first_event_and_count_from_it() -> None:
    """A rate can be taken of the first event, and every name that a client chose is read back."""
    snapshot = a_board(hostile=True).snapshot(52.0, LIVENESS)
    metrics = Metrics(("vllm",))
    before = samples(metrics.text(snapshot))
    assert before["lora_sidecar_restores"][1][0][2] == 0
    metrics.count("vllm", [Event(EventName.RESTORE_SUCCEEDED, Level.INFO, {"seconds": 0.3})])

    after = samples(metrics.text(snapshot))

    restored = ("lora_sidecar_restores_total", (("result", "succeeded"), ("server", "vllm")), 1.0)
    assert restored in after["lora_sidecar_restores"][1]
    assert before.keys() == after.keys()
    assert all(kind == after[name][0] and len(many) == len(after[name][1]) for name, (kind, many) in before.items())
    names = {dict(labels)["adapter"] for _, labels, _ in after["lora_sidecar_adapter_state"][1]}
    assert names == {name.replace("\ud800", "\\ud800") for name in HOSTILE}


@pytest.mark.parametrize(
    ("event", "fields", "changed"),
    [
        ("server.down", {}, {"outages_total": 1}),
        ("server.restarted", {}, {"restarts_total": 1}),
        ("adapter.adopted", {}, {"adapters_adopted_total": 1}),
        ("adapter.forgotten", {}, {"adapters_forgotten_total": 1}),
        ("checkpoint.written", {}, {"checkpoint_writes_total": 1}),
        ("checkpoint.write_failed", {}, {"checkpoint_write_failures_total": 1}),
        ("checkpoint.quarantined", {}, {"checkpoint_quarantined_total": 1}),
        ("restore.failed", {"kind": "files"}, {"restores_total": 1}),
        (
            "recovery.completed",
            {"outage_seconds": 4.0, "restore_seconds": 2.0, "failed": 3},
            {
                "outage_duration_seconds_sum": 4,
                "outage_duration_seconds_count": 1,
                "recovery_duration_seconds_sum": 2,
                "recovery_duration_seconds_count": 1,
                "recovery_failures_total": 3,
            },
        ),
        (
            "heartbeat.completed",
            {"seconds": 0.5, "verdict": "steady"},
            {"heartbeat_duration_seconds_sum": 0.5, "heartbeat_duration_seconds_count": 1, "heartbeats_total": 1},
        ),
    ],
)
def test_an_event_changes_its_own_series_and_no_other(
    event: str, fields: dict[str, Any], changed: dict[str, float]
) -> None:
    """Each event is counted where the manual says so."""
    metrics, snapshot = Metrics(("vllm", "other")), a_board().snapshot(52.0, LIVENESS)
    metrics.count("vllm", [Event(EventName(event), Level.INFO, fields)])
    told = {
        (name.removeprefix("lora_sidecar_"), dict(labels).get("server")): value
        for kind, many in samples(metrics.text(snapshot)).values()
        if kind in ("counter", "histogram")
        for name, labels, value in many
        if name.startswith("lora_sidecar_") and "_bucket" not in name and value
    }
    assert told == {(name, "vllm"): value for name, value in changed.items()}


def test_a_rejected_config_is_counted_for_the_process() -> None:
    """It is of no server."""
    metrics = Metrics(("vllm",))
    metrics.count("", [Event(EventName.CONFIG_REJECTED, Level.WARNING, {"problems": []})])
    assert "lora_sidecar_config_rejections_total 1.0" in metrics.text(a_board().snapshot(52.0, LIVENESS)).decode()


def test_the_process_tells_what_every_client_tells() -> None:
    """Memory, processor time, start and open files, under the names that dashboards know."""
    told = samples(Metrics(("vllm",)).text(a_board().snapshot(52.0, LIVENESS)))
    process = {name: values[0][2] for name, (_, values) in told.items() if name.startswith("process_")}
    assert process.keys() == {
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_cpu_seconds",
        "process_open_fds",
        "process_max_fds",
    }
    assert 0 < time.clock_gettime(time.CLOCK_REALTIME) - process["process_start_time_seconds"] < 3600 * 24


def test_when_series_were_made_is_not_told() -> None:
    """The manual's list is whole: no `_created` beside each counter."""
    assert "_created" not in exposed(a_board(adapters=("a",)))


def test_what_is_old_is_unknown() -> None:
    """When heartbeats stop ending, no series says that what was last known still holds."""
    text = exposed(a_board(adapters=("a",), listed=("a",), required=("a",), at=50.0), at=81.0)
    assert 'lora_sidecar_server_up{server="vllm"} 0.0' in text
    assert 'lora_sidecar_adapter_state{adapter="a",server="vllm",state="listed"} 0.0' in text
    assert "lora_sidecar_ready 0.0" in text


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.UP])
def test_nothing_unknown_is_ever_one(phase: Phase) -> None:
    """While the server is not up, no series says that anything is up or listed."""
    text = exposed(a_board(adapters=("a",), listed=("a",), phase=phase))
    ones = [line for line in text.splitlines() if line.endswith(" 1.0") and not line.startswith("#")]
    assert not [line for line in ones if "server_up" in line or '"listed"' in line or 'phase="up"' in line]
    assert f'lora_sidecar_server_phase{{phase="{phase}",server="vllm"}} 1.0' in text


def test_ten_thousand_adapters_have_a_bounded_number_of_series() -> None:
    """The cap holds, required adapters are under it, and what was left out is counted."""
    names = [f"n{at:05}" for at in range(10_000)]
    board = a_board(adapters=names, listed=names[:9_000], required=("n09999",))
    (status,) = board.snapshot(52.0, LIVENESS).servers
    assert with_series(status.adapters)[0].adapter.name == "n09999"
    text = exposed(board)
    assert text.count("lora_sidecar_adapter_state{") == ADAPTER_SERIES * (len(AdapterState) - 1)
    assert f'lora_sidecar_adapter_series_omitted{{server="vllm"}} {float(10_000 - ADAPTER_SERIES)}' in text
    assert 'lora_sidecar_adapters{server="vllm",state="listed"} 9000.0' in text
    assert len(text.splitlines()) < 6_000


def test_numbers_of_a_checkpoint_that_no_float_holds_do_not_cost_the_scrape() -> None:
    """A number of 4,299 digits is shown as a very large one, and everything else as it is."""
    board = Board(("vllm",))
    status = a_status(adapters=("a",), listed=("a",))
    huge = replace(status.desired, incarnation=Incarnation(10**4299))
    board.publish(replace(status, desired=huge, saved_generation=10**4299))
    text = exposed(board)
    assert 'lora_sidecar_server_incarnation{server="vllm"} 9.223372036854776e+18' in text
    assert 'lora_sidecar_checkpoint_generation{server="vllm"} 9.223372036854776e+18' in text
    assert 'lora_sidecar_server_up{server="vllm"} 1.0' in text
