"""A server that answers as one version of vLLM does, in this process or as one of its own.

The trap guarded against is a fake with its own idea of dying. A stop and a kill are told apart, the port is bound
long before it listens, adapters live exactly as long as one life of the server, and no connection outlives it.

    python -m tests.fakes.process --port 8000 --model /models/tiny --served-model-name base
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web
from msgspec import Struct

from tests.fakes.dialect import Dialect
from tests.fakes.engine import FakeEngine
from tests.fakes.listening import Listening, bind_tcp, bind_unix, tls_context
from tests.fakes.overrides import Answer, canned, hang, hang_up
from tests.fakes.routes import Received, Routes, ServedModel
from tests.fakes.rust import RustRoutes

__all__ = ["Answer", "FakeConfig", "FakeVllm", "Received", "canned", "hang", "hang_up"]

_CLOCK_STEP = 0.01


class FakeConfig(Struct, frozen=True, kw_only=True):
    """How the server is started; the names are those of vLLM's own flags.

    `port` 0 takes a free one, which is kept for later lives. `check_files` False accepts every path unread.
    `start_delay` is how long the port is bound and refuses, `load_delay` how long each load takes, in seconds.
    With `ssl_ca_certs` a client must show a certificate. `gpu` makes a load into a sleeping engine fatal.
    `rust` answers as the Rust frontend does, which takes local paths only below `allowed_path_prefixes`.
    The engine dies of loading one of the paths in `deadly`. With `max_listed` the oldest adapters leave the listing.
    """

    host: str = "127.0.0.1"
    port: int = 0
    uds: str | None = None
    model: str = "/models/tiny"
    served_model_name: tuple[str, ...] = ("base",)
    max_model_len: int = 512
    enable_lora: bool = True
    max_loras: int = 4
    max_cpu_loras: int = 64
    max_lora_rank: int = 16
    lora_modules: tuple[tuple[str, str], ...] = ()
    api_key: tuple[str, ...] = ()
    runtime_lora: bool = True
    dev_mode: bool = False
    gpu: bool = False
    deadly: tuple[str, ...] = ()
    max_listed: int | None = None
    check_files: bool = True
    start_delay: float = 0.0
    load_delay: float = 0.0
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_ca_certs: str | None = None
    version: str = "0.32.0"
    rust: bool = False
    allowed_path_prefixes: tuple[str, ...] = ()


class FakeVllm:
    """A fake vLLM whose lives begin with `start` and end with `stop` or `kill`.

    What a life holds (adapters, requests received, engine state, overrides) is gone after it; `load_delay` set
    before `start` counts for that life.
    """

    def __init__(self, config: FakeConfig | None = None) -> None:
        self.config = config or FakeConfig()
        self.port = self.config.port
        self._previous_start = 0.0
        self._owns_uds = False
        self._listening: Listening | None = None
        self._routes: Routes | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where the server answers, without a slash at the end."""
        if self.config.uds is not None:
            return f"unix://{self.config.uds}"
        scheme = "https" if self.config.ssl_certfile else "http"
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{scheme}://{host}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether a life has begun and not ended."""
        return self._listening is not None

    @property
    def routes(self) -> Routes:
        """The current life, or the last one. Raises `RuntimeError` before the first `start`."""
        if self._routes is None:
            raise RuntimeError("the fake server was never started")
        return self._routes

    @property
    def engine(self) -> FakeEngine:
        """The engine of the current life."""
        return self.routes.engine

    @property
    def adapters(self) -> dict[str, str]:
        """The listed adapters, name to path, in load order; may be changed."""
        return self.routes.registry.adapters

    @property
    def requests(self) -> list[Received]:
        """Every request of this life, in the order received; may be cleared."""
        return self.routes.requests

    @property
    def start_time(self) -> float:
        """`process_start_time_seconds` of this life."""
        return round(self.routes.start_time, 2)

    @property
    def engine_dead(self) -> bool:
        """Whether the engine is dead; may be set to True, never back."""
        return self.engine.dead

    @engine_dead.setter
    def engine_dead(self, value: bool) -> None:
        if not value:
            raise ValueError("an engine does not come back to life: restart the server")
        self.engine.die()

    @property
    def hung(self) -> bool:
        """Whether loads and completions stand still; may be set."""
        return self.engine.hung

    @hung.setter
    def hung(self, value: bool) -> None:
        self.engine.hung = value

    @property
    def asleep(self) -> int | None:
        """The sleep level, None while awake; may be set."""
        return self.engine.asleep

    @asleep.setter
    def asleep(self, level: int | None) -> None:
        if level is None:
            self.engine.wake()
        else:
            self.engine.sleep(level)

    @property
    def draining(self) -> bool:
        """Whether loads are refused because the server is shutting down; may be set."""
        return self.engine.draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self.engine.draining = value

    @property
    def load_delay(self) -> float:
        """How long each load takes, in seconds; may be set."""
        return self.engine.load_delay

    @load_delay.setter
    def load_delay(self, seconds: float) -> None:
        self.engine.load_delay = seconds

    def override(self, method: str, path: str, answer: Answer, times: int | None = 1) -> None:
        """Give `answer` instead of the usual one to the next `times` requests for `path`, or to all (None)."""
        self.routes.overrides[method, path] = (answer, times)

    def behave(self) -> None:
        """Drop every override."""
        self.routes.overrides.clear()

    async def start(self) -> None:
        """Begin a life: bind, load the static adapters, and listen.

        Raises `OSError` where the address is taken, `ValueError` where a static adapter cannot be loaded, and
        `RuntimeError` where a life has not ended.
        """
        if self._listening is not None:
            raise RuntimeError("the fake server is running")
        config = self.config
        listener = self._bind()
        try:
            self._routes = routes = self._new_life()
            await asyncio.sleep(config.start_delay)
            await self._load_static(routes)
            app = routes.application(runtime_lora=config.runtime_lora, dev_mode=config.dev_mode)
            self._listening = await Listening.begin(
                app, listener, closes_silent=config.rust, context=self._ssl_context()
            )
        except BaseException:
            listener.close()
            raise

    async def _load_static(self, routes: Routes) -> None:
        for name, path in self.config.lora_modules:
            answer = await routes.load(name, path)
            if answer.status != web.HTTPOk.status_code:
                raise ValueError(f"cannot load --lora-modules {name}={path}: {answer.text}")

    def _new_life(self) -> Routes:
        config = self.config
        dialect = Dialect(config.version)
        engine = FakeEngine(
            max_rank=config.max_lora_rank,
            max_cpu_loras=config.max_cpu_loras,
            enable_lora=config.enable_lora,
            gpu=config.gpu,
            check_files=config.check_files,
            dialect=dialect,
        )
        engine.load_delay = config.load_delay
        engine.deadly = frozenset(config.deadly)
        # Two lives within one step of the clock must still be told apart, as two real processes can be.
        self._previous_start = max(datetime.now(UTC).timestamp(), self._previous_start + _CLOCK_STEP)
        model = ServedModel(
            names=config.served_model_name,
            root=config.model,
            max_model_len=config.max_model_len,
            max_loras=config.max_loras,
            dialect=dialect,
            api_keys=config.api_key,
        )
        if config.rust:
            return RustRoutes(model, engine, self._previous_start, config.allowed_path_prefixes)
        return Routes(model, engine, self._previous_start, config.max_listed)

    def _bind(self) -> socket.socket:
        uds = self.config.uds
        if uds is None:
            listener = bind_tcp(self.config.host, self.port)
            self.port = listener.getsockname()[1]
            return listener
        if self._owns_uds:
            # vLLM leaves the file of a former process alone and fails; only our own earlier life is cleared away.
            Path(uds).unlink(missing_ok=True)
        listener = bind_unix(uds)
        self._owns_uds = True
        return listener

    def _ssl_context(self) -> ssl.SSLContext | None:
        config = self.config
        if config.ssl_certfile is None:
            return None
        return tls_context(config.ssl_certfile, config.ssl_keyfile, config.ssl_ca_certs)

    async def stop(self) -> None:
        """End this life at once and close every connection; nothing happens where none has begun."""
        await self._end()

    async def kill(self) -> None:
        """End this life as SIGKILL does: the listener and every connection are gone, mid-answer or not."""
        if self._listening is not None:
            self._listening.abort()
        await self._end()

    async def restart(self) -> None:
        """Kill this life and begin the next on the same address."""
        await self.kill()
        await self.start()

    async def shut_down(self) -> None:
        """End this life as SIGTERM does: engine first, then the port, then wait for every request without a limit.

        A load in flight is never answered, so with one this does not return: that is how vLLM wedges.
        """
        life = self._listening
        if life is None:
            return
        self.engine.die()
        await life.refuse()
        life.close_idle()
        while self.routes.handlers:
            await asyncio.wait(self.routes.handlers, timeout=_CLOCK_STEP)
        await self._end()

    async def _end(self) -> None:
        life, self._listening = self._listening, None
        if life is None:
            return
        await life.refuse()
        handlers = tuple(self.routes.handlers)
        for handler in handlers:
            handler.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*handlers, return_exceptions=True)
        await life.end()
