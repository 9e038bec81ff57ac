"""An HTTP listener that nobody can fill: connections, their age and what they say are bounded.

The trap guarded against is a port that takes the process down with it. A client that opens connections and says
nothing would use up the descriptors that the heartbeat needs; one that never ends its request, or never reads its
answer, the memory. So there are only so many connections, by what the process may have open; each serves one request,
which has seconds to begin, a head of bounded size and seconds to be read; and where all are taken, the oldest one that
has not asked for anything makes room. A probe that asks at once is therefore always answered.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from lora_sidecar.config.values import Fault, split_bind
from lora_sidecar.core.errors import SidecarError

IDLE_SECONDS: Final = 10.0
"""How long a connection may take to ask for something, and again to read its answer."""

HEAD_BYTES: Final = 32 * 1024
"""The longest head of a request, request line included."""

_DESCRIPTORS_KEPT: Final = 64
_FEWEST: Final = 4
_WAITING: Final = 100
_SWEEP_SECONDS: Final = 1.0
_QUIET_SECONDS: Final = 30.0
_ANYWHERE: Final = ("", "0.0.0.0", "::")
_HEAD_ENDS: Final = b"\r\n\r\n"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _is_fault(record: logging.LogRecord) -> bool:
    """Whether aiohttp speaks of a fault of ours: a peer that speaks no HTTP must not fill stderr with tracebacks."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


_LOG: Final = logging.getLogger(__name__)
_LOG.addFilter(_is_fault)


class AcceptErrors:
    """A loop's exception handler that tells of connections it could not accept at most every 30 s."""

    def __init__(self) -> None:
        self._quiet_until = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Pass on what is not one of them, or the first for a while."""
        if isinstance(context.get("exception"), OSError) and "accept" in context.get("message", ""):
            if loop.time() < self._quiet_until:
                return
            self._quiet_until = loop.time() + _QUIET_SECONDS
        loop.default_exception_handler(context)


class _Refused(asyncio.Protocol):
    """What meets a connection for which there is no room."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()


class _Connection(asyncio.Protocol):
    """One connection: hands everything on to aiohttp, and can be ended whatever its peer does."""

    def __init__(self, inner: RequestHandler, open_: dict[RequestHandler, _Connection]) -> None:
        self._inner = inner
        self._open = open_
        self._transport: asyncio.Transport | None = None
        self._head = 0
        self._tail: bytes | None = b""
        self.serving = False
        self.waits_since = asyncio.get_running_loop().time()
        # From here on, for a hundred may be accepted before the first of them is made.
        open_[inner] = self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            return
        if self._inner not in self._open:
            transport.abort()
            return
        self._transport = transport
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._tail is not None:
            self._head += len(data)
            seen = self._tail + data
            self._tail = None if _HEAD_ENDS in seen else seen[-len(_HEAD_ENDS) + 1 :]
            if self._tail is not None and self._head > HEAD_BYTES:
                self.abort()
                return
        self._inner.data_received(data)

    def eof_received(self) -> None:
        self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.pop(self._inner, None)
        if self._transport is not None:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def abort(self) -> None:
        """End it at once: what was not sent is not waited for."""
        self._open.pop(self._inner, None)
        if self._transport is not None:
            self._transport.abort()


class Listener:
    """Listens on one address for one application, and bounds what comes in there."""

    def __init__(self, app: web.Application, bind: str, hint: str, connections: int) -> None:
        """`hint` tells what to do where the address cannot be had; `connections` is the most at a time.

        There are fewer of them where the process may have few descriptors.
        """
        app.middlewares.insert(0, self._serve)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=0.5, logger=_LOG, auto_decompress=False
        )
        self._bind = bind
        self._hint = hint
        self._most = connections
        self._server: asyncio.Server | None = None
        self._open: dict[RequestHandler, _Connection] = {}

    async def start(self) -> None:
        """Listen. Raises `SidecarError` where the address cannot be had."""
        address = split_bind(self._bind)
        if isinstance(address, Fault):
            raise TypeError(f"{self._bind} was accepted and is {address.rule}")
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors != resource.RLIM_INFINITY:
            self._most = min(self._most, max(_FEWEST, (descriptors - _DESCRIPTORS_KEPT) // 4))
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        # asyncio accepts as many in a row as it lets wait, and each has a descriptor before it can be refused.
        waiting = min(_WAITING, max(_FEWEST, self._most // 2))
        try:
            if address[0] in _ANYWHERE:
                self._server = await loop.create_server(self._door, sock=_everywhere(address[1]), backlog=waiting)
            else:
                self._server = await loop.create_server(self._door, *address, backlog=waiting)
        except OSError as error:
            await self.close()
            raise SidecarError("listen on", self._bind, error.strerror or str(error), self._hint) from error

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, host:port each."""
        names = [] if self._server is None else [socket.getsockname() for socket in self._server.sockets]
        return tuple(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port, *_ in names)

    async def run(self) -> None:
        """Close, for ever, connections that ask for nothing, and those that do not read what they asked for."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            for one in list(self._open.values()):
                if not one.serving and loop.time() - one.waits_since > IDLE_SECONDS:
                    one.abort()

    @property
    def is_crowded(self) -> bool:
        """Whether requests are under way on more than half of the connections that there may be."""
        return sum(one.serving for one in self._open.values()) > self._most // 2

    async def close(self) -> None:
        """Stop listening, and end what is under way."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    @web.middleware
    async def _serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = self._open.get(request.protocol)
        if connection is None:
            # It made room for another one meanwhile: nobody reads this.
            return web.Response(status=408)
        connection.serving = True
        try:
            response = await handler(request)
        except web.HTTPException as answer:
            answer.force_close()
            raise
        finally:
            connection.serving = False
            connection.waits_since = asyncio.get_running_loop().time()
        # One request a connection: an idle one could be closed just as its next request is written.
        response.force_close()
        return response

    def _door(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None:
            return _Refused()
        if len(self._open) >= self._most:
            waiting = [one for one in self._open.values() if not one.serving]
            if not waiting:
                return _Refused()
            min(waiting, key=lambda one: one.waits_since).abort()
        return _Connection(server(), self._open)


def _everywhere(port: int) -> socket.socket:
    """A socket that listens on every address of both families, or of IPv4 alone where the host has no IPv6."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("0.0.0.0", port))
