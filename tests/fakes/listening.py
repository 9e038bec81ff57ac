"""How the fake server takes connections: as uvicorn under vLLM does, where aiohttp has other habits.

The trap guarded against is a silent connection that a test server closes by itself: a living vLLM never does, and
the sidecar reads its end as the death of the server.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from functools import partial
from typing import Self

from aiohttp import web

from tests.fakes.port import Port

_KEEP_ALIVE = 5.0
# Seconds that requests under way are given when a life ends.
_PATIENCE = 0.01
# Below the level at which aiohttp writes a line for each request.
_ACCESS_LOG = logging.getLogger("lora_sidecar.demo.access")
_ACCESS_LOG.setLevel(logging.WARNING)


class _Connection(web.RequestHandler):
    """A connection that is closed when idle after an answer, and never before one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # aiohttp starts its timer for idle connections here already; this stops it until the first answer.
        self.keep_alive(val=True)


class _ImpatientConnection(web.RequestHandler):
    """A connection that is closed, too, when no request comes on it: vLLM's Rust frontend waits 5 s for a header."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.keep_alive(val=True)
        self._silence = asyncio.get_running_loop().call_later(_KEEP_ALIVE, transport.close)

    def data_received(self, data: bytes) -> None:
        self._silence.cancel()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._silence.cancel()
        super().connection_lost(exc)


class Listening:
    """One life's port and connections; a life that ends leaves none open."""

    def __init__(self, runner: web.AppRunner, port: Port) -> None:
        self._runner = runner
        self._port = port

    @classmethod
    async def begin(
        cls,
        app: web.Application,
        listener: socket.socket,
        *,
        closes_silent: bool = False,
        context: ssl.SSLContext | None = None,
    ) -> Self:
        """Serve `app` on a bound socket; `closes_silent` closes a connection after 5 s without a request."""
        runner = web.AppRunner(app, shutdown_timeout=_PATIENCE)
        await runner.setup()
        server = runner.server
        if server is None:
            raise RuntimeError("the runner was not set up")
        kind = _ImpatientConnection if closes_silent else _Connection
        loop = asyncio.get_running_loop()
        meet = partial(kind, server, loop=loop, keepalive_timeout=_KEEP_ALIVE, access_log=_ACCESS_LOG)
        port = Port(listener, meet, context)
        port.open()
        return cls(runner, port)

    async def refuse(self) -> None:
        """Take no more connections."""
        await self._port.close()

    def close_idle(self) -> None:
        """Close the connections on which no request is under way, and the others after their answers."""
        if self._runner.server is not None:
            self._runner.server.pre_shutdown()

    def abort(self) -> None:
        """End every connection now, mid-answer or not."""
        self._port.abort()

    async def end(self) -> None:
        """End the life: the port, what is under way, and every connection."""
        await self._port.close()
        await self._runner.cleanup()
        self._port.abort()


def bind_tcp(host: str, port: int) -> socket.socket:
    """Bind without listening: the port refuses. Raises `OSError` where it is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _bound(listener, (host, port))


def bind_unix(path: str) -> socket.socket:
    """Bind without listening. Raises `OSError` where the file exists, as vLLM fails then."""
    return _bound(socket.socket(socket.AF_UNIX), path)


def _bound(listener: socket.socket, address: str | tuple[str, int]) -> socket.socket:
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def tls_context(certfile: str, keyfile: str | None, ca_certs: str | None) -> ssl.SSLContext:
    """The server's side of TLS; with `ca_certs` a client must show a certificate that one of them signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile, keyfile)
    if ca_certs is not None:
        context.load_verify_locations(ca_certs)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
