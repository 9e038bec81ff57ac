"""A forwarder of TCP connections: what stands between the sidecar and its server where somebody runs a proxy."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

from tests.support.door import Door


class Forwarder:
    """Passes connections on to a port of the loopback once their first byte came.

    A connection on which nothing is sent never reaches the server: it is closed after `patience` seconds, or never
    where that is None, whatever becomes of the server.
    """

    def __init__(self, port: int, patience: float | None) -> None:
        self._target = port
        self._patience = patience
        self._door = Door(self._serve)
        self.silent = 0
        """How many connections were closed for their silence."""

    async def __aenter__(self) -> Self:
        await self._door.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._door.__aexit__()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._door.port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._patience):
                first = await reader.read(65536)
        except TimeoutError:
            self.silent += 1
            return
        if not first:
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            far_writer.write(first)
            async with asyncio.TaskGroup() as group:
                up = group.create_task(_pipe(reader, far_writer))
                await _pipe(far_reader, writer)
                up.cancel()
        finally:
            far_writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
