"""The fake server's routes: what vLLM answers on each, header by header, in the dialect of one version.

The trap guarded against is a fake that is tidier than the server. `/health` and `/v1/models` answer while the engine
hangs, a load's success has no content type, an api key guards only what lies under `/v1`, and `created` is new in
every listing. Not here: chat, streams, tokenizing, `/server_info`, and the SageMaker form of the adapter routes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from aiohttp import web
from msgspec import Struct

from tests.fakes.dialect import Dialect
from tests.fakes.engine import DEAD, EngineDeadError, FakeEngine, LoadFailedError, Registry
from tests.fakes.metrics import metrics_text
from tests.fakes.overrides import Answer
from tests.fakes.requests import (
    InvalidRequestError,
    completion_request,
    detail_response,
    error_response,
    json_body,
    json_response,
    load_request,
    unload_request,
)

_REMEMBERED = 20_000


class Received(NamedTuple):
    """One request as it came in; `path` has the query with it."""

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]


class ServedModel(Struct, frozen=True):
    """What the server was started with, as far as its answers show it."""

    names: tuple[str, ...]
    root: str
    max_model_len: int
    max_loras: int
    dialect: Dialect
    api_keys: tuple[str, ...]


class Routes:
    """Answers the requests of one life of the server.

    `requests` has those received, without the oldest where there are very many. `overrides` has, by method and path,
    the answers to be given instead of the usual one, with how often each still is (None: always). `ending` is set
    when a request met the dead engine.
    """

    def __init__(
        self, model: ServedModel, engine: FakeEngine, start_time: float, max_listed: int | None = None
    ) -> None:
        self.model = model
        self.engine = engine
        self.start_time = start_time
        self.max_listed = max_listed
        self.registry = Registry()
        self.requests: list[Received] = []
        self.overrides: dict[tuple[str, str], tuple[Answer, int | None]] = {}
        self.handlers: set[asyncio.Task[Any]] = set()
        self.ending = asyncio.Event()
        self._started = asyncio.get_running_loop().time()
        self._lora_requests: set[str] = set()
        self._paths: set[str] = set()

    def application(self, *, runtime_lora: bool, dev_mode: bool) -> web.Application:
        """Build the application with the routes that a server started so would have."""
        routes = [
            web.get("/health", self._health, allow_head=False),
            web.get("/ping", self._health, allow_head=False),
            web.post("/ping", self._health),
            web.get("/version", self._version, allow_head=False),
            web.get("/load", self._server_load, allow_head=False),
            web.get("/metrics", self._metrics, allow_head=False),
            web.get("/v1/models", self._models, allow_head=False),
            web.post("/v1/completions", self._complete),
        ]
        if runtime_lora:
            routes += [
                web.post("/v1/load_lora_adapter", self._load),
                web.post("/v1/unload_lora_adapter", self._unload),
            ]
        if dev_mode:
            routes += [
                web.get("/is_sleeping", self._is_sleeping, allow_head=False),
                web.post("/sleep", self._sleep),
                web.post("/wake_up", self._wake_up),
            ]
        if self.model.dialect.has_pause and (dev_mode or not self.model.dialect.guards_pause):
            routes += [
                web.get("/is_paused", self._is_paused, allow_head=False),
                web.post("/pause", self._pause),
                web.post("/resume", self._resume),
            ]
        app = web.Application(middlewares=[self._serve], client_max_size=1 << 30)
        app.add_routes(routes)
        self._paths = {route.path for route in routes}
        app.on_response_prepare.append(_as_uvicorn)
        return app

    @property
    def now(self) -> float:
        """Unix seconds, counted on from the start by the loop's clock."""
        return self.start_time + asyncio.get_running_loop().time() - self._started

    @web.middleware
    async def _serve(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        task = asyncio.current_task()
        if task is not None:
            self.handlers.add(task)
        try:
            self.requests.append(Received(request.method, request.path_qs, await request.read(), request.headers))
            if len(self.requests) > _REMEMBERED:
                del self.requests[: _REMEMBERED // 2]
            if (override := self._override(request)) is not None:
                return await override(request)
            if not self._authorized(request):
                return json_response({"error": "Unauthorized"}, 401)
            response = await self._route(request, handler)
            if self.model.dialect.varies:
                response.headers["Vary"] = "Origin"
            return response
        finally:
            if task is not None:
                self.handlers.discard(task)

    def _override(self, request: web.Request) -> Answer | None:
        key = (request.method, request.path)
        answer, left = self.overrides.get(key, (None, None))
        if answer is None or left is None:
            return answer
        if left > 1:
            self.overrides[key] = (answer, left - 1)
        else:
            del self.overrides[key]
        return answer

    def _authorized(self, request: web.Request) -> bool:
        if not self.model.api_keys or not request.path.startswith(("/v1", "/v2", "/inference", "/cohere")):
            return True
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        given = key.encode()
        return scheme.lower() == "bearer" and any(
            secrets.compare_digest(given, known.encode()) for known in self.model.api_keys
        )

    async def _route(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPMethodNotAllowed as refusal:
            return detail_response(405, "Method Not Allowed", {"Allow": ", ".join(sorted(refusal.allowed_methods))})
        except web.HTTPNotFound:
            bare = request.path.rstrip("/")
            if request.path.endswith("/") and bare in self._paths:
                return web.Response(
                    status=307, headers={"Location": str(request.url.with_path(bare).with_query(request.query))}
                )
            return detail_response(404, "Not Found")
        except InvalidRequestError as error:
            param = error.param if self.model.dialect.names_fields else None
            return error_response(400, "Bad Request", error.message, param)
        except EngineDeadError:
            status, kind = self.model.dialect.dead
            return error_response(500, kind, DEAD, status=status)

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.Response(status=503 if self.engine.dead else 200)

    async def _version(self, request: web.Request) -> web.Response:
        del request
        return json_response({"version": self.model.dialect.version})

    async def _server_load(self, request: web.Request) -> web.Response:
        del request
        return json_response({"server_load": 0})

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        text = metrics_text(
            model=self.model.names[0],
            max_loras=self.model.max_loras,
            start_time=self.start_time,
            now=self.now,
            sleep_level=self.engine.asleep,
            measures_sleep=self.model.dialect.measures_sleep,
            requests=self.engine.requests,
            tokens=self.engine.tokens,
            lora_requests=sorted(self._lora_requests),
        )
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"})

    async def _models(self, request: web.Request) -> web.Response:
        del request
        bases = [self._card(name, self.model.root, None, self.model.max_model_len) for name in self.model.names]
        parent = self.model.names[0]
        adapters = [self._card(name, path, parent, None) for name, path in self.registry.adapters.items()]
        return json_response({"object": "list", "data": bases + adapters})

    def _card(self, name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, object]:
        created = int(self.now)
        permission = {
            "id": f"modelperm-{secrets.token_hex(8)}",
            "object": "model_permission",
            "created": created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": max_model_len,
            "permission": [permission],
        }

    async def _load(self, request: web.Request) -> web.Response:
        body = json_body(request.headers.get("Content-Type", ""), await request.read())
        asked = load_request(body, self.model.dialect.flags)
        return await self.load(asked.lora_name, asked.lora_path, inplace=asked.load_inplace)

    async def load(self, name: str, path: str, *, inplace: bool = False) -> web.Response:
        """Load an adapter and list it; what vLLM would answer to that."""
        dialect = self.model.dialect
        async with self.registry.locks[name]:
            if not name or not path:
                return self._bad_input("Both 'lora_name' and 'lora_path' must be provided.")
            if name in self.model.names and not dialect.takes_base_names:
                return self._bad_input(f"The lora adapter '{name}' conflicts with a served base model.")
            if name in self.registry.adapters and not inplace:
                return self._bad_input(f"The lora adapter '{name}' has already been loaded.{dialect.advice}")
            try:
                await self.engine.load(path, self.registry.identity(name))
            except FileNotFoundError:
                return error_response(404, "NotFoundError", dialect.not_found(name, path))
            except LoadFailedError as error:
                status, kind = dialect.load_failed
                return error_response(status, kind, str(error))
            except EngineDeadError:
                status, kind = dialect.load_failed
                return error_response(status, kind, DEAD)
            self.registry.adapters[name] = path
            while self.max_listed is not None and len(self.registry.adapters) > self.max_listed:
                del self.registry.adapters[next(iter(self.registry.adapters))]
            return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.", content_type=_NO_TYPE)

    def _bad_input(self, message: str) -> web.Response:
        return error_response(400, "InvalidUserInput", self.model.dialect.shown(message))

    async def _unload(self, request: web.Request) -> web.Response:
        return await self.unload(
            unload_request(json_body(request.headers.get("Content-Type", ""), await request.read()))
        )

    async def unload(self, name: str) -> web.Response:
        """The answer to a request to unload that adapter."""
        async with self.registry.locks[name]:
            if not name:
                return self._bad_input("'lora_name' needs to be provided to unload a LoRA adapter.")
            if name not in self.registry.adapters:
                message = f"The lora adapter '{name}' cannot be found."
                return error_response(404, "NotFoundError", self.model.dialect.shown(message))
            del self.registry.adapters[name]
            return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.", content_type=_NO_TYPE)

    async def _complete(self, request: web.Request) -> web.Response:
        asked = completion_request(json_body(request.headers.get("Content-Type", ""), await request.read()))
        name = asked.model or self.model.names[0]
        if name not in self.registry.adapters and name not in self.model.names:
            message = f"The model `{name}` does not exist."
            if self.model.dialect.names_aliases:
                message += f" Valid aliases: {', '.join(self.model.names)}."
            return error_response(
                404, "NotFoundError", self.model.dialect.shown(message), self.model.dialect.unknown_model_param
            )
        if not asked.prompt:
            message = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"
            return error_response(400, "BadRequestError", message, "prompt")
        path = self.registry.adapters.get(name)
        if path is not None:
            self._lora_requests.add(name)
        try:
            await self.engine.complete(path, self.registry.identity(name))
        except EngineDeadError:
            self.ending.set()
            raise
        weights = name if path is None or path not in self.engine.unapplied else self.model.names[0]
        fingerprint = f"vllm-{self.model.dialect.version}-fake"
        answer = asked.answer(name, weights, created=int(self.now), fingerprint=fingerprint)
        return json_response(self.model.dialect.completion(answer))

    async def _is_sleeping(self, request: web.Request) -> web.Response:
        del request
        return json_response({"is_sleeping": self.engine.asleep is not None})

    async def _sleep(self, request: web.Request) -> web.Response:
        level = int(request.query.get("level", "1"))
        self.engine.sleep(level)
        return self._told({"status": "sleeping", "level": level})

    async def _wake_up(self, request: web.Request) -> web.Response:
        self.engine.wake()
        return self._told({"status": "awake", "tags": request.query.getall("tags", None)})

    def _told(self, what: Mapping[str, object]) -> web.Response:
        return json_response(what) if self.model.dialect.tells_sleep else web.Response()

    async def _is_paused(self, request: web.Request) -> web.Response:
        del request
        return json_response({"is_paused": self.engine.paused})

    async def _pause(self, request: web.Request) -> web.Response:
        del request
        self.engine.paused = True
        return json_response({"status": "paused"})

    async def _resume(self, request: web.Request) -> web.Response:
        del request
        self.engine.paused = False
        return json_response({"status": "resumed"})


# aiohttp gives every answer a content type and this is its default: vLLM never sends it, so it marks those without.
_NO_TYPE = "application/octet-stream"


async def _as_uvicorn(request: web.Request, response: web.StreamResponse) -> None:
    del request
    response.headers["Server"] = "uvicorn"
    if response.headers.get("Content-Type", "").startswith(_NO_TYPE):
        del response.headers["Content-Type"]
