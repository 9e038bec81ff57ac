from __future__ import annotations

import asyncio

import pytest

from tests.contract.asking import raw_connection
from tests.support.servers import RunningServer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


async def test_idle_connection_is_closed_after_five_seconds(server: RunningServer) -> None:
    """A connection that had an answer is closed by the server once it was idle for 5 s."""
    loop = asyncio.get_running_loop()
    async with raw_connection(server) as (reader, writer), asyncio.timeout(15):
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        answered = loop.time()
        assert await reader.read() == b""
        assert 4.5 < loop.time() - answered < 8


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: local"], ids=["silent", "half-a-request"])
async def test_silent_connection_stays_open(server: RunningServer, sent: bytes) -> None:
    """A connection on which no whole request was sent is not closed by a living server."""
    async with raw_connection(server) as (reader, writer):
        writer.write(sent)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await reader.read(1)
