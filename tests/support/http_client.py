"""A plain HTTP client for tests: what a server says, byte for byte, read by none of the code under test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp
from msgspec import Struct


class Reply(Struct, frozen=True):
    """One whole answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        """The body as JSON. Raises `ValueError`."""
        return json.loads(self.text)


class Api:
    """Asks one server; a connection serves one request, so that none outlives the server's patience."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None = None) -> None:
        self._session = session
        self.url = url
        self._headers = {"Authorization": f"Bearer {key}"} if key is not None else {}

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        within: float = 30.0,
    ) -> Reply:
        """Send one request, `body` as JSON or `data` as it is. Raises `aiohttp.ClientError` and `TimeoutError`."""
        sent = self._headers | {"Connection": "close"}
        if body is not None:
            data = json.dumps(body).encode()
        if data is not None:
            sent["Content-Type"] = "application/json"
        async with self._session.request(
            method,
            self.url + path,
            data=data,
            headers=sent | dict(headers or {}),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=within),
        ) as response:
            received = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, received, await response.text())

    async def get(self, path: str, within: float = 30.0) -> Reply:
        """Send a GET; raises as `ask` does."""
        return await self.ask("GET", path, within=within)

    async def load(self, name: str, path: object, within: float = 30.0, **more: Any) -> Reply:
        """Ask for a load; raises as `ask` does."""
        body = {"lora_name": name, "lora_path": str(path)} | more
        return await self.ask("POST", "/v1/load_lora_adapter", body=body, within=within)

    async def unload(self, name: str) -> Reply:
        """Ask for an unload; raises as `ask` does."""
        return await self.ask("POST", "/v1/unload_lora_adapter", body={"lora_name": name})

    async def complete(self, model: str, within: float = 30.0) -> Reply:
        """Ask for two tokens; raises as `ask` does."""
        body = {"model": model, "prompt": "hi", "max_tokens": 2, "temperature": 0}
        return await self.ask("POST", "/v1/completions", body=body, within=within)

    async def cards(self) -> list[dict[str, Any]]:
        """The cards of a listing; raises as `ask` does."""
        cards: list[dict[str, Any]] = (await self.get("/v1/models")).json()["data"]
        return cards

    async def listed(self) -> dict[str, str]:
        """The listed adapters, name to root, in the listing's order; raises as `ask` does."""
        return {card["id"]: card["root"] for card in await self.cards() if card["parent"] is not None}
