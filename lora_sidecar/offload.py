"""Blocking work off the loop: one thing at a time, with a deadline, in a thread that nothing has to wait for.

The trap guarded against is a hung file system. A thread stuck in the kernel cannot be ended; a pool would lend out one
more at every try until none is left, and the interpreter would wait for all of them at exit. So each user has a slot of
its own, a stuck call keeps it occupied, and the threads are daemons.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class NoThreadError(TimeoutError):
    """No thread was to be had: nothing was called, and what it would have looked at is not to blame."""


class _Call(Generic[T]):
    """One call in its thread, and the future that hears of its end."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[T] = self._loop.create_future()

    def start(self, name: str) -> None:
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            result = self._function()
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the caller
            self._tell(self._fail, error)
        else:
            self._tell(self._succeed, result)

    def _tell(self, how: Callable[..., None], what: object) -> None:
        # The loop may be closed at any moment: then nobody waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(how, what)

    def _succeed(self, result: T) -> None:
        if not self.ended.done():
            self.ended.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)
            # The caller may have left at its deadline; then nobody else would look at the error.
            self.ended.exception()


class Offloader:
    """A slot for one blocking call at a time."""

    def __init__(self, name: str) -> None:
        """`name` is what its threads are called."""
        self._name = name
        self._under_way: asyncio.Future[object] | None = None

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
            call.start(self._name)
        except RuntimeError as error:
            raise NoThreadError(f"no thread can be started now: {error}") from error
        self._under_way = call.ended  # type: ignore[assignment]  # a future is invariant, and only its end is looked at
        async with asyncio.timeout(deadline):
            return await asyncio.shield(call.ended)

    async def settle(self, deadline: float) -> bool:
        """Wait at most `deadline` seconds for a call under way; whether none is left."""
        if self._under_way is None:
            return True
        done, _ = await asyncio.wait({self._under_way}, timeout=deadline)
        return bool(done)
