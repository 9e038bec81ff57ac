"""The ops port: `/livez`, `/readyz`, `/serverz/NAME` and `/metrics`.

The trap guarded against is a health answer that proves nothing. Liveness says that heartbeats come to their end, and
nothing about the server, for a restart of this container mends no server. Readiness says that every required adapter is
listed by a server that is up. Any other path is a 404.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from lora_sidecar.config import OpsConfig
from lora_sidecar.config_values import Fault, split_bind
from lora_sidecar.errors import SidecarError
from lora_sidecar.ops.metrics import Metrics
from lora_sidecar.ops.serverz import serverz
from lora_sidecar.status import Board, ServerStatus, adapters_of, unready

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
        self._started_at = now()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises `SidecarError` where the address cannot be had."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._scrape),
                serverz(self._board, self._now, self._liveness),
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

    async def _livez(self, _: web.Request) -> web.Response:
        limit = self._liveness()
        stalled = [
            f"{status.name}: the last heartbeat ended {age:.1f} s ago, the limit is {limit:g} s"
            for status in self._board.statuses()
            if (age := self._now() - status.beat_at) > limit
        ]
        waited = self._now() - self._started_at
        if waited > limit:
            stalled += [f"{name}: no heartbeat has ended within {waited:.1f} s" for name in self._board.awaited()]
        return _answer(stalled)

    async def _readyz(self, request: web.Request) -> web.Response:
        waiting = [f"{name}: no heartbeat has ended yet" for name in self._board.awaited()]
        for status in self._board.statuses():
            waiting += unready(status)
        details = _details(self._board) if "verbose" in request.query else []
        return _answer(waiting, details)

    async def _scrape(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": _METRICS_TYPE})


def _answer(problems: list[str], details: list[str] | None = None) -> web.Response:
    lines = ["ok" if not problems else "not ok", *problems, *(details or [])]
    return web.Response(text="\n".join(lines) + "\n", status=503 if problems else 200)


def _details(board: Board) -> list[str]:
    lines: list[str] = []
    for status in board.statuses():
        lines += _server(status)
    return lines + [f"condition {c.type.value}: {c.message} ({c.hint})" for c in board.config_conditions]


def _server(status: ServerStatus) -> list[str]:
    server = status.work.server
    why = f": {server.reason.value}, {server.detail}" if server.reason is not None else ""
    lines = [f"server {status.name}: {server.phase.value}{why}"]
    for one in adapters_of(status):
        required = ", required" if one.adapter.required else ""
        reason = one.reason and f": {one.reason}"
        lines.append(f"adapter {one.adapter.name} ({one.adapter.origin.value}{required}): {one.state.value}{reason}")
    lines += [f"condition {c.type.value}: {c.message} ({c.hint})" for c in status.conditions]
    return lines
