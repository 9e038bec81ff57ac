from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Any

import pytest

from lora_sidecar.core.observation import Observed
from lora_sidecar.engines.connection import LivenessConnection


async def test_a_name_with_an_address_at_which_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next address of the name is tried, as for every request."""
    connected, ended = asyncio.Event(), asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        with suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    asked: list[tuple[Any, ...]] = []

    async def addresses(*question: Any, **more: Any) -> list[tuple[Any, ...]]:
        asked.append((question, more))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
    connection = LivenessConnection(f"http://vllm.example:{port}", None)
    try:
        connection.vouch(Observed(0.0, (), (), start_time=1.0), connection.line, 5.0)
        async with asyncio.timeout(5):
            await connected.wait()
            await connection.close()
            await ended.wait()
    finally:
        await connection.close()
        server.close()
        await server.wait_closed()
    assert len(asked) == 1
