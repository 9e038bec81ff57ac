"""A server on a real socket that answers as vLLM does until it is told to misbehave, byte by byte.

The trap guarded against is a misbehaviour that an HTTP library on the server's side would tidy up: what is sent here is
what is written here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Self

from tests.support.door import Door

Writer = asyncio.StreamWriter
Behaviour = Callable[[Writer], Awaitable[None]]


def http(status: int, body: bytes, *headers: str) -> bytes:
    """A plain answer."""
    head = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def listing(*names: str, base: str | None = "base") -> bytes:
    """A body as vLLM's `/v1/models` has it."""
    cards: list[dict[str, Any]] = [] if base is None else [{"id": base, "root": "/models/tiny", "parent": None}]
    cards += [{"id": name, "root": f"/adapters/{name}", "parent": base or "base"} for name in names]
    return json.dumps({"object": "list", "data": cards}).encode()


def says(raw: bytes) -> Behaviour:
    """Write these bytes and close."""

    async def behave(writer: Writer) -> None:
        writer.write(raw)
        await writer.drain()

    return behave


def resets() -> Behaviour:
    """Reset the connection."""

    async def behave(writer: Writer) -> None:
        writer.transport.abort()

    return behave


def hangs() -> Behaviour:
    """Say nothing, for ever."""

    async def behave(writer: Writer) -> None:
        del writer
        await asyncio.Event().wait()

    return behave


def drips(raw: bytes, pause: float) -> Behaviour:
    """Write one byte at a time."""

    async def behave(writer: Writer) -> None:
        for byte in raw:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(pause)

    return behave


def floods(head: bytes, piece: bytes) -> Behaviour:
    """Write the same piece for ever."""

    async def behave(writer: Writer) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()

    return behave


class RudeServer:
    """Answers GETs of a healthy vLLM; `misbehave` puts something else in the place of one path's answer."""

    def __init__(self) -> None:
        self.listed: tuple[str, ...] = ()
        self.requests: list[tuple[str, str]] = []
        self.kept = 0
        """How many requests asked for their connection to be kept."""
        self._behaviours: dict[str, Behaviour] = {}
        self._door = Door(self._answer)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._door.port}"

    async def __aenter__(self) -> Self:
        await self._door.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._door.__aexit__()

    def misbehave(self, path: str, behaviour: Behaviour) -> None:
        """Answer this path in another way."""
        self._behaviours[path] = behaviour

    def behave(self, path: str) -> None:
        """Answer this path as usual again."""
        self._behaviours.pop(path, None)

    async def _answer(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        self.requests.append((method, path))
        self.kept += "connection: close" not in head.lower()
        if method == "POST":
            length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
            await reader.readexactly(length)
        await self._behaviours.get(path, says(self._usual(method, path)))(writer)

    def _usual(self, method: str, path: str) -> bytes:
        match method, path:
            case "GET", "/health":
                return http(200, b"")
            case "GET", "/v1/models":
                return http(200, listing(*self.listed), "Content-Type: application/json")
            case "GET", "/metrics":
                return http(200, b"process_start_time_seconds 1.5e+09\n")
            case "GET", "/v1/load_lora_adapter":
                return http(405, b'{"detail":"Method Not Allowed"}')
            case "POST", _:
                return http(200, b"Success")
            case _:
                return http(404, b'{"detail":"Not Found"}')
