"""The ops port: `/livez`, `/readyz`, `/serverz/NAME`, `/metrics`, `/status` and the page at `/`.

Three traps are guarded against. A health answer that proves nothing: liveness says that heartbeats come to their end,
and nothing about the server, for a restart of this container mends no server; readiness says that every required
adapter is listed by a server that is up. A good server ended for a fault of ours: `/serverz`, for the liveness probe of
that server's container, fails only for what is known now. And a scrape that holds up the heartbeat: it is written in a
thread, once for all who ask meanwhile. Any other path is a 404.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Generic, TypeVar

from aiohttp import web

from lora_sidecar.api.document import BadQueryError, read_query
from lora_sidecar.api.listener import Listener
from lora_sidecar.api.metrics import CONTENT_TYPE, Metrics
from lora_sidecar.api.page.page import Page
from lora_sidecar.api.page.timeline import read_window
from lora_sidecar.api.status import document, encoded, first
from lora_sidecar.config.process import OpsConfig
from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.text import printable
from lora_sidecar.status.adapters import AdapterState, withdrawn_of
from lora_sidecar.status.board import ServerStatus, Snapshot, not_live, not_ready
from lora_sidecar.threads import BlockingCall, NoThreadError

T = TypeVar("T")

CONNECTIONS: Final = 128
"""At a time: probes, scrapes and a few people."""

_THREAD_SECONDS: Final = 10.0
"""As long as Prometheus waits by default."""

_LINE_LIMIT: Final = 5000
_HINT: Final = "another container of the pod may use this port: set ops.bind"
_UNCACHED: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class _Shared(Generic[T]):
    """A call in a thread, whose result everybody gets who asks while it is under way."""

    def __init__(self, name: str) -> None:
        self._thread = BlockingCall(name)
        self._call: asyncio.Task[T] | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """What `function` returns. Raises `TimeoutError` where that takes longer than somebody waits."""
        if self._call is None or self._call.done():
            self._call = asyncio.create_task(self._run(function))
        return await asyncio.shield(self._call)

    async def _run(self, function: Callable[[], T]) -> T:
        try:
            return await self._thread.run(function, _THREAD_SECONDS)
        except NoThreadError:
            # Whoever looks for the reason needs to see something now.
            return function()


class OpsServer:
    """The listener of the ops port."""

    def __init__(self, config: OpsConfig, snapshot: Callable[[], Snapshot], metrics: Metrics) -> None:
        """`snapshot` gives the newest one."""
        self._snapshot = snapshot
        self._metrics = metrics
        self._scrapes = _Shared[bytes]("metrics")
        self._pages = _Shared[Page]("page")
        self._page: Page | None = None
        # Tells this process's pages from those of the one before it, whose revisions were counted from 0, too.
        self._process = secrets.token_hex(4)
        app = web.Application()
        app.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/serverz/{name}", self._serverz),
                web.get("/metrics", self._scrape),
                web.get("/status", self._status),
                web.get("/", self._show),
            ]
        )
        self._listener = Listener(app, config.bind, _HINT, CONNECTIONS)

    async def start(self) -> None:
        """Listen. Raises `SidecarError` where the address cannot be had."""
        await self._listener.start()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, host:port each."""
        return self._listener.addresses

    async def run(self) -> None:
        """Look after the connections, for ever."""
        await self._listener.run()

    async def close(self) -> None:
        """Stop listening."""
        await self._listener.close()

    async def _livez(self, _: web.Request) -> web.Response:
        return _answer(not_live(self._snapshot()))

    async def _readyz(self, request: web.Request) -> web.Response:
        snapshot = self._snapshot()
        paused = [
            f"{status.name}: {held.message}"
            for status in snapshot.servers
            for held in status.conditions
            if held.type is ConditionType.PAUSED
        ]
        if "verbose" in request.query:
            return _answer(not_ready(snapshot), (*paused, *_details(snapshot)))
        return _answer(first(not_ready(snapshot)), paused)

    async def _serverz(self, request: web.Request) -> web.Response:
        name, snapshot = request.match_info["name"], self._snapshot()
        status = next((one for one in snapshot.servers if one.name == name), None)
        if status is None:
            return web.Response(text=f"the config names no server {name[:64]!r}\n", status=404)
        age = snapshot.at - status.beat_at
        if not status.beats:
            return _answer((), ("no heartbeat has ended yet",))
        if age > snapshot.liveness:
            return _answer((), (f"unknown: the last heartbeat ended {age:.0f} s ago",))
        return _answer((f"{name}: {status.failing}",) if status.failing else ())

    async def _scrape(self, _: web.Request) -> web.Response:
        try:
            body = await self._scrapes.run(partial(self._metrics.text, self._snapshot()))
        except TimeoutError:
            return web.Response(text=f"not written within {_THREAD_SECONDS:g} s\n", status=503)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _status(self, request: web.Request) -> web.Response:
        try:
            query = read_query(request.query)
        except BadQueryError as error:
            return _refused(error)
        body = encoded(document(self._snapshot(), query))
        return web.Response(body=body, headers={"Content-Type": "application/json", **_UNCACHED})

    async def _show(self, request: web.Request) -> web.Response:
        try:
            query, window = read_query(request.query), read_window(request.query)
        except BadQueryError as error:
            return _refused(error)
        page = self._page = self._page or await self._pages.run(Page)
        snapshot = self._snapshot()
        # What the page says changes with what is published, and with time where heartbeats stop.
        tag = f'"{self._process}-{snapshot.revision}-{len(not_live(snapshot))}"'
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={**page.headers, "ETag": tag})
        body = page.of(document(snapshot, query), query, window, tag)
        headers = {**page.headers, "Content-Type": "text/html; charset=utf-8", "ETag": tag}
        return web.Response(body=body, headers=headers)


def _refused(error: BadQueryError) -> web.Response:
    return web.Response(text=f"{error}\n", status=400, headers=_UNCACHED)


def _answer(problems: Iterable[str], details: Iterable[str] = ()) -> web.Response:
    wrong = tuple(problems)
    lines = ("not ok" if wrong else "ok", *wrong, *details)
    text = "".join(f"{printable(line, _LINE_LIMIT)}\n" for line in lines)
    return web.Response(text=text, status=503 if wrong else 200)


def _details(snapshot: Snapshot) -> list[str]:
    lines: list[str] = []
    for status in snapshot.servers:
        lines += _server(status)
    return lines + [_condition(held) for held in snapshot.config_conditions]


def _server(status: ServerStatus) -> list[str]:
    server = status.work.server
    why = f": {server.reason.value}, {server.detail}" if server.reason is not None else ""
    lines = [f"server {status.name}: {server.phase.value}{why}"]
    for one in status.adapters:
        required = ", required" if one.adapter.required else ""
        proven = ", proven" if one.proven else ""
        reason = one.reason and f": {one.reason}"
        kind = f"{one.adapter.origin.value}{required}{proven}"
        lines.append(f"adapter {one.adapter.name} ({kind}): {one.state.value}{reason}")
    for gone in withdrawn_of(status.desired):
        kind = "declared" if gone.declared is not None else "by request"
        lines.append(f"adapter {gone.name} ({kind}): {AdapterState.WITHDRAWN.value}: {gone.reason}")
    return lines + [_condition(held) for held in status.conditions]


def _condition(held: Condition) -> str:
    return f"condition {held.type.value}: {held.message} ({held.hint})"
