from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator

import pytest

from lora_sidecar import threads as offload
from lora_sidecar.threads import BlockingCall


class Gate:
    """A call that blocks its thread until it is let go, as a hung disk does."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.calls = 0

    def pass_through(self) -> str:
        """Block, and say so once let go."""
        self.calls += 1
        self.entered.set()
        self.open.wait()
        return "through"


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is opened in the end, so that no thread outlives its test."""
    gate = Gate()
    yield gate
    gate.open.set()


async def test_result_comes_back() -> None:
    """The call runs in a daemon thread of the given name, and its result is returned."""
    thread = await BlockingCall("disk").run(threading.current_thread, 5.0)

    assert (thread.name, thread.daemon) == ("disk", True)
    assert thread is not threading.current_thread()


async def test_calls_in_a_row_share_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits a while for the next one, and then ends."""
    offloader = BlockingCall("disk")
    monkeypatch.setattr(offload, "IDLE", 60.0)
    first = await offloader.run(threading.current_thread, 5.0)
    assert await offloader.run(threading.current_thread, 5.0) is first

    monkeypatch.setattr(offload, "IDLE", 0.01)
    assert await offloader.run(threading.current_thread, 5.0) is first
    await asyncio.to_thread(first.join, 5.0)
    assert not first.is_alive()
    assert await offloader.run(threading.current_thread, 5.0) is not first


async def test_a_thread_ends_with_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the loop that would let it go is closed before."""
    monkeypatch.setattr(offload, "IDLE", 60.0)
    thread = await asyncio.to_thread(lambda: asyncio.run(BlockingCall("disk").run(threading.current_thread, 5.0)))

    gc.collect()
    await asyncio.to_thread(thread.join, 5.0)
    assert not thread.is_alive()


async def test_error_comes_back() -> None:
    """What the call raises is raised to whoever waits for it."""

    def fail() -> None:
        raise PermissionError("not yours")

    with pytest.raises(PermissionError, match="not yours"):
        await BlockingCall("disk").run(fail, 5.0)


async def test_stuck_call(gate: Gate) -> None:
    """A call that is late is given up, and keeps its slot: the next one fails at once and starts no thread."""
    offloader = BlockingCall("disk")
    with pytest.raises(TimeoutError):
        await offloader.run(gate.pass_through, 0.01)

    with pytest.raises(TimeoutError, match="an earlier call has not come back"):
        await offloader.run(gate.pass_through, 60.0)

    assert gate.calls == 1


async def test_slot_is_free_again(gate: Gate) -> None:
    """Once a stuck call has come back, the next one runs."""
    offloader = BlockingCall("disk")
    with pytest.raises(TimeoutError):
        await offloader.run(gate.pass_through, 0.01)
    assert not await offloader.settle(0.01)

    gate.open.set()
    assert await offloader.settle(5.0)

    assert await offloader.run(lambda: "next", 5.0) == "next"


async def test_late_error_is_nobodys(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """An error that comes after its caller has left is dropped without a complaint of the loop's."""

    def fail() -> None:
        gate.pass_through()
        raise OSError("too late")

    offloader = BlockingCall("disk")
    with pytest.raises(TimeoutError):
        await offloader.run(fail, 0.01)
    gate.open.set()
    assert await offloader.settle(5.0)
    del offloader
    await asyncio.sleep(0)

    assert caplog.records == []


async def test_caller_is_cancelled(gate: Gate) -> None:
    """A cancelled caller leaves at once, and the call goes on to its end."""
    offloader = BlockingCall("disk")
    caller = asyncio.create_task(offloader.run(gate.pass_through, 60.0))
    await asyncio.to_thread(gate.entered.wait)

    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller

    assert not await offloader.settle(0.0)
    gate.open.set()
    assert await offloader.settle(5.0)


async def test_no_call_to_wait_for() -> None:
    """Where nothing was ever called there is nothing to settle."""
    assert await BlockingCall("disk").settle(0.0)


def test_loop_is_closed_meanwhile(gate: Gate) -> None:
    """A call that comes back after the loop is closed ends in silence; an error of its thread would fail this test."""

    async def leave() -> threading.Thread:
        with pytest.raises(TimeoutError):
            await BlockingCall("late").run(gate.pass_through, 0.01)
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "late"]
        return thread

    thread = asyncio.run(leave())
    gate.open.set()
    thread.join()

    assert not thread.is_alive()


async def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the pod's limit of processes is reached the call is refused as a late one, and the slot stays free."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    offloader = BlockingCall("disk")
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TimeoutError, match="can't start new thread"):
            await offloader.run(lambda: "never", 5.0)

    assert await offloader.run(lambda: "again", 5.0) == "again"
