"""Builders for the pure core, and a world that feeds it one observation after another as the watch does."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from lora_sidecar.config.inventory import AdapterConfig
from lora_sidecar.config.settings import AdoptConfig, BackoffConfig, HeartbeatConfig, PolicyConfig
from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.events import Event, EventName
from lora_sidecar.core.model import Adapter, Desired, Incarnation, Origin
from lora_sidecar.core.observation import BaseModel, Files, Listed, Observation, Observed, Reason, Unknown
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, Outcome, Result, Retired, Unloaded
from lora_sidecar.reconcile.backoff import Now
from lora_sidecar.reconcile.beat import Happened
from lora_sidecar.reconcile.desired import declare
from lora_sidecar.reconcile.loads import reset
from lora_sidecar.reconcile.outage import ServerState
from lora_sidecar.reconcile.policy import Policy
from lora_sidecar.reconcile.reconcile import reconcile
from lora_sidecar.reconcile.state import Plan, State, Verdict

BASE = BaseModel("base", "/models/base")
BORN = 100.0
"""The start time of the server's first life."""
START = 1_000.0
"""When a world begins, in seconds of the loop's clock."""
BEAT = 5.0
NOW = 1_000.0
RULE = BackoffConfig()
CLOCK = Now(NOW, 0.0)
"""For what is tested a step at a time: a moment, the default backoff, and a clock that stands there."""
NOTHING = Desired(adapters={}, incarnation=Incarnation(0))


def rules(
    *,
    adopt: AdoptConfig | None = None,
    backoff: BackoffConfig | None = None,
    heartbeat: HeartbeatConfig | None = None,
    capacity: int | None = None,
    declares: bool = True,
    **policy: Any,
) -> Policy:
    """A policy; the defaults are those of the config, but that no loaded adapter is replaced."""
    fields: dict[str, Any] = {"adopt": adopt or AdoptConfig(), "replace": "never"} | policy
    given = PolicyConfig(**fields)
    return Policy(given, backoff or BackoffConfig(), heartbeat or HeartbeatConfig(), capacity, declares)


def adapter(name: str, origin: Origin = Origin.ADOPTED, **fields: Any) -> Adapter:
    """A desired adapter at `/adapters/NAME`; a learned one belongs to the base model."""
    given = {"path": f"/adapters/{name}", "base": BASE.root if origin is Origin.ADOPTED else None} | fields
    return Adapter(name=name, origin=origin, **given)


def card(name: str, path: str | None = None, parent: str = BASE.id) -> Listed:
    """An adapter's card in a listing, at `/adapters/NAME` unless said."""
    return Listed(name, f"/adapters/{name}" if path is None else path, parent)


def observed(at: float, *listed: str | Listed, start_time: float | None = BORN, **fields: Any) -> Observed:
    """A good listing."""
    cards = tuple(card(one) if isinstance(one, str) else one for one in listed)
    bases, loading = fields.pop("bases", (BASE,)), fields.pop("runtime_loading", True)
    return Observed(at, bases, cards, start_time, loading, **fields)


def unknown(at: float, reason: Reason = Reason.REFUSED, detail: str = "it failed", hint: str = "") -> Unknown:
    """An observation that says nothing."""
    return Unknown(at, reason, detail, hint)


def desired(
    *adapters: Adapter, start_time: float | None = BORN, number: int = 1, listed: frozenset[str] | None = None
) -> Desired:
    """What a checkpoint may hold: all of `adapters` were seen listed, unless said."""
    by_name = {one.name: one for one in adapters}
    return Desired(by_name, Incarnation(number, start_time), frozenset(by_name) if listed is None else listed)


def failure(kind: FailureKind = FailureKind.FILES, message: str = "No adapter found", status: int = 404) -> Failure:
    """A load that failed."""
    return Failure(kind, message, status)


class World:
    """Keeps what the watch keeps between two heartbeats, and everything that a person was told."""

    def __init__(self, known: Desired = NOTHING, policy: Policy | None = None, jitter: float = 0.0) -> None:
        self.desired = known
        self.policy = policy or rules()
        self.now = START
        self.state = State(server=ServerState(since=START))
        self.jitter = jitter
        self.events: list[Event] = []
        self.plan = Plan(known, self.state, Verdict.UNKNOWN)
        self._outcomes: list[Outcome] = []
        self._unloaded: list[Retired | Unloaded] = []
        self.files: dict[str, Files] = {}
        self.in_flight: tuple[Adapter, ...] = ()

    def see(self, *listed: str | Listed, after: float = BEAT, **fields: Any) -> Plan:
        """A heartbeat with a good listing, `after` seconds after the last one."""
        self.now += after
        return self.beat(observed(self.now, *listed, **fields))

    def miss(self, reason: Reason = Reason.REFUSED, after: float = BEAT, detail: str = "it failed") -> Plan:
        """A heartbeat that learns nothing."""
        self.now += after
        return self.beat(unknown(self.now, reason, detail))

    def beat(self, seen: Observation) -> Plan:
        """One heartbeat with any observation."""
        outcomes, self._outcomes = tuple(self._outcomes), []
        unloaded, self._unloaded = tuple(self._unloaded), []
        happened = Happened(outcomes, unloaded, self.in_flight, dict(self.files))
        clock = Now(self.now, self.jitter)
        self.plan = reconcile(self.desired, seen, self.state, self.policy, clock=clock, happened=happened)
        self.desired, self.state = self.plan.desired, self.plan.state
        self.events += self.plan.events
        return self.plan

    def ended(
        self,
        name: str,
        result: Result | None = None,
        *,
        late: float = 1.0,
        incarnation: int | None = None,
        path: str | None = None,
    ) -> None:
        """A load of the newest plan ended `late` seconds after the last heartbeat; well, unless `result` is given.

        It was a load from `path`, or else from where the adapter is desired now.
        """
        number = self.desired.incarnation.number if incarnation is None else incarnation
        one = self.desired.adapters.get(name) or adapter(name)
        one = one if path is None else replace(one, path=path)
        self._outcomes.append(Outcome(one, number, result or Accepted(), self.now + late, late))

    def retired(self, name: str, result: Accepted | Failure | None = None) -> None:
        """A retirement of the newest plan ended a second after the last heartbeat; well, unless `result` is given."""
        self._unloaded.append(Retired(name, self.desired.incarnation.number, result or Accepted(), self.now + 1.0))

    def unloaded(self, name: str, result: Accepted | Failure | None = None) -> None:
        """An unload of the newest plan ended a second after the last heartbeat; well, unless `result` is given."""
        self._unloaded.append(Unloaded(name, self.desired.incarnation.number, result or Accepted(), self.now + 1.0))

    def restart_ourselves(self) -> None:
        """Our own process dies and comes back: only what is durable is left."""
        self.state = State(server=ServerState(since=self.now))
        self._outcomes = []

    def declare(self, *declared: AdapterConfig) -> None:
        """A config that declares exactly these adapters is taken over, as at a reload."""
        before = self.desired
        self.desired, events = declare(before, declared)
        loads = self.state.loads
        self.state = replace(self.state, loads=replace(loads, attempts=reset(loads.attempts, before, self.desired)))
        self.events += events

    @property
    def pending(self) -> tuple[Outcome, ...]:
        """The outcomes that the next heartbeat will hear of."""
        return tuple(self._outcomes)

    @property
    def restores(self) -> list[str]:
        """The names that the newest plan loads, in order."""
        return [one.name for one in self.plan.restores]

    def told(self, event: EventName) -> list[dict[str, Any]]:
        """The fields of every event of that name so far."""
        return [dict(one.fields) for one in self.events if one.event is event]

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of a type that holds now, if it does."""
        return next((one for one in self.state.conditions if one.type is kind), None)


def declared(name: str, **fields: Any) -> AdapterConfig:
    """An adapter of the config, at `/adapters/NAME` unless said."""
    return AdapterConfig(**({"name": name, "path": f"/adapters/{name}"} | fields))


GONE = failure(FailureKind.FILES, "no files")
DEAD = failure(FailureKind.ENGINE, "dead", 500)
