"""A listening port whose owner holds every connection, from its arrival to its end.

The trap guarded against is the connection that comes as its server goes. Closing an asyncio server forgets those that
it has accepted and not yet handed over: they stay open and silent, where a process that dies has the kernel end each.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

_BACKLOG: Final = 2048
_PAUSE: Final = 0.1
"""Seconds after which to try again where there is no descriptor left for a connection."""


class Port:
    """Takes connections on a bound socket until it is closed, and closes the socket then."""

    def __init__(
        self, listener: socket.socket, protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None = None
    ) -> None:
        """`protocol` makes what meets a connection; with a `context` each begins with the server's side of TLS."""
        self._listener = listener
        self._protocol = protocol
        self._context = context
        self._arriving: set[asyncio.Task[None]] = set()
        self._open: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()

    def open(self) -> None:
        """Listen from now on. To be called in a running loop."""
        self._listener.setblocking(False)  # noqa: FBT003 - its name says what it is
        self._listener.listen(_BACKLOG)
        self._watch()

    async def close(self) -> None:
        """Refuse connections from now on; those that are open stay so."""
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
        for task in self._arriving:
            task.cancel()
        if self._arriving:
            await asyncio.wait(self._arriving)

    def abort(self) -> None:
        """End every connection, mid-answer or not."""
        for transport in tuple(self._open):
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()
            else:
                transport.close()

    def _watch(self) -> None:
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        # Not `loop.sock_accept`: one that is cancelled loses the connection that it has just taken.
        loop = asyncio.get_running_loop()
        try:
            arrived, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            loop.remove_reader(self._listener)
            loop.call_later(_PAUSE, self._watch)
            return
        arrived.setblocking(False)  # noqa: FBT003 - its name says what it is
        task = asyncio.create_task(self._hand_over(arrived))
        self._arriving.add(task)
        task.add_done_callback(partial(self._arrived, arrived))

    async def _hand_over(self, arrived: socket.socket) -> None:
        # A handshake that fails is the caller's affair.
        with suppress(OSError):
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, arrived, ssl=self._context
            )
            self._open.add(transport)

    def _arrived(self, arrived: socket.socket, task: asyncio.Task[None]) -> None:
        self._arriving.discard(task)
        if task.cancelled():
            # Nobody has met it where the task never took its first step.
            arrived.close()
