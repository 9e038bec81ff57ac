"""The control port: adapters loaded and unloaded by request, remembered across restarts; pause and resume.

Three traps are guarded against. A second owner of state: a request is handed to the watch of its server, and nothing
else happens here. An open door: without the token nothing is even read, and the body must be declared as JSON, which no
web page can send to another origin unasked. And a client that does not end: bodies, requests and their time are
bounded.

Answers are vLLM's (0.32.0) where vLLM has one: status, text and the shape of errors.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from lora_sidecar.api import control_bodies as bodies
from lora_sidecar.api.control_bodies import InvalidBodyError
from lora_sidecar.api.listener import Listener
from lora_sidecar.api.status import control_document, pause_view
from lora_sidecar.api.token import Token
from lora_sidecar.config.process import ControlConfig
from lora_sidecar.control.queue import RequestQueue
from lora_sidecar.control.requests import Answer, Pause, Request, Resume
from lora_sidecar.log import dates
from lora_sidecar.status.board import Snapshot

BODY_CAP: Final = 64 * 1024
BODY_SECONDS: Final = 10.0
REQUESTS: Final = 256
PATIENCE: Final = 60.0
"""Seconds that anything but a load is waited for."""

_PREFIXES: Final = ("", "/servers/{server}")
_HINT: Final = "another container of the pod may use this port: set control.bind"

# aiohttp gives every answer a content type: the engine's successes have none, and this marks those.
_NO_TYPE: Final = "application/octet-stream"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _is_fault(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


_LOG: Final = logging.getLogger(__name__)
_LOG.addFilter(_is_fault)


class _RefusedError(Exception):
    """A request that is answered without having been carried out."""

    def __init__(self, answer: Answer, param: str | None = None) -> None:
        super().__init__(answer.message)
        self.answer = answer
        self.param = param


class ControlServer:
    """The listener of the control port."""

    def __init__(
        self,
        config: ControlConfig,
        look: Callable[[], Snapshot],
        desks: Mapping[str, RequestQueue],
        now: Callable[[], float],
        load_deadline: Callable[[], float],
    ) -> None:
        """`look` gives the newest snapshot, `load_deadline` a load's seconds; `desks` has each server's by name."""
        self._look = look
        self._desks = desks
        self._now = now
        self._load_deadline = load_deadline
        self._token = None if config.token_file is None else Token(config.token_file, now)
        app = web.Application(middlewares=[self._serve], client_max_size=BODY_CAP)
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
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=0.5, logger=_LOG, auto_decompress=False
        )
        self._listener = Listener(runner, config.bind, _HINT)

    async def start(self) -> None:
        """Listen. Raises `SidecarError` where the address cannot be had."""
        await self._listener.start()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, host:port each."""
        return self._listener.addresses

    async def run(self) -> None:
        """Look after the connections, for ever."""
        await self._listener.sweep()

    async def close(self) -> None:
        """Stop listening."""
        await self._listener.close()

    @web.middleware
    async def _serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        full = self._listener.requests >= REQUESTS
        self._listener.begin(request)
        try:
            response = _busy() if full else await self._answered(request, handler)
        finally:
            self._listener.end(request)
        # One request a connection: an idle one could be closed just as its next request is written.
        response.force_close()
        return response

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            await self._authorize(request)
            return await handler(request)
        except web.HTTPMethodNotAllowed as refusal:
            allowed = {"Allow": ", ".join(sorted(refusal.allowed_methods))}
            return _json({"detail": "Method Not Allowed"}, 405, allowed)
        except web.HTTPNotFound:
            return _moved(request) or _json({"detail": "Not Found"}, 404)
        except web.HTTPRequestEntityTooLarge:
            return _error(Answer(413, f"The body has more than {BODY_CAP} bytes.", "Bad Request"))
        except InvalidBodyError as error:
            return _error(Answer(400, error.message, error.kind), error.param)
        except _RefusedError as error:
            return _error(error.answer, error.param) if error.answer.kind else _unauthorized()

    async def _authorize(self, request: web.Request) -> None:
        if self._token is None or await self._token.allows(request.headers.get("Authorization", "")):
            return
        if self._token.problem:
            sentence = f"control.token_file cannot be used: {self._token.problem}. Nobody is let in until it can."
            raise _RefusedError(Answer(503, sentence, "ServiceUnavailable"))
        raise _RefusedError(Answer(401, "Unauthorized"))

    async def _load(self, request: web.Request) -> web.StreamResponse:
        intent = bodies.load(await _document(request))
        return await self._carry_out(request, intent, self._load_deadline())

    async def _unload(self, request: web.Request) -> web.StreamResponse:
        return await self._carry_out(request, bodies.unload(await _document(request)), PATIENCE)

    async def _carry_out(self, request: web.Request, intent: Request, deadline: float) -> web.StreamResponse:
        (name,) = self._named(request, every=False)
        return _response(await self._desk(name).submit(intent, deadline))

    async def _pause(self, request: web.Request) -> web.StreamResponse:
        return await self._on_each(request, bodies.pause(await _document(request)))

    async def _resume(self, request: web.Request) -> web.StreamResponse:
        await _body(request)
        return await self._on_each(request, Resume())

    async def _on_each(self, request: web.Request, intent: Pause | Resume) -> web.StreamResponse:
        desks = [self._desk(name) for name in self._named(request, every=True)]
        answers = await asyncio.gather(*(desk.submit(intent, PATIENCE) for desk in desks))
        failed = next((answer for answer in answers if answer.kind), None)
        return await self._pauses(request) if failed is None else _error(failed)

    async def _pauses(self, request: web.Request) -> web.StreamResponse:
        names = self._named(request, every=True)
        return _json({"servers": [pause_view(status) for status in self._look().servers if status.name in names]})

    async def _adapters(self, request: web.Request) -> web.StreamResponse:
        names = self._named(request, every=True)
        statuses = [status for status in self._look().servers if status.name in names]
        return _json(control_document(statuses, dates(self._now())))

    def _named(self, request: web.Request, *, every: bool) -> tuple[str, ...]:
        """The server that a request names, by path or query; where it names none, the only one, or `every` one."""
        given = {value for value in (request.match_info.get("server"), request.query.get("server")) if value}
        known = tuple(self._desks)
        if len(given) > 1:
            raise _RefusedError(Answer(400, "The path and the query name different servers.", "InvalidUserInput"))
        if not given and (every or len(known) == 1):
            return known
        shown = ", ".join(known)
        if not given:
            sentence = f"There are several servers: name one, as in /servers/NAME/v1/… or ?server=NAME. Known: {shown}."
            raise _RefusedError(Answer(400, sentence, "InvalidUserInput"), "server")
        if given & set(known):
            return tuple(given)
        raise _RefusedError(Answer(404, f"There is no such server. Known: {shown}.", "NotFoundError"), "server")

    def _desk(self, name: str) -> RequestQueue:
        return self._desks[name]


async def _document(request: web.Request) -> object:
    return bodies.document(request.headers.get("Content-Type", ""), await _body(request))


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        sentence = f"The body did not arrive within {BODY_SECONDS:g} s."
        raise _RefusedError(Answer(408, sentence, "Bad Request")) from None


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
    frame = {"message": answer.message, "type": answer.kind, "param": param, "code": answer.status}
    headers = {"Retry-After": "1"} if answer.status == 503 else {}  # noqa: PLR2004 - the status is the point
    return _json({"error": frame}, answer.status, headers)


def _unauthorized() -> web.Response:
    return _json({"error": "Unauthorized"}, 401, {"WWW-Authenticate": "Bearer"})


def _busy() -> web.Response:
    return _error(Answer(503, f"{REQUESTS} requests are under way: nothing was changed.", "ServiceUnavailable"))


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    try:
        body = msgspec.json.encode(value)
    except UnicodeEncodeError:
        # Half a surrogate pair in a name that a server listed.
        body = msgspec.json.encode(_mended(value))
    return web.Response(body=body, status=status, headers={"Content-Type": "application/json", **(headers or {})})


def _mended(value: object) -> object:
    match value:
        case dict():
            return {key: _mended(item) for key, item in value.items()}
        case list():
            return [_mended(item) for item in value]
        case str():
            return value.encode("utf-8", "replace").decode()
        case _:
            return value


def _moved(request: web.Request) -> web.Response | None:
    """The redirect that the engine gives for a slash too many, None where there is no such path."""
    bare = request.path.rstrip("/")
    if bare == request.path or _PATH.fullmatch(bare) is None:
        return None
    return web.Response(status=307, headers={"Location": str(request.rel_url.with_path(bare, keep_query=True))})


_PATH: Final = re.compile("(/servers/[^/]+)?/v1/(load_lora_adapter|unload_lora_adapter|adapters|pause|resume)")
