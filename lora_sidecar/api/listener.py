"""An HTTP listener that nobody can fill: connections, their age and the requests in them are bounded.

The trap guarded against is a port that takes the process down with it. A client that opens connections and says
nothing would use up the descriptors that the heartbeat needs; so there are only so many connections, each serves one
request, and one that has not said what it wants within seconds is closed.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from lora_sidecar.config.values import Fault, split_bind
from lora_sidecar.core.errors import SidecarError

CONNECTIONS: Final = 512
IDLE_SECONDS: Final = 10.0

_SWEEP_SECONDS: Final = 1.0


class _Full(asyncio.Protocol):
    """What meets a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            transport.abort()


class Listener:
    """Listens on one address for one application, whose requests must pass through `serving`."""

    def __init__(self, runner: web.AppRunner, bind: str, hint: str) -> None:
        """`hint` tells what to do where the address cannot be had."""
        self._runner = runner
        self._bind = bind
        self._hint = hint
        self._server: asyncio.Server | None = None
        self._seen_at: dict[RequestHandler, float] = {}
        self._serving: set[object] = set()

    async def start(self) -> None:
        """Listen. Raises `SidecarError` where the address cannot be had."""
        address = split_bind(self._bind)
        if isinstance(address, Fault):
            raise TypeError(f"{self._bind} was accepted and is {address.rule}")
        await self._runner.setup()
        try:
            self._server = await asyncio.get_running_loop().create_server(self._door, *address)
        except OSError as error:
            await self.close()
            raise SidecarError("listen on", self._bind, error.strerror or str(error), self._hint) from error

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, host:port each."""
        names = [] if self._server is None else [socket.getsockname() for socket in self._server.sockets]
        return tuple(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port, *_ in names)

    async def sweep(self) -> None:
        """Close, for ever, connections that do not say what they want."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = asyncio.get_running_loop().time()
            self._seen_at = {one: self._seen_at.get(one, now) for one in self._connections()}
            for connection, seen_at in self._seen_at.items():
                if connection not in self._serving and now - seen_at > IDLE_SECONDS:
                    connection.force_close()

    @property
    def requests(self) -> int:
        """How many requests are under way."""
        return len(self._serving)

    def begin(self, request: web.Request) -> None:
        """Note that a request is under way."""
        self._serving.add(request.protocol)

    def end(self, request: web.Request) -> None:
        """Note that a request is over."""
        self._serving.discard(request.protocol)

    async def close(self) -> None:
        """Stop listening, and end what is under way."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    def _door(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None or len(self._connections()) >= CONNECTIONS:
            return _Full()
        return server()

    def _connections(self) -> list[RequestHandler]:
        return [] if self._runner.server is None else self._runner.server.connections
