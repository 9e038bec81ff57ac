"""Plain requests to an API server, apart from the product's client."""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from msgspec import Struct

from tests.support.kube_api import NAMESPACE, KubeApi

CONFIG_MAPS = f"{NAMESPACE}/configmaps"
MERGE = "application/merge-patch+json"


class Answer(Struct, frozen=True):
    """An answer: its status and its JSON."""

    status: int
    body: dict[str, Any]

    @property
    def version(self) -> str:
        """The resourceVersion of what was answered."""
        version: str = self.body["metadata"]["resourceVersion"]
        return version


class Stream:
    """An open watch."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self, seconds: float = 10.0) -> dict[str, Any]:
        """The next event but bookmarks. Raises `TimeoutError`, and `EOFError` where the stream has ended."""
        async with asyncio.timeout(seconds):
            while (event := await self.any())["type"] == "BOOKMARK":
                pass
            return event

    async def any(self) -> dict[str, Any]:
        """The next event."""
        line = await self.response.content.readline()
        if not line:
            raise EOFError
        event: dict[str, Any] = json.loads(line)
        return event


class Caller:
    """Somebody with a token."""

    def __init__(self, session: aiohttp.ClientSession, kube: KubeApi, token: str) -> None:
        self._session = session
        self._kube = kube
        self._tls = ssl.create_default_context(cadata=kube.ca)
        self.token = token

    async def ask(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", **query: str
    ) -> Answer:
        """Send one request."""
        async with asyncio.timeout(20), self._request(method, path, body, content_type, query) as response:
            return Answer(response.status, await response.json())

    async def patch(self, name: str, body: dict[str, Any]) -> Answer:
        """A merge patch."""
        return await self.ask("PATCH", f"{CONFIG_MAPS}/{name}", body, MERGE)

    async def create(self, name: str, data: dict[str, str] | None = None) -> Answer:
        """Make a ConfigMap; without any field of its own its managers would not be tracked."""
        metadata = {"name": name, "labels": {"app.kubernetes.io/name": "lora-sidecar"}}
        return await self.ask("POST", CONFIG_MAPS, {"metadata": metadata, "data": data or {}})

    @asynccontextmanager
    async def watch(self, name: str | None, since: str, seconds: int = 300) -> AsyncIterator[Stream]:
        """Watch one name, or all."""
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": since}
        query |= {"timeoutSeconds": str(seconds)} | ({"fieldSelector": f"metadata.name={name}"} if name else {})
        async with self._request("GET", CONFIG_MAPS, None, "application/json", query) as response:
            yield Stream(response)

    def _request(
        self, method: str, path: str, body: Any, content_type: str, query: dict[str, str]
    ) -> aiohttp.client._RequestContextManager:
        data = None if body is None else io.BytesIO(json.dumps(body).encode())
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content_type}
        url = self._kube.url + path
        return self._session.request(method, url, data=data, headers=headers, params=query, ssl=self._tls)


async def until(status: int, ask: Callable[[], Awaitable[Answer]], seconds: float = 20.0) -> None:
    """Ask again and again until the answer has this status. Raises `TimeoutError`."""
    async with asyncio.timeout(seconds):
        while True:
            if (await ask()).status == status:
                return
            await asyncio.sleep(0.02)
