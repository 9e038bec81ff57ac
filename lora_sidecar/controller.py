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
from lora_sidecar.reconcile.desired import declare
from lora_sidecar.reconcile.loads import Now, hasten, pardon
from lora_sidecar.reconcile.outage import next_look
from lora_sidecar.reconcile.policy import Policy
from lora_sidecar.reconcile.reconcile import reconcile
from lora_sidecar.reconcile.state import Around, Plan, ServerState, State
from lora_sidecar.status.board import Board, ServerStatus
from lora_sidecar.threads import BlockingCall, ReaderPool
from lora_sidecar.vitals import Vitals

_SHORTEST_PAUSE = 0.001
"""Seconds. A timer may fire a hair before its time: what was waited for is not due yet, and is waited for again."""

Report = Callable[..., None]
"""Takes facts, to be logged and counted."""


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
    """Watches one server. `open` it, then `run` it; `reconfigure` and `look` may be called at any time."""

    def __init__(
        self,
        name: str,
        config: Config,
        detector: Detector,
        keeper: CheckpointManager,
        board: Board,
        report: Report,
        clock: Clock,
    ) -> None:
        """`name` is the server's in the config, `report` takes the facts of this server."""
        self._name = name
        self._detector = detector
        self._engine: Engine | None = None
        self._keeper = keeper
        self._board = board
        self._report = report
        self._clock = clock
        self._wanted = config
        self._config: Config | None = None
        self._desired = Desired(adapters={}, incarnation=Incarnation(0))
        self._work = State(server=ServerState(since=clock.now()))
        self._look = asyncio.Event()
        self._preflight = Preflight(name, config, ReaderPool(f"preflight-{name}", clock.new_slot))
        self._surveyed: tuple[object, ...] = ()
        self.survey = FileWatcher(ReaderPool(f"survey-{name}", clock.new_slot), self.look)
        self.restorer = Loader(clock.now, self.look, self._preflight)
        self._vitals = Vitals()
        self.verifier = Prober(clock.now, report, ReaderPool(f"verify-{name}", clock.new_slot))
        self.unloader = Unloader(clock.now, self.look, self.restorer.loading, self._preflight)
        self.desk = RequestQueue(self.look)
        self._announce()

    async def open(self) -> None:
        """Read what was remembered. Raises `LockHeldError` where another process keeps this checkpoint."""
        self._desired, facts = await self._keeper.open()
        self._report(*facts)
        self._announce()

    def _announce(self) -> None:
        """Show what will be desired, before any heartbeat has ended."""
        self._board.announce(self._name, declare(self._desired, self._wanted.adapters)[0])

    def reconfigure(self, config: Config) -> None:
        """Go by another config from the next heartbeat on, which is now."""
        self._wanted = config
        # The next plan may take seconds, while the server is slow to answer.
        self.unloader.cancel_pending()
        self.look()

    def look(self) -> None:
        """Have the next heartbeat at once."""
        self._look.set()

    async def run(self) -> None:
        """Beat for ever, at a fixed rate; what is overdue is skipped and never made up for."""
        while True:
            began = self._clock.now()
            plan = await self.beat()
            await self._pause(began, plan)

    async def beat(self) -> Plan:
        """One heartbeat, from top to bottom."""
        began = self._clock.now()
        config = self._apply_config()
        self.desk.listen()
        seen = await self._observe(config.heartbeat.patience)
        left = max(0.0, began + config.heartbeat.patience - self._clock.now())
        outcomes, unloaded = self.restorer.drain(), self.unloader.drain()
        await self._take_requests(seen, (outcomes, tuple(one for one in unloaded if isinstance(one, Unloaded))))
        plan = reconcile(
            self._desired,
            seen,
            self._work,
            Policy.of(config, self._name),
            outcomes=outcomes,
            unloaded=unloaded,
            clock=Now(self._clock.now(), self._clock.jitter()),
            around=Around((*self.restorer.in_flight, *self.verifier.in_doubt), self.survey.files),
        )
        self._work = plan.work
        self._report(*plan.facts)
        self._desired, facts = await self._keeper.keep(plan.desired)
        self._report(*facts)
        if (engine := self._engine) is not None:
            self.restorer.offer(plan, engine)
            self._report(*self.verifier.offer(plan, engine, config))
            health = await self._vitals.make(engine, plan.work.server, config.server_health, self._clock.now(), left)
            self._report(*health)
            self.unloader.offer(plan, engine)
        self._want_files(plan, config)
        self._publish(plan, began, config)
        self.desk.answer(plan, seen, self._clock.now())
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
            found.on_disconnect(self.look)
        return await self._engine.observe(trusted)

    async def _take_requests(self, seen: Observation, ended: tuple[tuple[Outcome, ...], tuple[Unloaded, ...]]) -> None:
        """Take in what was asked for through the control port, each durable before anything comes of it."""
        self._desired, self._work, facts = await self.desk.take(self._desired, self._work, seen, ended, self._persist)
        self._report(*facts)

    async def _persist(self, desired: Desired) -> tuple[Desired, str]:
        kept, facts = await self._keeper.keep(desired, urgent=True)
        self._report(*facts)
        failed = self._keeper.condition
        return kept, "" if self._keeper.has(kept) or failed is None else failed.message

    def _want_files(self, plan: Plan, config: Config) -> None:
        """Have the files looked at: of what is missing or suspected each time, of what is loaded in turn.

        What is loaded now is left out: its files are read for that, and the disk and the processor are needed for it.
        """
        last = plan.work.last
        if not config.preflight.enabled:
            # What was seen before says nothing any more, and must hold nobody back.
            self._surveyed = ()
            self.survey.want((), (), config.preflight.timeout)
            return
        if last is None:
            return
        state = (plan.desired, last.adapters, config, plan.restores)
        if all(one is other for one, other in zip(state, self._surveyed, strict=False)) and self._surveyed:
            self.survey.want_again()
            return
        self._surveyed = state
        adapters = plan.desired.adapters
        listed = {card.name: card.path for card in last.adapters if card.name in adapters}
        read = {adapter.name: adapter.path for adapter in plan.restores}
        odd = [adapter.path for name, adapter in adapters.items() if name not in listed and name not in read]
        suspected = [suspect.path for suspect in plan.desired.suspects.values()]
        self.survey.want((*odd, *suspected), tuple(listed.values()), config.preflight.timeout, spared=read.values())

    def _apply_config(self) -> Config:
        """Take over a config that is new: what it declares is desired from this heartbeat on."""
        if self._config is not self._wanted:
            former, self._config = self._config, self._wanted
            self._detector.apply(self._config)
            self.restorer.concurrency = self._config.restore.concurrency
            self._preflight.apply(self._config)
            before = self._desired
            self._desired, facts = declare(before, self._config.declared_on(self._name))
            attempts = pardon(self._work.attempts, before, self._desired)
            if former is not None and _measure(former, self._name) != _measure(config := self._config, self._name):
                attempts = hasten(attempts, config.restore.backoff)
            self._work = replace(self._work, attempts=attempts, steady=None)
            self._report(*facts)
        return self._config

    def _trusted(self) -> Observed | None:
        """The last listing, if nothing since casts doubt on whose it was and nothing is about to be forgotten.

        A server that could not load anything is asked anew: started otherwise, it may list the same.
        """
        last, server = self._work.last, self._work.server
        if last is None or not last.runtime_loading or server.errors or server.interrupted or self._work.missed:
            return None
        return last

    def _publish(self, plan: Plan, began: float, config: Config) -> None:
        ended = self._clock.now()
        kept = (*_paused(self._desired), *((self._keeper.condition,) if self._keeper.condition is not None else ()))
        self._board.publish(
            ServerStatus(
                name=self._name,
                desired=self._desired,
                work=plan.work,
                verdict=plan.verdict,
                beat_at=ended,
                beat_seconds=ended - began,
                saved_generation=self._keeper.generation,
                conditions=(*self._vitals.conditions, *plan.work.conditions, *self.verifier.conditions, *kept),
                failing=self._vitals.failing,
                trials=self.verifier.trials,
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
        due = began + next_look(self._work.server, config.heartbeat, now)
        if plan.wake_at is not None:
            due = min(due, plan.wake_at)
        try:
            async with asyncio.timeout_at(max(due, now + _SHORTEST_PAUSE)):
                await self._look.wait()
        except TimeoutError:
            return
        self._look.clear()


def _measure(config: Config, server: str) -> tuple[object, ...]:
    """What adapters are held against before they are sent."""
    return config.preflight, *(one for one in config.servers if one.name == server)


def _paused(desired: Desired) -> tuple[Condition, ...]:
    if desired.paused is None:
        return ()
    message = f"nothing is loaded or unloaded: {desired.paused.reason or 'no reason was given'}"
    return (Condition(ConditionType.PAUSED, message, "POST /v1/resume on the control port ends it"),)
