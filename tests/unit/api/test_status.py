"""The status document and the snapshot that it is made from."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from lora_sidecar.api.document import BadQueryError, Query, read_query
from lora_sidecar.api.status import document, encoded
from lora_sidecar.core.events import EventName, info, warning
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.status.adapters import AdapterState
from lora_sidecar.status.board import Board, not_live, not_ready
from lora_sidecar.status.history import EVENTS_KEPT, RECOVERIES_KEPT, SPANS_KEPT, History
from tests.support.snapshots import HOSTILE, a_board, a_status

LIVENESS = 30.0


def _told(board: Board, at: float = 52.0, **query: Any) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(encoded(document(board.snapshot(at, LIVENESS), Query(**query))))
    return shown


def test_hostile_names_are_told_exactly() -> None:
    """A program gets each name as it is; only half a surrogate pair, which JSON cannot carry, is spelt out."""
    names = [one["name"] for one in _told(a_board(hostile=True), limit=1000)["adapters"]["items"]]
    assert set(names) == {name.replace("\ud800", "\\ud800") for name in HOSTILE}


def test_those_that_need_attention_come_first() -> None:
    """The first page has the failing ones, required ones before others."""
    names = [f"n{at:03}" for at in range(200)]
    board = a_board(adapters=names, listed=names[:150], failing=names[150:160], required=("n199", "n000"))
    items = _told(board, limit=60)["adapters"]["items"]
    assert items[0]["name"] == "n199"
    assert {one["state"] for one in items[:50]} == {"missing", "parked"}
    assert items[50]["name"] == "n000"


def test_pages_together_are_everything_once() -> None:
    """Reading page after page misses nothing and repeats nothing."""
    names = [f"n{at:03}" for at in range(95)]
    board = a_board(adapters=names, listed=names[:50])
    found: list[str] = []
    for offset in range(0, 200, 20):
        page = _told(board, limit=20, offset=offset)["adapters"]
        assert (page["total"], page["matching"]) == (95, 95)
        found += [one["name"] for one in page["items"]]
    assert sorted(found) == names


@pytest.mark.parametrize(
    "given",
    [{"limit": "0"}, {"limit": "1001"}, {"limit": "x"}, {"offset": "-1"}, {"offset": "9" * 30}, {"state": "gone"}],
)
def test_bad_query_is_refused_with_the_rule(given: dict[str, str]) -> None:
    """What cannot be understood is not guessed at."""
    with pytest.raises(BadQueryError, match=r"is (one of|a number from)"):
        read_query(given)


def test_adapters_are_shown_before_the_first_heartbeat() -> None:
    """What was announced is there from the start, as unknown, and nothing is ready."""
    board = Board(("vllm",), 10.0)
    board.announce("vllm", a_status(adapters=("a", "b")).desired)
    shown = _told(board, at=11.0)
    assert {one["state"] for one in shown["adapters"]["items"]} == {"unknown"}
    assert shown["servers"][0]["heartbeats"] == 0
    assert shown["servers"][0]["phase"] == "starting"
    assert shown["not_ready"] == ["vllm: no heartbeat has ended yet"]


def test_state_has_begun_when_it_changed() -> None:
    """`since` goes on through heartbeats that change nothing, and begins anew with a change."""
    board = a_board(adapters=("a", "b"), listed=("a", "b"), at=50.0)
    board.publish(a_status(adapters=("a", "b"), listed=("a", "b"), at=55.0))
    board.publish(a_status(adapters=("a", "b"), listed=("a",), at=60.0))
    (status,) = board.snapshot(61.0, LIVENESS).servers
    assert [(one.state, one.since) for one in status.adapters] == [
        (AdapterState.LISTED, 50.0),
        (AdapterState.MISSING, 60.0),
    ]


def test_what_is_old_is_unknown() -> None:
    """When heartbeats stop ending, nothing that was last known is told as known."""
    board = a_board(adapters=("a",), listed=("a",), required=("a",), at=50.0)
    fresh, stale = board.snapshot(79.0, LIVENESS), board.snapshot(81.0, LIVENESS)
    assert (not_live(fresh), not_ready(fresh)) == ((), ())
    assert not_live(stale) == ("vllm: the last heartbeat ended 31.0 s ago, the limit is 30 s",)
    assert not_ready(stale) == ("vllm: adapter a is unknown: the server is unknown",)
    shown = _told(board, at=81.0)
    assert shown["servers"][0]["phase"] == "unknown"
    assert shown["servers"][0]["timeline"][-1]["phase"] == "unknown"


def test_events_show_with_the_heartbeat_that_told_them() -> None:
    """Nobody sees a recovery told whose adapters are not yet shown as listed."""
    board = a_board(adapters=("a",))
    board.note("vllm", 51.0, [info(EventName.ADAPTER_ADOPTED, adapter="b", path="/b")])
    assert not [one for one in board.snapshot(52.0, LIVENESS).events if one.event is EventName.ADAPTER_ADOPTED]
    board.publish(a_status(adapters=("a", "b"), listed=("b",), at=52.0))
    assert [one.text for one in board.snapshot(52.0, LIVENESS).events if one.event is EventName.ADAPTER_ADOPTED] == [
        "b from /b"
    ]


def test_a_thousand_restores_do_not_push_out_their_outage() -> None:
    """A run of one event is a few entries and a count."""
    history = History("vllm")
    history.take(1.0, [warning(EventName.SERVER_DOWN, detail="refused")])
    history.take(2.0, [info(EventName.RESTORE_SUCCEEDED, adapter=f"a{at}", path="/a") for at in range(1000)])
    assert history.entries[0].event is EventName.SERVER_DOWN
    assert sum(one.count for one in history.entries) == 1001
    assert len(history.entries) < 10


def test_repeats_are_one_entry_with_their_count() -> None:
    """A failure that repeats between other events stays one line, at its newest time."""
    history = History("vllm")
    for at in range(50):
        history.take(float(at), [warning(EventName.RESTORE_FAILED, adapter="a", message="no", repeats="a files")])
        history.take(float(at), [info(EventName.ADAPTER_ADOPTED, adapter=f"b{at}", path="/b")])
    (failed,) = [one for one in history.entries if one.event is EventName.RESTORE_FAILED]
    assert (failed.count, failed.at) == (50, 49.0)


def test_history_is_bounded() -> None:
    """A server that flaps for a year costs no more than one that flaps for an hour."""
    history = History("vllm")
    done = {"lost": 1, "restored": 1, "failed": 0, "restore_seconds": 0.1}
    for at in range(2000):
        history.mark(Phase.UP if at % 2 else Phase.DOWN, at, float(at), "x")
        history.take(
            float(at), [info(EventName.RECOVERY_COMPLETED, **done), warning(EventName.SERVER_DOWN, detail="y" * 10**5)]
        )
    assert len(history.spans) == SPANS_KEPT
    assert len(history.recoveries) == RECOVERIES_KEPT
    assert len(history.entries) == EVENTS_KEPT
    assert max(len(one.text) for one in history.entries) <= 400


def test_lives_and_absences_follow_one_another_without_gaps() -> None:
    """Each stretch ends where the next begins, and a restart that nobody saw begins a new incarnation."""
    board = a_board(at=50.0)
    board.publish(a_status(at=60.0, number=2))
    down = a_status(at=70.0, phase=Phase.DOWN, number=2)
    board.publish(replace(down, work=replace(down.work, server=replace(down.work.server, since=70.0))))
    (status,) = board.snapshot(71.0, LIVENESS).servers
    assert [(span.phase.value, span.incarnation) for span in status.spans] == [
        ("starting", 0),
        ("up", 1),
        ("up", 2),
        ("down", 2),
    ]
    assert [one.ended for one in status.spans[:-1]] == [one.began for one in status.spans[1:]]
    assert status.spans[-1].ended is None
