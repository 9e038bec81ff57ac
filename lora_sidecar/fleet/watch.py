"""The stream of a watch to events, until it ends, breaks or falls silent.

The trap guarded against is the watch that hangs without an error: an API server that was stopped, a load balancer that
forgot the connection (kopf #847 and five more), a version to watch from that lies in the future (kubernetes#107457).
Bookmarks come every 60 s, so 130 s without a byte is an end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

import aiohttp

from lora_sidecar.fleet import objects
from lora_sidecar.fleet.api import Ended, Event, Silent, TimeIsUp, WatchEnd
from lora_sidecar.fleet.lines import LineSplitter, LineTooLongError
from lora_sidecar.fleet.objects import Malformed, Status, printable

SILENCE: Final = 130.0
"""Seconds after which a watch that told nothing is over; a bookmark comes every 60 s (Kubernetes 1.20)."""

_FAILURES: Final = (aiohttp.ClientError, OSError, ValueError)


class KubernetesWatch:
    """An open watch; see `api.Watch`."""

    def __init__(self, response: aiohttp.ClientResponse, name: str) -> None:
        self._response = response
        self._name = name
        self._splitter = LineSplitter()
        self._lines: deque[bytes] = deque()
        self._heard_at = asyncio.get_running_loop().time()

    async def next(self, until: float) -> Event | TimeIsUp | WatchEnd:
        """The next event; see `ConfigMapApi.watch` and `Watch.next`."""
        while True:
            while self._lines:
                told = objects.event(self._lines.popleft(), self._name)
                match told:
                    case None:
                        continue
                    case Status(code, message):
                        return Ended(f"the API server ended the watch: {code} {message}")
                    case Malformed(detail):
                        return Ended(detail)
                    case _:
                        return told
            if (end := await self._read(until)) is not None:
                return end

    async def close(self) -> None:
        """Let go of the connection."""
        self._response.close()

    async def _read(self, until: float) -> TimeIsUp | WatchEnd | None:
        """Wait for more lines; None once there may be some."""
        clock = asyncio.get_running_loop().time
        silent_at = self._heard_at + SILENCE
        try:
            async with asyncio.timeout_at(min(until, silent_at)):
                data = await self._response.content.readany()
        except TimeoutError:
            if until < silent_at:
                return TimeIsUp()
            return Silent(f"the watch told nothing for {SILENCE:g} s, not even a bookmark")
        except _FAILURES as error:
            return Ended(f"the connection of the watch broke: {printable(str(error)) or type(error).__name__}")
        if not data:
            return Ended("the API server ended the watch")
        self._heard_at = clock()
        try:
            self._lines.extend(self._splitter.feed(data))
        except LineTooLongError as error:
            return Ended(f"the watch is of no use: {error}")
        return None
