"""The simulated vLLM: a container with several lives, each of which forgets what the one before had loaded.

The trap guarded against is a world that is kinder than the real one. The answers are those of the fake server's own
routes, which a contract holds to a real vLLM; only the sockets are left out. What is added is how lives end: by a
signal, by the engine's death, or not at all, where a load in flight wedges the process with its port closed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, cast

from aiohttp import web
from msgspec import Struct

from lora_sidecar.engines.http import Reply
from tests.fakes.adapters import AdapterRefusedError
from tests.fakes.dialect import Dialect
from tests.fakes.engine import DEAD, EngineDeadError, FakeEngine
from tests.fakes.requests import detail_response, error_response, load_request
from tests.fakes.routes import Routes, ServedModel

NOBODY = cast("web.Request", None)
"""The routes that are asked here look at no request."""

LOAD = "/v1/load_lora_adapter"
UNLOAD = "/v1/unload_lora_adapter"
_WATCHDOG = 5.0
DIALECT = Dialect("0.32.0")


class Shelf:
    """The adapters' folders: a path is good unless something else is said of it."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}

    def read(self, path: str) -> str:
        """The state of a path: good, absent, refused, or poison, which kills the engine that reads it."""
        return self.states.get(path, "good")


class _Engine(FakeEngine):
    """The fake's engine, reading from the shelf."""

    def __init__(self, shelf: Shelf, *, gpu: bool) -> None:
        super().__init__(max_rank=16, max_cpu_loras=64, enable_lora=True, gpu=gpu, check_files=True, dialect=DIALECT)
        self._shelf = shelf

    async def _read(self, path: str) -> None:
        match self._shelf.read(path):
            case "absent":
                raise FileNotFoundError
            case "refused":
                raise AdapterRefusedError("LoRA rank 64 is greater than max_lora_rank 16.")
            case "poison":
                self.die()
                await asyncio.Event().wait()
            case _:
                return


class _Adapters(dict[str, str]):
    """The registry of one life, which notes since when each adapter is there."""

    def __init__(self, life: Life) -> None:
        super().__init__()
        self._life = life

    def __setitem__(self, name: str, path: str) -> None:
        self._life.unloaded.pop(name, None)
        self._life.installed[name] = asyncio.get_running_loop().time()
        super().__setitem__(name, path)


class Told(Struct, frozen=True):
    """A listing that a life really gave."""

    at: float
    life: int
    cards: tuple[tuple[str, str], ...]


class Life:
    """One life of the server process, and what is true of it alone.

    `unloaded` are the names that somebody unloaded and nobody loaded since, with the time; `installed` is since when
    each listed adapter is there.
    """

    def __init__(self, number: int, routes: Routes) -> None:
        self.number = number
        self.routes = routes
        self.unloaded: dict[str, float] = {}
        self.installed: dict[str, float] = {}
        self.over = asyncio.Event()
        # In their order: that of a set is the order of the tasks' addresses, which is no part of the seed.
        self.loads: dict[asyncio.Task[web.Response], None] = {}
        self.asleep_since: float | None = None
        self.lines: list[Callable[[], None]] = []
        routes.registry.adapters = _Adapters(self)


class Start(Struct, frozen=True):
    """How the server is started: what of vLLM's flags and versions matters here."""

    base: str = "base"
    tells_start_time: bool = True
    can_sleep: bool = False
    static: tuple[tuple[str, str], ...] = ()


class Server:
    """The container: at most one life at a time, restarted by its kubelet some time after each end."""

    def __init__(self, start: Start, shelf: Shelf, rng: Random, say: Callable[..., None]) -> None:
        self.start_with = start
        self.shelf = shelf
        self.life: Life | None = None
        self.listening = False
        self.wedged = False
        self.born_at = 0.0
        self.runtime_loading = True
        self.load_seconds = 0.05
        self.told: list[Told] = []
        self.wall: Callable[[], float] = lambda: 0.0
        self._rng = rng
        self._say = say
        self._lives = 0
        self._births: set[float] = set()
        self._known: dict[int, Life] = {}
        self._ending: list[Callable[[], None]] = []
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._tasks: dict[asyncio.Task[None], None] = {}
        self.starting = False

    @property
    def now(self) -> float:
        """The virtual time."""
        return asyncio.get_running_loop().time()

    @property
    def adapters(self) -> dict[str, str]:
        """What the present life lists; nothing where there is none."""
        return {} if self.life is None else self.life.routes.registry.adapters

    @property
    def frozen(self) -> bool:
        """Whether the process is stopped (SIGSTOP): it accepts connections and answers nothing."""
        return not self._thawed.is_set()

    def heard(self) -> Life:
        """The life that gave the last listing."""
        return self._known[self.told[-1].life]

    def born(self, start_time: float | None) -> list[Life]:
        """The life with this start time, which may be over."""
        return [life for life in self._known.values() if life.routes.start_time == start_time]

    def freeze(self) -> None:
        """Stop the process."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Let the process go on."""
        self._thawed.set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something happen in the container by itself."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    def close(self) -> None:
        """End everything."""
        for task in tuple(self._tasks):
            task.cancel()
        if self.life is not None:
            self._end("end of the world")

    async def boot(self, seconds: float) -> None:
        """Begin a life; it refuses connections for so long, and then everything answers at once."""
        if self.life is not None or self.starting:
            return
        self.starting = True
        self._lives += 1
        model = ServedModel((self.start_with.base,), "/models/tiny", 512, 4, DIALECT, ())
        engine = _Engine(self.shelf, gpu=True)
        engine.load_delay = self.load_seconds
        began = self._birth()
        life = Life(self._lives, Routes(model, engine, began))
        self._known[life.number] = life
        await asyncio.sleep(seconds)
        for name, path in self.start_with.static:
            if self.shelf.read(path) == "good":
                life.routes.registry.adapters[name] = path
        for end in self._ending:
            end()
        self._ending.clear()
        self.starting = False
        self.life, self.listening, self.born_at = life, True, self.now
        self._say("server", f"life {life.number} listens")
        self.spawn(self._watchdog(life))

    def _birth(self) -> float:
        """The start time of a new life: by the wall clock, in steps of 10 ms, and never that of another life."""
        began = round(self.wall(), 2)
        while began in self._births:
            began = round(began + 0.01, 2)
        self._births.add(began)
        return began

    async def _watchdog(self, life: Life) -> None:
        """End the process some seconds after its engine died; a load in flight wedges it instead."""
        await life.routes.engine.death()
        self._say("server", "the engine is dead")
        await asyncio.sleep(self._rng.uniform(0.0, _WATCHDOG))
        if self.life is not life:
            return
        if life.loads:
            self.listening, self.wedged = False, True
            self._hang_up(life)
            self._say("server", "wedged: the port is closed and the process stays")
            await asyncio.sleep(self._rng.uniform(5.0, 40.0))
            if self.life is not life:
                return
        self.crash("the engine is dead", self._rng.uniform(0.05, 20.0))

    def crash(self, why: str, back_in: float) -> None:
        """End the life at once; the kubelet starts the next one, which listens `back_in` seconds from now."""
        self._end(why)
        self.spawn(self.boot(back_in))

    def _end(self, why: str) -> None:
        life, self.life = self.life, None
        if life is None:
            return
        self._say("server", f"life {life.number} ends: {why}")
        self.listening = self.wedged = False
        self._thawed.set()
        life.over.set()
        self._hang_up(life)
        for load in life.loads:
            load.cancel()

    def _hang_up(self, life: Life) -> None:
        """End the silent connections, as quickly as the kernel tells of it, and before the next life listens."""
        for end in life.lines:
            asyncio.get_running_loop().call_later(self._rng.uniform(0.014, 0.157), end)
        self._ending += life.lines
        life.lines.clear()

    def hang_up(self) -> None:
        """End the silent connections of a life that goes on."""
        if self.life is not None:
            self._hang_up(self.life)

    def shut_down(self, back_in: float) -> None:
        """End the life as SIGTERM does; a load in flight wedges it until it is killed."""
        if self.life is None:
            return
        if self.life.loads:
            life = self.life
            life.routes.engine.die()
            self.listening, self.wedged = False, True
            self._hang_up(life)
            self._say("server", "SIGTERM with a load in flight: wedged")
        else:
            self.crash("SIGTERM", back_in)

    async def answer(self, method: str, path: str, body: bytes | None) -> Reply | None:
        """What the present life answers; None where the connection ended without an answer."""
        life = self.life
        if life is None:
            return None
        if self.frozen:
            await _first(self._thawed.wait(), life.over.wait())
            if life.over.is_set():
                return None
        if method == "POST":
            return await self._post(life, path, body or b"")
        response = await self._get(life, path)
        return Reply(response.status, bytes(response.body or b""))  # type: ignore[arg-type]  # always bytes here

    async def _get(self, life: Life, path: str) -> web.Response:
        routes = life.routes
        match path:
            case "/health":
                return await routes._health(NOBODY)
            case "/v1/models":
                self.told.append(Told(self.now, life.number, tuple(routes.registry.adapters.items())))
                del self.told[:-20]
                return await routes._models(NOBODY)
            case "/metrics":
                return self._metrics(await routes._metrics(NOBODY))
            case "/is_sleeping" if self.start_with.can_sleep:
                return await routes._is_sleeping(NOBODY)
            case "/v1/load_lora_adapter" if self.runtime_loading:
                return detail_response(405, "Method Not Allowed")
            case _:
                return detail_response(404, "Not Found")

    def _metrics(self, response: web.Response) -> web.Response:
        if self.start_with.tells_start_time:
            return response
        lines = bytes(response.body or b"").splitlines()  # type: ignore[arg-type]  # always bytes here
        return web.Response(body=b"".join(line + b"\n" for line in lines if b"process_start_time" not in line))

    async def _post(self, life: Life, path: str, body: bytes) -> Reply | None:
        if path not in (LOAD, UNLOAD) or not self.runtime_loading:
            response = detail_response(404, "Not Found")
            return Reply(response.status, bytes(response.body or b""))  # type: ignore[arg-type]  # as above
        if path == UNLOAD:
            response = await life.routes.unload(json.loads(body)["lora_name"])
            return Reply(response.status, bytes(response.body or b""))  # type: ignore[arg-type]  # as above
        asked = load_request(json.loads(body))
        handler = asyncio.get_running_loop().create_task(self._load(life, asked.lora_name, asked.lora_path))
        life.loads[handler] = None
        handler.add_done_callback(life.loads.pop)
        # The client may hang up meanwhile: the load goes on all the same.
        await asyncio.wait({handler})
        if handler.cancelled():
            return None
        response = handler.result()
        return Reply(response.status, bytes(response.body or b""))  # type: ignore[arg-type]  # as above

    async def _load(self, life: Life, name: str, path: str) -> web.Response:
        try:
            return await life.routes.load(name, path)
        except EngineDeadError:
            return error_response(500, "InternalServerError", DEAD)

    async def somebody_loads(self, name: str, path: str) -> bool:
        """Load an adapter as another client does; whether it was loaded."""
        life = self.life
        if life is None or not self.listening or self.frozen or not self.runtime_loading:
            return False
        handler = asyncio.get_running_loop().create_task(self._load(life, name, path))
        life.loads[handler] = None
        handler.add_done_callback(life.loads.pop)
        await asyncio.wait({handler})
        return not handler.cancelled() and handler.result().status == web.HTTPOk.status_code

    def somebody_unloads(self, name: str) -> bool:
        """Unload an adapter as another client does; whether it was loaded."""
        life = self.life
        if life is None or name not in self.adapters or not self.listening or self.frozen:
            return False
        del life.routes.registry.adapters[name]
        life.unloaded[name] = self.now
        return True

    async def somebody_asks(self, seconds: float) -> None:
        """Have a request in the engine for so long."""
        life = self.life
        if life is not None:
            life.routes.engine.requests += 1
            await asyncio.sleep(seconds)
            life.routes.engine.requests -= 1

    def sleep(self, level: int) -> None:
        """Put the engine to sleep."""
        if self.life is not None:
            self.life.routes.engine.sleep(level)
            self.life.asleep_since = self.now

    def wake(self) -> None:
        """Wake the engine."""
        if self.life is not None:
            self.life.routes.engine.wake()
            self.life.asleep_since = None


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
