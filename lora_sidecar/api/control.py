"""The control port: adapters loaded and unloaded by request, remembered across restarts; pause and resume.

Three traps are guarded against. A second owner of state: a request is handed to the queue of its server, and nothing
else happens here. An open door: without the token nothing is even read, and no web page gets in: a browser says where a
request comes from, and under which name it found this port. And a client that does not end: bodies, requests and their
time are bounded.

Answers are vLLM's (0.32.0) where vLLM has one: status, text and the shape of errors.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from aiohttp import web

from lora_sidecar.api import control_bodies as bodies
from lora_sidecar.api.control_bodies import BAD_INPUT, BAD_REQUEST, RefusedError
from lora_sidecar.api.listener import Handler, Listener
from lora_sidecar.api.status import control_document, pause_view
from lora_sidecar.api.token import Token
from lora_sidecar.config.process import ControlConfig
from lora_sidecar.config.values import Fault, split_bind
from lora_sidecar.control.queue import RequestQueue
from lora_sidecar.control.requests import Answer, Pause, Request, Resume
from lora_sidecar.core.text import encodable
from lora_sidecar.log import dates
from lora_sidecar.status.board import Snapshot

CONNECTIONS: Final = 512
BODY_CAP: Final = 64 * 1024
BODY_SECONDS: Final = 10.0
PATIENCE: Final = 60.0
"""Seconds that anything but a load is waited for."""

_PREFIXES: Final = ("", "/servers/{server}")
_HINT: Final = "another container of the pod may use this port: set control.bind"
_FORBIDDEN: Final = "Forbidden"
_UNAVAILABLE: Final = "ServiceUnavailable"

# aiohttp gives every answer a content type: the engine's successes have none, and this marks those.
_NO_TYPE: Final = "application/octet-stream"


class ControlServer:
    """The listener of the control port."""

    def __init__(
        self,
        config: ControlConfig,
        snapshot: Callable[[], Snapshot],
        queues: Mapping[str, RequestQueue],
        now: Callable[[], float],
        load_deadline: Callable[[], float],
    ) -> None:
        """`snapshot` gives the newest one, `load_deadline` a load's seconds; `queues` has each server's by name."""
        self._snapshot = snapshot
        self._queues = queues
        self._now = now
        self._load_deadline = load_deadline
        self._token = None if config.token_file is None else Token(config.token_file, now)
        address = split_bind(config.bind)
        self._host = "" if isinstance(address, Fault) else address[0]
        app = web.Application(middlewares=[self._answered], client_max_size=BODY_CAP)
        for path, methods in {
            "/v1/load_lora_adapter": {"POST": self._load},
            "/v1/unload_lora_adapter": {"POST": self._unload},
            "/v1/adapters": {"GET": self._adapters},
            "/v1/pause": {"GET": self._pauses, "POST": self._pause},
            "/v1/resume": {"POST": self._resume},
        }.items():
            for prefix in _PREFIXES:
                for method, handler in methods.items():
                    app.router.add_route(method, prefix + path, handler)
        app.on_response_prepare.append(_untyped)
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

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            await self._let_in(request)
            return await handler(request)
        except web.HTTPMethodNotAllowed as refusal:
            allowed = {"Allow": ", ".join(sorted(refusal.allowed_methods))}
            return _json({"detail": "Method Not Allowed"}, 405, allowed)
        except web.HTTPNotFound:
            return _moved(request) or _json({"detail": "Not Found"}, 404)
        except web.HTTPRequestEntityTooLarge:
            return _error(Answer(413, f"The body has more than {BODY_CAP} bytes.", BAD_REQUEST))
        except RefusedError as error:
            return _error(error.answer, error.param) if error.answer.kind else _unauthorized()

    async def _let_in(self, request: web.Request) -> None:
        """Raise `RefusedError` where too many requests are under way, for a web page, and without the token.

        A browser sends the origin of a page with each request to another one. A page whose own name leads here (DNS
        rebinding) asks its own origin; what tells it is the name.
        """
        if self._listener.is_crowded:
            raise RefusedError(Answer(503, "Too many requests are under way: nothing was changed.", _UNAVAILABLE))
        if "Origin" in request.headers:
            sentence = "The request comes from a web page (it has an Origin), which may not use the control port."
            raise RefusedError(Answer(403, sentence, _FORBIDDEN))
        host = request.headers.get("Host", "")
        if self._token is None and host and not _is_here(host, self._host):
            sentence = f"The Host of the request is {encodable(host[:256])}: use a loopback address, or set a token."
            raise RefusedError(Answer(403, sentence, _FORBIDDEN))
        if self._token is None or await self._token.allows(request.headers.get("Authorization", "")):
            return
        if self._token.problem:
            sentence = f"control.token_file cannot be used: {self._token.problem}. Nobody is let in until it can."
            raise RefusedError(Answer(503, sentence, _UNAVAILABLE))
        raise RefusedError(Answer(401, "Unauthorized"))

    async def _load(self, request: web.Request) -> web.StreamResponse:
        return await self._carry_out(request, bodies.load(await _body(request)), self._load_deadline())

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        return await self._carry_out(request, bodies.unload(await _body(request)), PATIENCE)

    async def _carry_out(self, request: web.Request, asked: Request, deadline: float) -> web.StreamResponse:
        (name,) = self._named(request, every=False)
        return _response(await self._queues[name].submit(asked, deadline))

    async def _pause(self, request: web.Request) -> web.StreamResponse:
        return await self._on_each(request, bodies.pause(await _body(request)))

    async def _resume(self, request: web.Request) -> web.StreamResponse:
        await _body(request)
        return await self._on_each(request, Resume())

    async def _on_each(self, request: web.Request, asked: Pause | Resume) -> web.StreamResponse:
        queues = [self._queues[name] for name in self._named(request, every=True)]
        answers = await asyncio.gather(*(queue.submit(asked, PATIENCE) for queue in queues))
        failed = next((answer for answer in answers if answer.kind), None)
        return await self._pauses(request) if failed is None else _error(failed)

    async def _pauses(self, request: web.Request) -> web.StreamResponse:
        names = self._named(request, every=True)
        return _json({"servers": [pause_view(one) for one in self._snapshot().servers if one.name in names]})

    async def _adapters(self, request: web.Request) -> web.StreamResponse:
        names = self._named(request, every=True)
        statuses = [status for status in self._snapshot().servers if status.name in names]
        return _json(control_document(statuses, dates(self._now())))

    def _named(self, request: web.Request, *, every: bool) -> tuple[str, ...]:
        """The server that a request names, by path or query; where it names none, the only one, or `every` one."""
        given = {value for value in (request.match_info.get("server"), request.query.get("server")) if value}
        known = tuple(self._queues)
        if len(given) > 1:
            raise RefusedError(Answer(400, "The path and the query name different servers.", BAD_INPUT))
        if not given and (every or len(known) == 1):
            return known
        shown = ", ".join(known)
        if not given:
            sentence = f"There are several servers: name one, as in /servers/NAME/v1/… or ?server=NAME. Known: {shown}."
            raise RefusedError(Answer(400, sentence, BAD_INPUT), "server")
        if given & set(known):
            return tuple(given)
        raise RefusedError(Answer(404, f"There is no such server. Known: {shown}.", "NotFoundError"), "server")


async def _body(request: web.Request) -> bytes:
    """The body of a request. Raises `RefusedError` where it is not declared to be JSON, or does not come."""
    if request.headers.get("Content-Type", "").lower().split(";", maxsplit=1)[0] != "application/json":
        raise RefusedError(Answer(400, "The body must be declared as application/json.", BAD_REQUEST))
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        sentence = f"The body did not arrive within {BODY_SECONDS:g} s."
        raise RefusedError(Answer(408, sentence, BAD_REQUEST)) from None


def _is_here(host: str, bound: str) -> bool:
    """Whether the host of a request, maybe with a port, is this machine's loopback or the address listened on."""
    name = re.sub(r":\d+$", "", host).strip("[]").lower()
    try:
        return name in ("localhost", bound) or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _response(answer: Answer) -> web.Response:
    if answer.body:
        response = web.Response(body=answer.body, status=answer.status)
        response.headers["Content-Type"] = "application/json" if answer.body.startswith(b"{") else "text/plain"
        return response
    if answer.kind:
        return _error(answer)
    response = web.Response(text=answer.message, status=answer.status)
    if answer.status == 200:  # noqa: PLR2004 - the status is the point
        response.headers["Content-Type"] = _NO_TYPE
    return response


async def _untyped(request: web.Request, response: web.StreamResponse) -> None:
    del request
    if response.headers.get("Content-Type", "").startswith(_NO_TYPE):
        del response.headers["Content-Type"]


def _error(answer: Answer, param: str | None = None) -> web.Response:
    frame = {"message": encodable(answer.message), "type": answer.kind, "param": param, "code": answer.status}
    headers = {"Retry-After": "1"} if answer.status == 503 else {}  # noqa: PLR2004 - the status is the point
    return _json({"error": frame}, answer.status, headers)


def _unauthorized() -> web.Response:
    return _json({"error": "Unauthorized"}, 401, {"WWW-Authenticate": "Bearer"})


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, headers={"Content-Type": "application/json", **(headers or {})})


def _moved(request: web.Request) -> web.Response | None:
    """The redirect that the engine gives for a slash too many, None where there is no such path."""
    bare = request.path.rstrip("/")
    if bare == request.path or _PATH.fullmatch(bare) is None:
        return None
    return web.Response(status=307, headers={"Location": str(request.rel_url.with_path(bare, keep_query=True))})


_PATH: Final = re.compile("(/servers/[^/]+)?/v1/(load_lora_adapter|unload_lora_adapter|adapters|pause|resume)")
