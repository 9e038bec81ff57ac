"""One simulated pod: the sidecar's real parts, a server, a network and a volume that misbehave, and people.

The trap guarded against is a failure that nobody can look into. A world is made from one number; it tells its history
line by line, and the same number tells the same history in every process.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from msgspec import Struct

from lora_sidecar.checkpoint.manager import CheckpointManager
from lora_sidecar.config.inventory import ServerConfig
from lora_sidecar.config.load import parse
from lora_sidecar.config.settings import Config
from lora_sidecar.controller import Clock, ServerController
from lora_sidecar.core.events import Event, Level
from lora_sidecar.core.model import Adapter
from lora_sidecar.core.outcomes import Accepted, Failure, LoadDeferred
from lora_sidecar.engines import vllm
from lora_sidecar.engines.base import Engine
from lora_sidecar.engines.detect import Detector
from lora_sidecar.engines.identity import Kind
from lora_sidecar.reconcile.state import Plan
from lora_sidecar.status.board import Board, ServerStatus, not_live
from lora_sidecar.threads import BlockingCall
from tests.simulation.network import Network
from tests.simulation.oracle import Oracle, ViolationError
from tests.simulation.server import Server, Shelf, Start
from tests.simulation.volume import DiedError, LifeDisk, VirtualCall, Volume, WatchedStore

T = TypeVar("T")

_KUBELET = 1.0
_HISTORY_SHOWN = 150


class Traits(Struct, frozen=True):
    """What a world is like from its beginning to its end."""

    start: Start = Start()
    format: str = "json"
    interval: float = 5.0
    parked: float = 600.0
    names_base_model: bool = False
    forgets: bool = True
    load_seconds: float = 0.05
    load_timeout: float = 300.0
    began: float = 0.0
    concurrency: str = "auto"
    replaces: bool = False
    prunes: bool = False


class _Board(Board):
    """The real board, whose every publication the model looks at."""

    def __init__(self, world: World) -> None:
        super().__init__(("vllm",), world.now)
        self._world = world

    def publish(self, status: ServerStatus) -> None:
        super().publish(status)
        (shown,) = self.statuses()
        self._world.check(self._world.oracle.published, shown)


class _Vllm(vllm.Vllm):
    """The real client, whose every load the model looks at."""

    def __init__(self, world: World, server: ServerConfig, config: Config, now: Callable[[], float]) -> None:
        super().__init__(server, config, now)
        self.world = world
        self._asked_for: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()

    async def load_blocked(self, incarnation: int) -> LoadDeferred | None:
        if (task := asyncio.current_task()) is not None:
            self._asked_for[task] = incarnation
        return await super().load_blocked(incarnation)

    async def load(self, adapter: Adapter) -> Accepted | Failure:
        task = asyncio.current_task()
        incarnation = None if task is None else self._asked_for.pop(task, None)
        self.world.check(self.world.oracle.load_sent, adapter, incarnation)
        result = await super().load(adapter)
        self.world.say("sidecar", f"load of {adapter.name} from {adapter.path} ended: {result}")
        self.world.check(self.world.oracle.load_ended, adapter, result)
        return result


class _AtOnce(BlockingCall):
    """Reads adapters' files where it is asked to: none of these adapters can be seen by the sidecar."""

    async def run(self, function: Callable[[], T], deadline: float) -> T:
        """Call the function at once."""
        del deadline
        return function()


class Sidecar:
    """One life of the sidecar: its real parts, as the daemon puts them together."""

    def __init__(self, world: World) -> None:
        self._world = world
        now = asyncio.get_running_loop().time
        config = world.config
        self.disk = LifeDisk(world.volume, world.died)
        self._offloader = VirtualCall("checkpoint", world.volume)
        self._store = WatchedStore(world.volume, self.disk, config.checkpoint.format, world)
        self._keeper = CheckpointManager(self._store, config.checkpoint.timeout, now, self._offloader)
        self.board = _Board(world)
        clock = Clock(now, world.chance.random, _AtOnce)
        makers = {Kind.VLLM: partial(_Vllm, world)}
        detector = Detector(config.servers[0], config, now, self._report, makers)
        self.watch = ServerController("vllm", config, detector, self._keeper, self.board, self._report, clock)
        offer = self.watch.loader.offer

        def offered(plan: Plan, engine: Engine) -> None:
            saved = {} if self._keeper._saved is None else self._keeper._saved.adapters
            durable = all(saved.get(name) == wanted for name, wanted in plan.desired.adapters.items())
            world.check(world.oracle.offered, plan, durable or self._keeper.condition is not None)
            offer(plan, engine)

        self.watch.loader.offer = offered  # type: ignore[method-assign]  # the one place that every plan passes
        self.dying = False
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._ended)

    async def _run(self) -> None:
        await self.watch.open()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.watch.run())
            group.create_task(self.watch.loader.run())
            group.create_task(self.watch.watcher.run())
            group.create_task(self.watch.unloader.run())

    def _report(self, *facts: Event) -> None:
        self.board.note("vllm", self._world.now, facts)
        self._world.happened(*facts)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Only a kill ends the sidecar."""
        error = None if task.cancelled() else task.exception()
        if not self.dying and not task.cancelled():
            self._world.broke(error or AssertionError("the sidecar ended by itself"))

    @property
    def has_read(self) -> bool:
        """Whether this life has read the checkpoint: a disk may be too slow for its start."""
        return self._keeper._read

    def kill(self) -> None:
        """End this life at once: nothing of it is carried out any more, and its locks are free."""
        self.dying = self.disk.dead = True
        self._offloader.die()
        self._task.cancel()
        self._store.close()


class World:
    """Everything that there is; `history` tells what happened in it."""

    def __init__(self, seed: int, traits: Traits, folder: Path) -> None:
        self.seed = seed
        self.traits = traits
        self.chance = Random(f"chance {seed}")
        self.history: list[tuple[float, str, str]] = []
        self.counts: Counter[str] = Counter()
        self.error: BaseException | None = None
        self.over = asyncio.Event()
        self.adapters: dict[str, dict[str, Any]] = {}
        self._declared: Mapping[str, Mapping[str, Any]] = {}
        self._former: list[tuple[float, Mapping[str, Mapping[str, Any]]]] = []
        self.shelf = Shelf()
        self.server = Server(traits.start, self.shelf, Random(f"server {seed}"), self.say)
        self.server.load_seconds = traits.load_seconds
        self.server.wall = self.wall
        self.network = Network(self.server, Random(f"network {seed}"))
        self.network.received = lambda *request: self.check(self.oracle.received, *request)
        self.volume = Volume(folder / "checkpoint", Random(f"volume {seed}"))
        self.sidecar: Sidecar | None = None
        self.wall_offset = 1.7e9
        self.proves_lives = traits.start.tells_start_time
        self.oracle = Oracle(self)
        self.config = self._config()
        self._kubelet = asyncio.get_running_loop().create_task(self._probe())

    @property
    def now(self) -> float:
        """The virtual time."""
        return asyncio.get_running_loop().time()

    @property
    def has_read(self) -> bool:
        """Whether the present life of the sidecar knows what was remembered."""
        return self.sidecar is not None and self.sidecar.has_read

    def wall(self) -> float:
        """The wall clock, which somebody may have set."""
        return self.now + self.wall_offset

    def say(self, who: str, what: str) -> None:
        """Add a line to the history."""
        self.history.append((self.now, who, what))

    def _config(self) -> Config:
        traits = self.traits
        base = f", base_model: {traits.start.base}" if traits.names_base_model else ""
        lines = [
            f"servers: [{{name: vllm, engine: vllm, url: 'http://127.0.0.1:8000'{base}}}]",
            f"heartbeat: {{interval: {traits.interval:g}s}}",
            f"restore: {{timeout: {traits.load_timeout:g}s, concurrency: {traits.concurrency},",
            f"  backoff: {{parked: {traits.parked:g}s, quarantine: 60s}}}}",
            f"checkpoint: {{directory: /checkpoint, format: {traits.format}}}",
            f"policy: {{on_external_unload: {'forget' if traits.forgets else 'restore'},",
            f"  replace: {'always' if traits.replaces else 'safe'}, prune: {str(traits.prunes).lower()}}}",
            "adapters:" + (" []" if not self.adapters else ""),
            *(
                f"  - {{name: {name}, path: {a['path']}, required: {str(a['required']).lower()}}}"
                for name, a in self.adapters.items()
            ),
        ]
        return parse("\n".join(lines).encode(), "sidecar.yaml")

    def reconfigure(self) -> None:
        """Have the sidecar go by the adapters that are declared now."""
        self._former.append((self.now, self._declared))
        self._declared = dict(self.adapters)
        self.config = self._config()
        if self.sidecar is not None:
            self.sidecar.watch.reconfigure(self.config)

    def configs_within(self, seconds: float) -> list[Mapping[str, Mapping[str, Any]]]:
        """What the config declares, and what it declared within the last seconds."""
        return [self.adapters, *(config for until, config in self._former if until >= self.now - seconds)]

    def start_sidecar(self) -> None:
        """Begin a life of the sidecar."""
        if self.sidecar is None:
            self.say("sidecar", "starts")
            self.oracle.started()
            self.sidecar = Sidecar(self)

    def kill_sidecar(self) -> None:
        """End the sidecar's life as SIGKILL does."""
        sidecar, self.sidecar = self.sidecar, None
        if sidecar is not None:
            self.say("sidecar", "is killed")
            sidecar.kill()

    def died(self) -> None:
        """The sidecar is killed by the very step that it is at."""
        self.say("sidecar", "is killed inside a save")
        sidecar, self.sidecar = self.sidecar, None
        if sidecar is not None:
            sidecar.dying = True
            asyncio.get_running_loop().call_soon(sidecar.kill)

    def happened(self, *facts: Event) -> None:
        """The sidecar reported facts."""
        for fact in facts:
            self.counts[fact.event.value] += 1
            if fact.level is not Level.DEBUG:
                told = {key: value for key, value in fact.fields.items() if key != "hint"}
                self.say("sidecar", f"{fact.event} {told}")
        self.check(self.oracle.happened, *facts)

    def saving(self, *told: Any) -> None:
        """See `Oracle.saving`."""
        self.check(self.oracle.saving, *told)

    def saved(self, *told: Any) -> None:
        """See `Oracle.saved`."""
        self.check(self.oracle.saved, *told)

    def loaded(self, *told: Any) -> None:
        """See `Oracle.loaded`."""
        self.check(self.oracle.loaded, *told)

    def check(self, promise: Callable[..., None], *told: Any) -> None:
        """Have the model look at something; the first broken promise ends the world."""
        if self.error is not None:
            return
        try:
            promise(*told)
        except ViolationError as error:
            self.broke(error)

    def broke(self, error: BaseException) -> None:
        """Something happened that must not happen."""
        if self.error is None and not isinstance(error, DiedError):
            self.error = error
            self.say("model", f"BROKEN: {error!r}")
            self.over.set()

    async def _probe(self) -> None:
        """Ask for liveness as a kubelet does."""
        while True:
            await asyncio.sleep(_KUBELET)
            if self.sidecar is not None:
                snapshot = self.sidecar.board.snapshot(self.now, self.config.heartbeat.liveness)
                for line in not_live(snapshot):
                    self.broke(ViolationError(f"honesty: /livez fails: {line}"))

    async def let_pass(self, seconds: float) -> bool:
        """Let time pass; whether all is well."""
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            pass
        return self.error is None

    async def close(self) -> None:
        """End everything."""
        self._kubelet.cancel()
        sidecar, self.sidecar = self.sidecar, None
        if sidecar is not None:
            sidecar.kill()
        self.server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def told(self, last: int | None = _HISTORY_SHOWN) -> str:
        """The end of the history, a line each; all of it where `last` is None."""
        lines = [f"{at - self.traits.began:10.3f}  {who:8}  {what}" for at, who, what in self.history]
        last = len(lines) if last is None else last
        left_out = len(lines) - last
        head = [f"... {left_out} earlier lines"] if left_out > 0 else []
        return "\n".join([*head, *lines[-last:]])


class Report(Struct, frozen=True):
    """How one world went; `error` is empty where every promise was kept."""

    seed: int
    seconds: float
    error: str
    history: str
    counts: dict[str, int]
