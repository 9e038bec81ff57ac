"""One server's heartbeat: probe, list, reconcile, persist, hand over, publish. The sole owner of that server's state.

Two traps are guarded against. Acting before remembering: a crash between the two would forget what was done; so desired
is persisted before the plan is handed over. And a liveness that lies: the stamp is set when a heartbeat has come to its
end, whatever it found, and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from lora_sidecar.actions.loader import Loader
from lora_sidecar.actions.prober import Prober
from lora_sidecar.actions.unloader import Unloader
from lora_sidecar.checkpoint.manager import CheckpointManager
from lora_sidecar.config.settings import Config
from lora_sidecar.control.queue import RequestQueue
from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.events import Event, EventName, Level, warning
from lora_sidecar.core.model import Desired, Incarnation
from lora_sidecar.core.observation import Observation, Observed, Unknown
from lora_sidecar.core.outcomes import Outcome, Unloaded
from lora_sidecar.engines.base import Engine
from lora_sidecar.engines.detect import Detector
from lora_sidecar.engines.failures import too_slow
from lora_sidecar.files.preflight import Preflight
from lora_sidecar.files.watcher import FileWatcher
from lora_sidecar.reconcile.backoff import Now
from lora_sidecar.reconcile.beat import Happened
from lora_sidecar.reconcile.desired import declare
from lora_sidecar.reconcile.loads import reset
from lora_sidecar.reconcile.outage import ServerState, next_look
from lora_sidecar.reconcile.policy import Policy
from lora_sidecar.reconcile.reconcile import reconcile
from lora_sidecar.reconcile.state import Plan, State
from lora_sidecar.status.board import Board, ServerStatus
from lora_sidecar.threads import BlockingCall, ReaderPool
from lora_sidecar.vitals import Vitals

_SHORTEST_PAUSE = 0.001
"""Seconds. A timer may fire a hair before its time: what was waited for is not due yet, and is waited for again."""

Report = Callable[..., None]
"""Takes events, to be logged and counted."""


class Clock:
    """Where a watch gets the time, its jitter and its threads from: the loop's clock, and a chance in [0, 1)."""

    def __init__(
        self,
        now: Callable[[], float],
        jitter: Callable[[], float],
        new_slot: Callable[[str], BlockingCall] = BlockingCall,
    ) -> None:
        """`now` and `jitter` are called at every heartbeat, `new_slot` for each thread that reads adapters' files."""
        self.now = now
        self.jitter = jitter
        self.new_slot = new_slot


class ServerController:
    """Watches one server. `open` it, then `run` it; `reconfigure` and `trigger` may be called at any time."""

    def __init__(
        self,
        name: str,
        config: Config,
        detector: Detector,
        checkpoint: CheckpointManager,
        board: Board,
        report: Report,
        clock: Clock,
    ) -> None:
        """`name` is the server's in the config, `report` takes the events of this server."""
        self._name = name
        self._detector = detector
        self._engine: Engine | None = None
        self._checkpoint = checkpoint
        self._board = board
        self._report = report
        self._clock = clock
        self._wanted = config
        self._config: Config | None = None
        self._desired = Desired(adapters={}, incarnation=Incarnation(0))
        self._state = State(server=ServerState(since=clock.now()))
        self._triggered = asyncio.Event()
        self._watched: tuple[object, ...] = ()
        self.watcher = FileWatcher(ReaderPool(f"survey-{name}", clock.new_slot), self.trigger)
        readers = ReaderPool(f"preflight-{name}", clock.new_slot)
        self._preflight = Preflight(name, config, readers, self.watcher.accepted)
        self.loader = Loader(clock.now, self.trigger, self._preflight)
        self._health = Vitals()
        self.prober = Prober(clock.now, report, ReaderPool(f"verify-{name}", clock.new_slot))
        self.unloader = Unloader(clock.now, self.trigger, self.loader.loading, self._preflight)
        self.requests = RequestQueue(self.trigger)
        self._announce()

    async def open(self) -> None:
        """Read what was remembered. Raises `LockHeldError` where another process keeps this checkpoint."""
        self._desired, events = await self._checkpoint.open()
        self._report(*events)
        self._announce()

    def _announce(self) -> None:
        """Show what will be desired, before any heartbeat has ended."""
        self._board.announce(self._name, declare(self._desired, self._wanted.adapters)[0])

    def reconfigure(self, config: Config) -> None:
        """Go by another config from the next heartbeat on, which is now."""
        self._wanted = config
        # The next plan may take seconds, while the server is slow to answer.
        self.unloader.cancel_pending()
        self.trigger()

    def trigger(self) -> None:
        """Have the next heartbeat at once."""
        self._triggered.set()

    async def run(self) -> None:
        """Beat for ever, at a fixed rate; what is overdue is skipped and never made up for."""
        while True:
            began = self._clock.now()
            plan = await self.heartbeat()
            await self._pause(began, plan)

    async def heartbeat(self) -> Plan:
        """One heartbeat, from top to bottom."""
        began = self._clock.now()
        config = self._apply_config()
        self.requests.listen()
        seen = await self._observe(config.heartbeat.patience)
        if isinstance(seen, Observed):
            self._preflight.engine = seen.engine
        left = max(0.0, began + config.heartbeat.patience - self._clock.now())
        outcomes, unloaded = self.loader.drain(), self.unloader.drain()
        await self._take_requests(seen, (outcomes, tuple(one for one in unloaded if isinstance(one, Unloaded))))
        happened = Happened(
            outcomes=outcomes,
            unloads=unloaded,
            in_flight=(*self.loader.in_flight, *self.prober.in_doubt),
            files=self.watcher.files,
        )
        clock = Now(self._clock.now(), self._clock.jitter())
        policy = Policy.of(config, self._name)
        plan = reconcile(self._desired, seen, self._state, policy, clock=clock, happened=happened)
        self._state = plan.state
        self._report(*plan.events)
        self._desired, events = await self._checkpoint.keep(plan.desired)
        self._report(*events)
        if (engine := self._engine) is not None:
            self.loader.offer(plan, engine)
            self._report(*self.prober.offer(plan, engine, config))
            health = await self._health.make(engine, plan.state.server, config.server_health, self._clock.now(), left)
            self._report(*health)
            self.unloader.offer(plan, engine)
        self._want_files(plan, config)
        self._publish(plan, began, config)
        self.requests.answer(plan, seen, self._clock.now())
        return plan

    async def _observe(self, patience: float) -> Observation:
        """Look at the server for at most `patience` seconds: a look is up to six requests, each with its deadline."""
        at = self._clock.now()
        try:
            async with asyncio.timeout(patience):
                return await self._look_at_server()
        except TimeoutError:
            return too_slow(at, patience)

    async def _look_at_server(self) -> Observation:
        """Look with the client of the engine that serves there, which is found out anew after whatever casts doubt."""
        trusted = self._trusted()
        if self._engine is None or trusted is None or self._engine.in_doubt:
            found = await self._detector.find()
            if isinstance(found, Unknown):
                return found
            self._engine = found
            found.on_disconnect(self.trigger)
        return await self._engine.observe(trusted)

    async def _take_requests(self, seen: Observation, ended: tuple[tuple[Outcome, ...], tuple[Unloaded, ...]]) -> None:
        """Take in what was asked for through the control port, each durable before anything comes of it."""
        self._desired, self._state, events = await self.requests.take(
            self._desired, self._state, seen, ended, self._persist
        )
        self._report(*events)

    async def _persist(self, desired: Desired) -> tuple[Desired, str]:
        kept, events = await self._checkpoint.keep(desired, urgent=True)
        self._report(*events)
        failed = self._checkpoint.condition
        return kept, "" if self._checkpoint.has(kept) or failed is None else failed.message

    def _want_files(self, plan: Plan, config: Config) -> None:
        """Have the files looked at: of what is missing or suspected each time, of what is loaded in turn.

        What is loaded now is left out: its files are read for that, and the disk and the processor are needed for it.
        """
        last = plan.state.last
        if not config.preflight.enabled:
            # What was seen before says nothing any more, and must hold nobody back.
            self._watched = ()
            self.watcher.want((), (), config.preflight.timeout)
            return
        if last is None:
            return
        wanted = (plan.desired, last.adapters, config, plan.restores)
        if wanted == self._watched:
            self.watcher.want_again()
            return
        self._watched = wanted
        adapters = plan.desired.adapters
        listed = {card.name: card.path for card in last.adapters if card.name in adapters}
        read = {adapter.name: adapter.path for adapter in plan.restores}
        odd = [adapter.path for name, adapter in adapters.items() if name not in listed and name not in read]
        suspected = [suspect.path for suspect in plan.desired.suspects.values()]
        self.watcher.want((*odd, *suspected), tuple(listed.values()), config.preflight.timeout, keep=read.values())

    def _apply_config(self) -> Config:
        """Take over a config that is new: what it declares is desired from this heartbeat on."""
        if self._config is not self._wanted:
            former, self._config = self._config, self._wanted
            self._detector.apply(self._config)
            self.loader.concurrency = self._config.restore.concurrency
            self._preflight.apply(self._config)
            before = self._desired
            self._desired, events = declare(before, self._config.declared_on(self._name))
            attempts = reset(self._state.loads.attempts, before, self._desired)
            if former is not None and _measure(former, self._name) != _measure(config := self._config, self._name):
                attempts = {name: one.shorten(config.restore.backoff) for name, one in attempts.items()}
            self._state = replace(self._state, loads=replace(self._state.loads, attempts=attempts))
            self._report(*events)
        return self._config

    def _trusted(self) -> Observed | None:
        """The last listing, if nothing since casts doubt on whose it was and nothing is about to be forgotten.

        A server that could not load anything is asked anew: started otherwise, it may list the same.
        """
        last, server = self._state.last, self._state.server
        if last is None or not last.runtime_loading or server.errors or server.interrupted or self._state.missed:
            return None
        return last

    def _publish(self, plan: Plan, began: float, config: Config) -> None:
        ended = self._clock.now()
        kept = (
            *_paused(self._desired),
            *((self._checkpoint.condition,) if self._checkpoint.condition is not None else ()),
        )
        self._board.publish(
            ServerStatus(
                name=self._name,
                desired=self._desired,
                work=plan.state,
                verdict=plan.verdict,
                beat_at=ended,
                beat_seconds=ended - began,
                saved_generation=self._checkpoint.generation,
                conditions=(*self._health.conditions, *plan.state.conditions, *self.prober.conditions, *kept),
                failing=self._health.failing,
                trials=self.prober.trials,
            )
        )
        seconds = round(ended - began, 4)
        said = {"verdict": plan.verdict.value, "seconds": seconds, "adapters": len(self._desired.adapters)}
        self._report(Event(EventName.HEARTBEAT_COMPLETED, Level.DEBUG, said))
        longest = config.heartbeat.patience + 2 * config.checkpoint.timeout
        if seconds > longest + config.heartbeat.interval:
            self._report(warning(EventName.HEARTBEAT_OVERRUN, repeats="overrun", **said))

    async def _pause(self, began: float, plan: Plan) -> None:
        config = self._config or self._wanted
        now = self._clock.now()
        due = began + next_look(self._state.server, config.heartbeat, now)
        if plan.wake_at is not None:
            due = min(due, plan.wake_at)
        try:
            async with asyncio.timeout_at(max(due, now + _SHORTEST_PAUSE)):
                await self._triggered.wait()
        except TimeoutError:
            return
        self._triggered.clear()


def _measure(config: Config, server: str) -> tuple[object, ...]:
    """What adapters are held against before they are sent."""
    return config.preflight, *(one for one in config.servers if one.name == server)


def _paused(desired: Desired) -> tuple[Condition, ...]:
    if desired.paused is None:
        return ()
    message = f"nothing is loaded or unloaded: {desired.paused.reason or 'no reason was given'}"
    return (Condition(ConditionType.PAUSED, message, "POST /v1/resume on the control port ends it"),)
