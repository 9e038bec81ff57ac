"""What the contract's tests share: ways to look at a server until something holds, and bare connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from tests.support.http_client import Api
from tests.support.servers import RunningServer

LOAD = "/v1/load_lora_adapter"
UNLOAD = "/v1/unload_lora_adapter"


@asynccontextmanager
async def raw_connection(server: RunningServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare TCP connection to the server, closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def eventually(holds: Callable[[], Awaitable[bool]], within: float) -> None:
    """Return once it holds. Raises `TimeoutError` after `within` seconds."""
    async with asyncio.timeout(within):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.02)


async def lists(api: Api, name: str) -> bool:
    """Whether the server lists the adapter."""
    return name in await api.listed()


async def unhealthy(api: Api) -> bool:
    """Whether the server answers /health, and not with 200."""
    return (await api.get("/health")).status != 200


async def refuses(server: RunningServer) -> bool:
    """Whether the server's port takes no connection."""
    try:
        async with raw_connection(server):
            return False
    except ConnectionRefusedError:
        return True
