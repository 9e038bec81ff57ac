"""A port of the loopback in a test: each connection is served in a task of its own, and none is left in the end.

The trap guarded against is the connection that comes just as the test ends: a task that is cancelled before its first
step closes nothing, and the collector finds the open socket in the middle of another test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Self

from tests.fakes.listening import bind_tcp
from tests.fakes.port import Port

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]

_HEAD_CAP = 2**20


class Door:
    """Listens on a port that the kernel chooses; `serve` meets each connection, which is closed after it."""

    def __init__(self, serve: Serve) -> None:
        self.port = 0
        """Where it listens, or listened."""
        self._serve = serve
        self._listening: Port | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        listener = bind_tcp("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self._listening = Port(listener, self._protocol)
        self._listening.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._listening is not None:
            await self._listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listening is not None:
            self._listening.abort()
        # An aborted transport lets go of its socket in the loop's next turn.
        await asyncio.sleep(0)

    def _protocol(self) -> asyncio.Protocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=_HEAD_CAP), self._let_in)

    def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._meet(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            writer.close()
