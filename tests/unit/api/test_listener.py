"""Whatever clients do to a port, the process has descriptors and memory left, and who asks at once is answered."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from lora_sidecar.api import listener
from lora_sidecar.api.listener import HEAD_BYTES, AcceptErrors, Listener

ASKS = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@asynccontextmanager
async def listening(
    bind: str = "127.0.0.1:0", connections: int = 8, answer: bytes = b"ok", gate: asyncio.Event | None = None
) -> AsyncIterator[Listener]:
    """A port that answers `answer`, once `gate` is open."""

    async def answered(_: web.Request) -> web.Response:
        if gate is not None:
            await gate.wait()
        return web.Response(body=answer)

    app = web.Application()
    app.router.add_get("/", answered)
    port = Listener(app, bind, "", connections)
    await port.start()
    sweeping = asyncio.create_task(port.run())
    try:
        yield port
    finally:
        sweeping.cancel()
        await port.close()


async def connected(port: Listener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to it."""
    host, _, number = port.addresses[0].rpartition(":")
    return await asyncio.open_connection(host, int(number))


async def asked(port: Listener) -> int:
    """The status that somebody gets who connects and asks at once."""
    reader, writer = await connected(port)
    writer.write(ASKS)
    async with asyncio.timeout(5):
        line = await reader.readline()
    writer.close()
    return int(line.split()[1])


async def ended(reader: asyncio.StreamReader, within: float = 5.0) -> bool:
    """Whether the other side ends the connection in time."""
    try:
        async with asyncio.timeout(within):
            while await reader.read(65536):
                pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


async def test_who_asks_is_answered_though_a_crowd_says_nothing() -> None:
    """With every connection taken by clients that say nothing, the oldest makes room for each who comes."""
    async with listening(connections=8) as port:
        silent = [await connected(port) for _ in range(30)]
        assert [await asked(port) for _ in range(20)] == [200] * 20
        assert await ended(silent[0][0])
        for _, writer in silent:
            writer.close()


async def test_those_who_come_at_once_are_counted_one_by_one() -> None:
    """A burst that is accepted in one turn of the loop is no more than the bound either, and who asks is answered."""
    async with listening(connections=30) as port:
        host, _, number = port.addresses[0].rpartition(":")
        before = [await connected(port) for _ in range(28)]
        burst = [socket.create_connection((host, int(number))) for _ in range(14)]
        await asyncio.sleep(0.3)
        ended = [await asyncio.to_thread(_is_ended, one) for one in burst]
        ended += [one.at_eof() or one.exception() is not None for one, _ in before]
        assert ended.count(False) == 30
        assert await asked(port) == 200
        for one in burst:
            one.close()
        for _, writer in before:
            writer.close()


def _is_ended(one: socket.socket) -> bool:
    """Whether the other side has ended a connection."""
    one.settimeout(0.05)
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


async def test_who_is_served_is_not_shown_out_for_others() -> None:
    """Where requests are under way on all connections, it is the newcomer who is refused."""
    gate = asyncio.Event()
    async with listening(connections=3, gate=gate) as port:
        waiting = [asyncio.create_task(asked(port)) for _ in range(3)]
        await asyncio.sleep(0.2)
        reader, writer = await connected(port)
        assert await ended(reader)
        writer.close()
        gate.set()
        assert await asyncio.gather(*waiting) == [200, 200, 200]


async def test_head_that_does_not_end_is_cut_off_by_its_size() -> None:
    """A client that writes one header after another is ended before it has filled the memory."""
    async with listening() as port:
        reader, writer = await connected(port)
        writer.write(ASKS[:-2])
        line = b"X-More: " + b"m" * 1000 + b"\r\n"
        sent = 0
        while sent < 4 * HEAD_BYTES and not reader.at_eof():
            writer.write(line)
            sent += len(line)
            await asyncio.sleep(0)
        assert await ended(reader)
        writer.close()
        assert await asked(port) == 200


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
async def test_head_that_comes_in_pieces_is_a_head(piece: int) -> None:
    """Its end is found wherever it is cut, so that what follows it does not count as head."""
    async with listening() as port:
        reader, writer = await connected(port)
        for at in range(0, len(ASKS), piece):
            writer.write(ASKS[at : at + piece])
            await writer.drain()
            await asyncio.sleep(0.001)
        assert b" 200 " in await reader.readline()
        writer.close()


@pytest.mark.parametrize("said", [b"", ASKS[:-2]], ids=["nothing", "half a head"])
async def test_who_does_not_ask_is_shown_out(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """After seconds, and though others are well served."""
    monkeypatch.setattr(listener, "IDLE_SECONDS", 0.3)
    async with listening() as port:
        reader, writer = await connected(port)
        writer.write(said)
        assert await ended(reader)
        writer.close()


async def test_who_does_not_read_the_answer_is_shown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that nobody takes does not stay in memory, and its connection is free again."""
    monkeypatch.setattr(listener, "IDLE_SECONDS", 0.3)
    async with listening(connections=1, answer=b"x" * 64_000_000) as port:
        reader, writer = await connected(port)
        writer.write(ASKS)
        await asyncio.sleep(2.5)
        assert await asked(port) == 200
        assert await ended(reader)
        writer.close()


async def test_each_connection_serves_one_request() -> None:
    """So none can be closed just as its next request is written."""
    async with listening() as port, aiohttp.ClientSession() as session:
        async with session.get(f"http://{port.addresses[0]}/") as reply:
            assert reply.headers["Connection"] == "close"
        async with session.get(f"http://{port.addresses[0]}/nothing") as reply:
            assert (reply.status, reply.headers["Connection"]) == (404, "close")


async def test_connections_are_fewer_than_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may open little keeps more than half of it for its own work."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (264, 264))
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(listening(connections=512))
        silent = [await connected(port) for _ in range(70)]
        await asyncio.sleep(0.1)
        still = [one for one, _ in silent if not await ended(one, within=0.001)]
        assert len(still) == (264 - 64) // 4
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("bind", [":0", "0.0.0.0:0", "[::]:0"])
async def test_every_address_is_of_both_families(bind: str) -> None:
    """A pod has IPv4, IPv6 or both, and its probes ask the one that it has."""
    async with listening(bind) as port, aiohttp.ClientSession() as session:
        number = port.addresses[0].rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            async with session.get(f"http://{host}:{number}/") as reply:
                assert reply.status == 200


async def test_host_without_ipv6_is_served_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no IPv6, the default address is what it was."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    async with listening("0.0.0.0:0") as port:
        assert port.addresses[0].startswith("0.0.0.0:")
        assert await asked(port) == 200


@pytest.mark.looptime
async def test_connections_that_cannot_be_accepted_are_told_of_every_half_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The loop speaks of each that it could not accept, many times a second: the log has one of them in 30 s."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(AcceptErrors())
    lacking = {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
    with caplog.at_level(logging.ERROR, "asyncio"):
        for _ in range(650):
            loop.call_exception_handler(dict(lacking))
            await asyncio.sleep(0.1)
        assert len(caplog.records) == 3
        loop.call_exception_handler({"message": "another thing", "exception": OSError(5, "EIO")})
        loop.call_exception_handler({"message": "another thing"})
    assert len(caplog.records) == 5
