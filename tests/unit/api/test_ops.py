"""The ops port in front of a board: whatever a server, a checkpoint or an operator put there, each path answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from lora_sidecar.api.metrics import Metrics
from lora_sidecar.api.ops import OpsServer
from lora_sidecar.config.process import OpsConfig
from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.model import Incarnation, Paused
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.status.board import Board, Snapshot
from tests.support.http_client import Api, Reply
from tests.support.snapshots import HOSTILE, a_board, a_status

PATHS = ("/livez", "/readyz", "/readyz?verbose", "/serverz/vllm", "/metrics", "/status?limit=1000", "/?limit=1000")
LIVENESS = 30.0


@asynccontextmanager
async def serving(board: Board, metrics: Metrics | None = None, at: float = 52.0) -> AsyncIterator[Api]:
    """A client of an ops port that shows this board."""

    def snapshot() -> Snapshot:
        return board.snapshot(at, LIVENESS)

    server = OpsServer(OpsConfig("127.0.0.1:0"), snapshot, metrics or Metrics(("vllm",)))
    await server.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Api(session, f"http://{server.addresses[0]}")
    finally:
        await server.close()


def _board(**changed: Any) -> Board:
    board = Board(("vllm",))
    status = a_status(adapters=("a",), listed=("a",), required=("a",))
    board.publish(replace(status, **changed))
    return board


_DESIRED = a_status(adapters=("a",), listed=("a",)).desired
_LONG = "\ud800 of a line\n" * 1_000_000
_PAUSED = Condition(ConditionType.PAUSED, f"nothing is loaded or unloaded: half {_LONG}", _LONG)

WORSE: dict[str, Board] = {
    "names that clients chose": a_board(hostile=True),
    "half a pair in the reason of a pause": _board(
        desired=replace(_DESIRED, paused=Paused("half \ud83d")),
        conditions=(Condition(ConditionType.PAUSED, "nothing is loaded or unloaded: half \ud83d"),),
    ),
    "a pause, a reason to end the server and hints without end": _board(conditions=(_PAUSED,), failing=_LONG),
    "an incarnation of 4,299 digits": _board(
        desired=replace(_DESIRED, incarnation=Incarnation(10**4299)), saved_generation=10**4299
    ),
    "a server whose sentence has no end": a_board(phase=Phase.DOWN, detail=_LONG, adapters=("a",), required=("a",)),
}


@pytest.mark.parametrize("board", WORSE.values(), ids=WORSE.keys())
@pytest.mark.parametrize("path", PATHS)
async def test_every_path_answers_whatever_there_is_to_say(board: Board, path: str) -> None:
    """No text costs an answer, breaks a line of it, or makes it endless."""
    async with serving(board) as api:
        reply = await api.get(path)
    assert reply.status in (200, 503)
    # The names themselves are told whole, in the metrics once for each state; one of them has 200,000 characters.
    assert len(reply.text) < 60_000 + 12 * (sum(map(len, HOSTILE)) if board is WORSE["names that clients chose"] else 0)
    assert "\n of a line" not in reply.text


async def test_a_name_with_a_line_break_forges_no_line() -> None:
    """Each line of the readiness begins as the manual says."""
    async with serving(a_board(hostile=True)) as api:
        lines = (await api.get("/readyz?verbose")).text.splitlines()
    assert len(lines) > len(HOSTILE)
    assert {line.partition(" ")[0] for line in lines[1:]} <= {"vllm:", "server", "adapter", "condition"}


async def test_readiness_names_the_first_and_counts_the_others() -> None:
    """Nobody reads ten thousand lines in a probe's event; who asks for all of them gets them."""
    names = [f"n{at:04}" for at in range(1000)]
    async with serving(a_board(adapters=names, required=names)) as api:
        short, whole = await api.get("/readyz"), await api.get("/readyz?verbose")
    assert (short.status, len(short.text.splitlines())) == (503, 21)
    assert short.text.endswith("and 981 more\n")
    assert whole.text.count("vllm: adapter ") == 1000


@pytest.mark.parametrize(
    ("at", "failing", "status", "says"),
    [
        (52.0, "it hangs", 503, "not ok\nvllm: it hangs\n"),
        (52.0, "", 200, "ok\n"),
        (90.0, "it hangs", 200, "ok\nunknown: the last heartbeat ended 40 s ago\n"),
    ],
)
async def test_serverz_fails_for_what_is_known_now(at: float, failing: str, status: int, says: str) -> None:
    """What a late heartbeat said is unknown, and ends no server."""
    async with serving(_board(failing=failing), at=at) as api:
        reply = await api.get("/serverz/vllm")
        assert (reply.status, reply.text) == (status, says)
        assert (await api.get("/serverz/other")).status == 404
    async with serving(Board(("vllm",))) as api:
        assert (await api.get("/serverz/vllm")).text == "ok\nno heartbeat has ended yet\n"


class _SlowMetrics(Metrics):
    """Metrics whose text takes until `gate` is open."""

    def __init__(self) -> None:
        super().__init__(("vllm",))
        self.gate = threading.Event()
        self.written = 0

    def text(self, snapshot: Snapshot) -> bytes:
        """Count, wait, and write."""
        self.written += 1
        assert self.gate.wait(20)
        return super().text(snapshot)


async def test_a_scrape_holds_up_nobody_and_is_written_once_for_all_who_wait() -> None:
    """Probes are answered while it is written, and a storm of scrapes costs as much as one."""
    metrics = _SlowMetrics()
    async with serving(_board(), metrics) as api:
        scrapes = [asyncio.create_task(api.get("/metrics")) for _ in range(20)]
        await asyncio.sleep(0.3)
        assert (await api.get("/livez", within=5)).status == 200
        assert not any(one.done() for one in scrapes)
        metrics.gate.set()
        replies: list[Reply] = await asyncio.gather(*scrapes)
    assert {reply.status for reply in replies} == {200}
    assert len({reply.text for reply in replies}) == 1
    assert metrics.written == 1


async def test_without_a_thread_there_are_metrics_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for the reason needs them then."""

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with serving(_board()) as api:
        monkeypatch.setattr(threading.Thread, "start", none_left)
        assert (await api.get("/metrics")).status == 200
        assert (await api.get("/")).status == 200
