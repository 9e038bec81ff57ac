"""Answers that a test puts in the place of the fake server's own: for servers that misbehave.

The trap guarded against is a misbehaviour that only a mock can show: these go over the same socket as the rest.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from http.client import responses
from typing import Any

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def canned(
    status: int = 200,
    body: bytes | str | dict[str, Any] | list[Any] = b"",
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
    delay: float = 0.0,
) -> Answer:
    """Make an override: answer with this after `delay` seconds; a body that is no text or bytes is written as JSON."""
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()

    async def answer(request: web.Request) -> web.StreamResponse:
        del request
        await asyncio.sleep(delay)
        reason = responses.get(status, "Unknown")
        return web.Response(
            body=raw, status=status, reason=reason, headers={"Content-Type": content_type} | dict(headers or {})
        )

    return answer


async def hang(request: web.Request) -> web.StreamResponse:
    """Never answer (an override)."""
    del request
    await asyncio.Event().wait()
    return web.Response()


async def hang_up(request: web.Request) -> web.StreamResponse:
    """Close the connection instead of answering (an override)."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
