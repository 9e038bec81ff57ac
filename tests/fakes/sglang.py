"""A server that answers as SGLang does (0.5.6 and 0.5.23), in this process or as one of its own.

The trap guarded against is a fake that keeps what it lists: beyond `max_loaded_loras` the least recently used adapter
leaves the listing, and the next request for it brings it back by itself. Words and order of the checks follow the
source; none of it was compared with a running SGLang. Not here: chat, streams, tensors, pausing, tokenizer workers.

    python -m tests.fakes.sglang_process --port 30000 --served-model-name base --max-loaded-loras 8
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from contextlib import suppress
from typing import Any, Self

from aiohttp import web
from msgspec import Struct

from tests.fakes.listening import Listening, bind_tcp
from tests.fakes.overrides import Answer
from tests.fakes.requests import InvalidRequestError, detail_response, json_body, json_response
from tests.fakes.routes import Received
from tests.fakes.sglang_adapters import RefusedError, check_adapter, dies_at_use

_NO_READY_ROUTE = "0.5.10"


class SglangConfig(Struct, frozen=True, kw_only=True):
    """How the server is started; the names are those of SGLang's own flags.

    `port` 0 takes a free one, which is kept for later lives. `start_delay` is how long the port is bound and refuses,
    `warmup` how long it then answers 503, `load_delay` how long a load takes, `check_delay` how long `/health` takes
    (1 s in SGLang), in seconds. `check_files` False accepts every path unread. Up to `version` 0.5.10 there are no
    `/ready`, no start-up times and no admin key.
    """

    host: str = "127.0.0.1"
    port: int = 0
    served_model_name: str = "base"
    enable_lora: bool = True
    max_loaded_loras: int | None = None
    max_lora_rank: int = 16
    dp_size: int = 1
    enable_memory_saver: bool = False
    random_seed: int | None = None
    api_key: str | None = None
    admin_api_key: str | None = None
    check_files: bool = True
    start_delay: float = 0.0
    warmup: float = 0.0
    load_delay: float = 0.0
    check_delay: float = 1.0
    version: str = "0.5.23"


class Ref(Struct, frozen=True):
    """An adapter as the server holds it."""

    path: str
    pinned: bool


class FakeSglang:
    """A fake SGLang whose lives begin with `start` and end with `kill`.

    What a life holds is gone after it. `registry` is what is listed, in the order of use; `known` has every adapter
    that was ever loaded in this life, and what is asked for out of it is loaded again. `generated` counts the tokens
    that health checks cost, `hung` is whether the engine stands still. A request for an adapter whose weights are not
    what its config or the model says ends the life.
    """

    def __init__(self, config: SglangConfig | None = None) -> None:
        self.config = config or SglangConfig()
        self.port = self.config.port
        self.registry: OrderedDict[str, Ref] = OrderedDict()
        self.known: dict[str, Ref] = {}
        self.requests: list[Received] = []
        self.generated = 0
        self.evictions = 0
        self.starting = True
        self._running = asyncio.Event()
        self._overrides: dict[tuple[str, str], Answer] = {}
        self._listening: Listening | None = None
        self._warming: asyncio.Task[None] | None = None
        self._dying: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    @property
    def url(self) -> str:
        """Where the server answers, without a slash at the end."""
        return f"http://{self.config.host}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether a life has begun and not ended."""
        return self._listening is not None

    @property
    def hung(self) -> bool:
        """Whether the engine stands still; may be set."""
        return not self._running.is_set()

    @hung.setter
    def hung(self, value: bool) -> None:
        if value:
            self._running.clear()
        else:
            self._running.set()

    @property
    def adapters(self) -> dict[str, str]:
        """The listed adapters, name to path, the least recently used first."""
        return {name: ref.path for name, ref in self.registry.items()}

    def override(self, method: str, path: str, answer: Answer | None) -> None:
        """Give `answer` instead of the usual one, until None takes it back."""
        if answer is None:
            self._overrides.pop((method, path), None)
        else:
            self._overrides[method, path] = answer

    async def start(self) -> None:
        """Begin a life: bind, load the model, listen, warm up. Raises `OSError` where the address is taken."""
        if self._listening is not None:
            raise RuntimeError("the fake server is running")
        listener = bind_tcp(self.config.host, self.port)
        self.port = listener.getsockname()[1]
        self.registry, self.known, self.requests = OrderedDict(), {}, []
        self.starting, self.generated, self.evictions = True, 0, 0
        self._running.set()
        self._lock = asyncio.Lock()
        seed = self.config.random_seed
        self._seed = secrets.randbelow(1 << 30) if seed is None else seed
        self._took = 10 + secrets.randbelow(1 << 40) / (1 << 40)
        try:
            await asyncio.sleep(self.config.start_delay)
            self._listening = await Listening.begin(self._application(), listener)
        except BaseException:
            listener.close()
            raise
        self._warming = asyncio.create_task(self._warm_up())

    async def kill(self) -> None:
        """End this life as SIGKILL does, connections and all; nothing happens where none has begun."""
        life, self._listening = self._listening, None
        if life is None:
            return
        if self._warming is not None:
            self._warming.cancel()
            with suppress(asyncio.CancelledError):
                await self._warming
        life.abort()
        await life.end()

    async def restart(self) -> None:
        """Kill this life and begin the next on the same address."""
        await self.kill()
        await self.start()

    async def _warm_up(self) -> None:
        await asyncio.sleep(self.config.warmup)
        self.starting = False

    def _application(self) -> web.Application:
        routes = [
            web.get("/health", self._health),
            web.get("/health_generate", self._health),
            web.get("/model_info", self._model_info),
            web.get("/get_model_info", self._model_info),
            web.get("/server_info", self._server_info),
            web.get("/get_server_info", self._server_info),
            web.get("/v1/models", self._models),
            web.post("/v1/completions", self._complete),
            web.post("/load_lora_adapter", self._load),
            web.post("/unload_lora_adapter", self._unload),
        ]
        if self._modern:
            routes.append(web.get("/ready", self._ready))
        app = web.Application(middlewares=[self._serve])
        app.add_routes(routes)
        return app

    @property
    def _modern(self) -> bool:
        def parts(version: str) -> tuple[int, ...]:
            return tuple(map(int, version.split(".")))

        return parts(self.config.version) > parts(_NO_READY_ROUTE)

    @web.middleware
    async def _serve(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        self.requests.append(Received(request.method, request.path_qs, await request.read(), request.headers))
        override = self._overrides.get((request.method, request.path))
        if override is not None:
            return await override(request)
        if not self._authorized(request):
            return json_response({"error": "Unauthorized"}, 401)
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return detail_response(404, "Not Found")
        except web.HTTPMethodNotAllowed:
            return detail_response(405, "Method Not Allowed")
        except InvalidRequestError as error:
            body = {"object": "error", "message": error.message, "type": "BadRequest", "param": None, "code": 400}
            return json_response(body, 400)
        except AssertionError:
            return web.Response(status=500, text="Internal Server Error")

    def _authorized(self, request: web.Request) -> bool:
        open_to_all = ("/health", "/metrics") + (("/ready",) if self._modern else ())
        if request.path.startswith(open_to_all):
            return True
        config = self.config
        wanted = config.api_key
        if request.path in ("/load_lora_adapter", "/unload_lora_adapter") and self._modern:
            wanted = config.admin_api_key or config.api_key
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        return wanted is None or (scheme.lower() == "bearer" and given == wanted)

    async def _ready(self, request: web.Request) -> web.Response:
        del request
        return web.Response(status=503 if self.starting else 200)

    async def _health(self, request: web.Request) -> web.Response:
        del request
        if self.starting:
            return web.Response(status=503)
        self.generated += 1
        await asyncio.sleep(self.config.check_delay)
        await self._engine()
        return web.Response(status=200)

    async def _model_info(self, request: web.Request) -> web.Response:
        del request
        info = {"model_path": "/models/tiny", "tokenizer_path": "/models/tiny", "is_generation": True}
        return json_response(info | {"weight_version": "default", "has_image_understanding": False})

    async def _server_info(self, request: web.Request) -> web.Response:
        del request
        await self._engine()
        config = self.config
        info: dict[str, Any] = {
            "model_path": "/models/tiny",
            "served_model_name": config.served_model_name,
            "enable_lora": config.enable_lora,
            "max_loaded_loras": config.max_loaded_loras,
            "max_loras_per_batch": 8,
            "dp_size": config.dp_size,
            "enable_memory_saver": config.enable_memory_saver,
            "random_seed": self._seed,
            "status": "ready",
            "internal_states": [{"last_gen_throughput": 0.0}],
            "version": config.version,
        }
        if self._modern:
            info["startup_time"] = {"load_weight": 3.2, "scheduler_e2e": self._took, "cuda_graph": {}}
        return json_response(info)

    async def _engine(self) -> None:
        await self._running.wait()

    async def _models(self, request: web.Request) -> web.Response:
        del request
        base = self.config.served_model_name
        cards = [self._card(base, base, None, 4096)]
        if self.config.enable_lora:
            cards += [self._card(name, ref.path, base, None) for name, ref in self.registry.items()]
        return json_response({"object": "list", "data": cards})

    def _card(self, name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, object]:
        card = {"id": name, "object": "model", "created": 1_800_000_000, "owned_by": "sglang"}
        return card | {"root": root, "parent": parent, "max_model_len": max_model_len}

    async def _load(self, request: web.Request) -> web.Response:
        fields = _fields(await request.read(), request, "lora_name", "lora_path")
        return await self.load(fields["lora_name"], fields["lora_path"], pinned=fields.get("pinned", False))

    async def load(self, name: str, path: str, *, pinned: bool = False) -> web.Response:
        """Load an adapter and list it, maybe in the place of others; what SGLang would answer to that."""
        if not self.config.enable_lora:
            return self._refused("LoRA is not enabled. Please set `--enable-lora` to enable LoRA.")
        if self.config.dp_size != 1:
            raise AssertionError("data-parallel replicas are not supported for dynamic lora loading")
        async with self._lock:
            await self._engine()
            await asyncio.sleep(self.config.load_delay)
            if name in self.registry:
                return self._refused(f"Failed to load LoRA adapter {name} because it is already loaded", held=True)
            try:
                if self.config.check_files:
                    rank, version = self.config.max_lora_rank, self.config.version
                    await asyncio.to_thread(check_adapter, name, path, max_rank=rank, version=version)
            except RefusedError as refusal:
                return self._refused(str(refusal), held=True)
            self.registry[name] = self.known[name] = Ref(path, pinned)
            self._make_room()
            return self._answer(success=True, message="", held=True)

    def _make_room(self) -> None:
        limit = self.config.max_loaded_loras
        while limit is not None and len(self.registry) > limit:
            oldest = next(name for name, ref in self.registry.items() if not ref.pinned)
            del self.registry[oldest]
            self.evictions += 1

    async def _unload(self, request: web.Request) -> web.Response:
        fields = _fields(await request.read(), request, "lora_name")
        name = fields["lora_name"]
        async with self._lock:
            await self._engine()
            if name not in self.registry:
                return self._refused(f"LoRA with name {name} does not exist. Loaded LoRAs: {self.registry.keys()}")
            del self.registry[name]
            return self._answer(success=True, message="", held=True)

    def _refused(self, message: str, *, held: bool = False) -> web.Response:
        return self._answer(success=False, message=message, held=held)

    def _answer(self, *, success: bool, message: str, held: bool) -> web.Response:
        body = {"rid": None, "http_worker_ipc": None, "success": success, "error_message": message}
        return json_response(body | {"loaded_adapters": self.adapters if held else None}, 200 if success else 400)

    async def _complete(self, request: web.Request) -> web.Response:
        fields = _fields(await request.read(), request, "model", "prompt")
        _, _, name = fields["model"].partition(":")
        refusal = await self.use(name) if name else None
        if refusal is not None:
            return json_response({"object": "error", "message": refusal, "type": "BadRequestError", "code": 400}, 400)
        text = f"{name}|{fields['prompt']}"
        return json_response({"object": "text_completion", "model": fields["model"], "choices": [{"text": text}]})

    async def use(self, name: str) -> str | None:
        """Serve one request for an adapter, which loads it again if it was evicted; why that cannot be, or None."""
        if name not in self.registry:
            ref = self.known.get(name)
            if ref is None:
                return f"Got LoRA adapter that has never been loaded: {name}"
            await self.load(name, ref.path, pinned=ref.pinned)
        if name not in self.registry:
            return f"Failed to implicitly load LoRA adapter {name}"
        self.registry.move_to_end(name)
        if self.config.check_files and await asyncio.to_thread(dies_at_use, self.registry[name].path):
            self._dying = asyncio.create_task(self.kill())
            await asyncio.Event().wait()
        return None


def _fields(body: bytes, request: web.Request, *names: str) -> dict[str, Any]:
    value = json_body(request.headers.get("Content-Type", ""), body)
    if not isinstance(value, dict) or any(not isinstance(value.get(name), str) for name in names):
        raise InvalidRequestError(f"Object missing required field of {', '.join(names)}", None)
    return value
