"""Blocking work off the loop: one thing at a time, with a deadline, in a thread that nothing has to wait for.

The trap guarded against is a hung file system. A thread stuck in the kernel cannot be ended; a pool would lend out one
more at every try until none is left, and the interpreter would wait for all of them at exit. So each user has a slot of
its own, a stuck call keeps it occupied, and the threads are daemons. The pool that reads adapters' folders lends out
few slots, and fewer to one folder's neighbours, so that one volume that hangs leaves some for the others. A thread that
is done waits a moment for another call: where the processors are busy, to start one takes longer than to read an
adapter.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

IDLE: Final = 0.05
"""Seconds for which a thread waits for another call: less than between two heartbeats, so that it does end."""


class NoThreadError(TimeoutError):
    """No thread was to be had: nothing was called, and what it would have looked at is not to blame."""


class _Call(Generic[T]):
    """One call, made in a thread, and the future that hears of its end."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[T] = self._loop.create_future()

    def make(self) -> bool:
        """Call the function; whether anybody is left to hear of it."""
        try:
            result = self._function()
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the caller
            return self._tell(self._fail, error)
        return self._tell(self._succeed, result)

    def _tell(self, how: Callable[..., None], what: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(how, what)
        except RuntimeError:
            # The loop may be closed at any moment.
            return False
        return True

    def _succeed(self, result: T) -> None:
        if not self.ended.done():
            self.ended.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)
            # The caller may have left at its deadline; then nobody else would look at the error.
            self.ended.exception()


class _Thread:
    """A thread that makes one call after another, and ends where nobody refers to this object any more."""

    def __init__(self, name: str) -> None:
        """Raises `RuntimeError` where no thread can be started."""
        self._calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        threading.Thread(target=_serve, args=(self._calls,), name=name, daemon=True).start()
        weakref.finalize(self, self._calls.put, None).atexit = False

    def take(self, call: _Call[Any]) -> None:
        """Make this call next."""
        self._calls.put(call)


def _serve(calls: SimpleQueue[_Call[Any] | None]) -> None:
    while (call := calls.get()) is not None:
        if not call.make():
            break
        # What it returned must not be kept for as long as the next one is waited for.
        del call


class BlockingCall:
    """A slot for one blocking call at a time."""

    def __init__(self, name: str) -> None:
        """`name` is what its threads are called."""
        self._name = name
        self._under_way: asyncio.Future[object] | None = None
        self._thread: _Thread | None = None
        self._leaving: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is under way, or stuck."""
        return self._under_way is not None and not self._under_way.done()

    async def run(self, function: Callable[[], T], deadline: float) -> T:
        """Call `function` in a thread and wait at most `deadline` seconds.

        Raises `TimeoutError` if it takes longer, or at once if an earlier call is still stuck (`NoThreadError`: or no
        thread is to be had); and what it raises. The call itself goes on to its end.
        """
        if self.busy:
            raise TimeoutError("an earlier call has not come back yet")
        call = _Call(function)
        try:
            self._thread = self._thread or _Thread(self._name)
        except RuntimeError as error:
            raise NoThreadError(f"no thread can be started now: {error}") from error
        if self._leaving is not None:
            self._leaving.cancel()
        self._thread.take(call)
        self._under_way = call.ended  # type: ignore[assignment]  # a future is invariant, and only its end is looked at
        call.ended.add_done_callback(self._rest)
        async with asyncio.timeout(deadline):
            return await asyncio.shield(call.ended)

    def _rest(self, ended: asyncio.Future[Any]) -> None:
        self._leaving = ended.get_loop().call_later(IDLE, self._let_go)

    def _let_go(self) -> None:
        self._thread = self._leaving = None

    async def settle(self, deadline: float) -> bool:
        """Wait at most `deadline` seconds for a call under way; whether none is left."""
        if self._under_way is None:
            return True
        done, _ = await asyncio.wait({self._under_way}, timeout=deadline)
        return bool(done)


STUCK: Final = 4
"""Reads that may hang at a time; with more, nothing is read any more until one comes back."""

STUCK_BESIDE: Final = 2
"""Of those in one folder: one volume that hangs leaves threads for the others."""


class ReaderPool:
    """Threads to read in, each for one path at a time; a stuck one stays lent out, and few are."""

    def __init__(self, name: str, new_slot: Callable[[str], BlockingCall] = BlockingCall) -> None:
        """`new_slot` makes a slot of that name."""
        self._new_slot = partial(new_slot, name)
        self._slot = self._new_slot()
        self._stuck: dict[str, BlockingCall] = {}
        self._turn = asyncio.Lock()

    async def run(self, path: str, function: Callable[[], T], deadline: float) -> T:
        """Call `function`, which reads `path`, in a thread.

        Raises `TimeoutError` if that takes longer than `deadline` seconds, or at once while an earlier read of that
        path, several beside it, or too many of others, have not come back; and what `function` raises.
        """
        self._refuse(path)
        async with self._turn:
            # Who waited for the turn may have waited for a read beside it that did not come back.
            self._refuse(path)
            try:
                return await self._slot.run(function, deadline)
            finally:
                # Also where the caller was cancelled meanwhile.
                if self._slot.busy:
                    self._stuck[path] = self._slot
                    self._slot = self._new_slot()

    def _refuse(self, path: str) -> None:
        """Raise `TimeoutError` where a read of that path must be expected not to come back."""
        self._stuck = {stuck: slot for stuck, slot in self._stuck.items() if slot.busy}
        beside = sum(os.path.dirname(stuck) == os.path.dirname(path) for stuck in self._stuck)
        if path in self._stuck or beside >= STUCK_BESIDE or len(self._stuck) >= STUCK:
            raise TimeoutError("earlier reads have not come back yet")
