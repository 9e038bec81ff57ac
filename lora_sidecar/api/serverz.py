"""`/serverz/NAME`: the health of a server as the sidecar knows it, for the liveness probe of that server's container.

The trap guarded against is a good server ended for a fault of ours. Only what is known now, of a heartbeat that has
come to its end lately, makes it fail; whatever is unknown is a 200.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from lora_sidecar.status.board import Board


def serverz(board: Board, now: Callable[[], float], liveness: Callable[[], float]) -> web.RouteDef:
    """The route; `liveness` gives the age in seconds beyond which a heartbeat says nothing any more."""

    async def answer(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        status = next((one for one in board.statuses() if one.name == name), None)
        if status is None:
            return web.Response(text=f"the config names no server {name[:64]!r}\n", status=404)
        if not status.beats:
            return web.Response(text="ok\nno heartbeat has ended yet\n")
        age = now() - status.beat_at
        if age > liveness():
            return web.Response(text=f"ok\nunknown: the last heartbeat ended {age:.0f} s ago\n")
        if status.failing:
            return web.Response(text=f"not ok\n{name}: {status.failing}\n", status=503)
        return web.Response(text="ok\n")

    return web.get("/serverz/{name}", answer)
