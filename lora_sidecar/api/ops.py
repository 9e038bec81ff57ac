"""The ops port: `/livez`, `/readyz`, `/serverz/NAME`, `/metrics`, `/status` and the page at `/`.

The trap guarded against is a health answer that proves nothing. Liveness says that heartbeats come to their end, and
nothing about the server, for a restart of this container mends no server. Readiness says that every required adapter is
listed by a server that is up. Any other path is a 404.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from lora_sidecar.api.document import BadQueryError, read_query
from lora_sidecar.api.metrics import Metrics
from lora_sidecar.api.page.page import Page
from lora_sidecar.api.page.timeline import read_window
from lora_sidecar.api.serverz import serverz
from lora_sidecar.api.status import document, encoded
from lora_sidecar.config.process import OpsConfig
from lora_sidecar.config.values import Fault, split_bind
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.errors import SidecarError
from lora_sidecar.status.adapters import AdapterState, withdrawn_of
from lora_sidecar.status.board import Board, ServerStatus, Snapshot, not_live, not_ready

_PAUSED = ConditionType.PAUSED
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def _is_fault(record: logging.LogRecord) -> bool:
    """Whether aiohttp speaks of a fault of ours: a peer that speaks no HTTP must not fill stderr with tracebacks."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


_LOG: Final = logging.getLogger(__name__)
_LOG.addFilter(_is_fault)


class OpsServer:
    """The listener of the ops port."""

    def __init__(
        self, config: OpsConfig, board: Board, metrics: Metrics, now: Callable[[], float], liveness: Callable[[], float]
    ) -> None:
        """`liveness` gives the longest age in seconds that the last heartbeat may have."""
        self._config = config
        self._board = board
        self._metrics = metrics
        self._now = now
        self._liveness = liveness
        # Tells this process's pages from those of the one before it, whose revisions were counted from 0, too.
        self._life = secrets.token_hex(4)
        self._runner: web.AppRunner | None = None
        self._template: Page | None = None

    async def start(self) -> None:
        """Listen. Raises `SidecarError` where the address cannot be had."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._scrape),
                serverz(self._board, self._now, self._liveness),
                web.get("/status", self._status),
                web.get("/", self._page),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5, logger=_LOG)
        await self._runner.setup()
        address = split_bind(self._config.bind)
        if isinstance(address, Fault):
            raise TypeError(f"ops.bind was accepted and is {address.rule}")
        host, port = address
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.close()
            hint = "another container of the pod may use this port: set ops.bind"
            raise SidecarError("listen on", self._config.bind, error.strerror or str(error), hint) from error

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, host:port each."""
        found = [] if self._runner is None else self._runner.addresses
        return tuple(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port, *_ in found)

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _look(self) -> Snapshot:
        return self._board.snapshot(self._now(), self._liveness())

    async def _livez(self, _: web.Request) -> web.Response:
        return _answer(not_live(self._look()))

    async def _readyz(self, request: web.Request) -> web.Response:
        snapshot = self._look()
        paused = [f"{s.name}: {c.message}" for s in snapshot.servers for c in s.conditions if c.type is _PAUSED]
        return _answer(not_ready(snapshot), paused + (_details(snapshot) if "verbose" in request.query else []))

    async def _scrape(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(self._look()), headers={"Content-Type": _METRICS_TYPE})

    async def _status(self, request: web.Request) -> web.Response:
        try:
            query = read_query(request.query)
        except BadQueryError as error:
            return _refused(error)
        body = encoded(document(self._look(), query))
        return web.Response(body=body, headers={"Content-Type": "application/json", **_UNCACHED})

    async def _page(self, request: web.Request) -> web.Response:
        try:
            query, window = read_query(request.query), read_window(request.query)
        except BadQueryError as error:
            return _refused(error)
        page = self._template = self._template or Page()
        snapshot = self._look()
        # What the page says changes with what is published, and with time where heartbeats stop.
        tag = f'"{self._life}-{snapshot.revision}-{len(not_live(snapshot))}"'
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={**page.headers, "ETag": tag})
        body = page.of(document(snapshot, query), query, window, tag)
        headers = {**page.headers, "Content-Type": "text/html; charset=utf-8", "ETag": tag}
        return web.Response(body=body, headers=headers)


_UNCACHED: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def _refused(error: BadQueryError) -> web.Response:
    return web.Response(text=f"{error}\n", status=400, headers=_UNCACHED)


def _answer(problems: Sequence[str], details: Sequence[str] = ()) -> web.Response:
    lines = ["ok" if not problems else "not ok", *problems, *details]
    return web.Response(text="\n".join(lines) + "\n", status=503 if problems else 200)


def _details(snapshot: Snapshot) -> list[str]:
    lines: list[str] = []
    for status in snapshot.servers:
        lines += _server(status)
    return lines + [f"condition {c.type.value}: {c.message} ({c.hint})" for c in snapshot.config_conditions]


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
    lines += [f"condition {c.type.value}: {c.message} ({c.hint})" for c in status.conditions]
    return lines
