"""What must be true at every step of a simulated world, whatever went wrong in it.

The trap guarded against is a model that repeats the program's own reasoning. This one knows what the program cannot
know: which life a listing came from, who unloaded an adapter, whether a load took effect, what is on the disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from lora_sidecar.checkpoint.decode import Checkpoint, decode
from lora_sidecar.checkpoint.store import Loaded
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import Event, EventName
from lora_sidecar.core.model import Adapter, Desired, Origin
from lora_sidecar.core.observation import Observed
from lora_sidecar.core.outcomes import Failure, FailureKind, LoadDeferred, Result
from lora_sidecar.core.paths import same_path
from lora_sidecar.engines.activity import COUNTS
from lora_sidecar.reconcile.beat import Evidence
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.reconcile.state import Plan, Verdict
from lora_sidecar.status.adapters import AdapterState
from lora_sidecar.status.board import ServerStatus, adapters_of
from tests.simulation.server import Life, Told

if TYPE_CHECKING:
    from tests.simulation.world import World

_DEFINITE = (FailureKind.FILES, FailureKind.ADAPTER)
_ROUND_TRIP = 0.05
"""Seconds between the sidecar's last question and its load, in a network without faults."""

_QUIET = 5.0
"""Seconds for which a word that the engine is awake may count for an unload: the time of its answer."""


class ViolationError(AssertionError):
    """A promise was broken."""


class _Failures:
    """The definite failures of one adapter in a row, as the model counts them."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.count = 0
        self.at = 0.0
        self.parked = False
        self.listed_since: float | None = None


class Oracle:
    """Sees everything that happens in one world, and raises `ViolationError` at the first broken promise."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.status: ServerStatus | None = None
        self.memory: set[str] = set()
        self.known_unloaded: dict[str, int] = {}
        """Names that must not come back in the life of that number: unloaded there after they were seen listed."""
        self._gone: set[str] = set()
        self._checked: Desired | None = None
        self._saved: Checkpoint | None = None
        self._ever: list[Checkpoint | None] = [None]
        self._attempted: list[Checkpoint] = []
        self._damaged = False
        self._load_ended: dict[str, float] = {}
        self._ambiguous_at = float("-inf")
        self._failures: dict[str, _Failures] = {}
        self._plan: Plan | None = None
        self._decided_on: dict[str, Observed | None] = {}
        self._undeclared: set[str] = set()
        self._ever_declared: set[str] = set()
        self._listed_from: set[tuple[str, str]] = set()
        self._not_received: set[str] = set()
        """Loads that were decided on and that the server has not received."""

    def fail(self, promise: str) -> None:
        """Report a broken promise."""
        raise ViolationError(promise)

    @property
    def _now(self) -> float:
        return self._world.now

    # --- the sidecar's own lives

    def started(self) -> None:
        """A new life of the sidecar begins, which knows only what is on the disk."""
        self.status = None
        self._plan = None
        self._checked = None
        self._load_ended.clear()
        self._failures.clear()
        self._gone.clear()
        self._ambiguous_at = float("-inf")

    def saving(self, checkpoint: Checkpoint) -> None:
        """A save begins."""
        self._attempted.append(checkpoint)
        self._ever.append(checkpoint)

    def saved(self, checkpoint: Checkpoint) -> None:
        """A save came back without an error: it is durable from now on."""
        if self._saved is not None and checkpoint.generation <= self._saved.generation:
            self.fail(f"durability: generation {checkpoint.generation} was saved after {self._saved.generation}")
        self._saved, self._damaged = checkpoint, False
        self._attempted.clear()

    def damaged(self) -> None:
        """The current file was damaged while nobody ran: memory may be that of the generation before it."""
        self._damaged = True
        self.known_unloaded.clear()

    def loaded(self, loaded: Loaded) -> None:
        """The sidecar read the checkpoint: it must be the last generation, or the one that was being written."""
        found = loaded.checkpoint
        allowed: list[Checkpoint | None] = [self._saved, *self._attempted]
        if self._damaged:
            allowed += self._ever
        if found not in allowed:
            self.fail(f"atomicity: read {_brief(found)}, and not one of {[_brief(one) for one in allowed]}")
        kept = set() if found is None else set(found.desired.adapters)
        if self._damaged:
            self.memory &= kept
        elif not self.memory <= kept:
            self.fail(f"memory: the checkpoint has lost {sorted(self.memory - kept)}")
        if loaded.durable or self._damaged:
            self._saved = found
            self._attempted.clear()
        elif found is not None:
            self._attempted.append(found)

    # --- what the sidecar does

    def happened(self, *facts: Event) -> None:
        """The sidecar reported facts."""
        for fact in facts:
            if fact.event is EventName.ADAPTER_FORGOTTEN:
                self._forgotten(fact.fields["adapter"], fact.fields["evidence"])
            elif fact.event is EventName.ADAPTER_ORPHANED:
                self._gone.add(fact.fields["adapter"])
                self.memory.discard(fact.fields["adapter"])

    def _forgotten(self, name: str, evidence: str) -> None:
        """Only what somebody unloaded in that very life may be forgotten."""
        self._gone.add(name)
        server = self._world.server
        lives = [server.heard(), *server.born(self._believed())]
        unloaded = any(name in life.unloaded for life in lives)
        if not unloaded and evidence != Evidence.NONE.value:
            self.fail(f"memory: {name} was forgotten on the evidence {evidence}, and nobody unloaded it in this life")
        if not unloaded and self._world.proves_lives:
            self.fail(f"memory: {name} was forgotten, and nobody unloaded it in this life of the server")
        self.memory.discard(name)

    def _believed(self) -> float | None:
        """The start time of the life that the sidecar believes to be the present one."""
        return None if self.status is None else self.status.desired.incarnation.start_time

    def offered(self, plan: Plan, durable: bool) -> None:
        """The watch handed over a plan; `durable`: its desired is on the disk, or a condition says why not."""
        if not durable:
            self.fail("durability: a plan is handed over before what it is made for is durable")
        if plan.verdict is Verdict.UNKNOWN and plan.restores:
            self.fail("restraint: a plan made from an unknown observation loads something")
        if self._plan is not None and self._plan.incarnation != plan.incarnation:
            self._failures.clear()
            self._ambiguous_at = float("-inf")
        self._plan = plan

    def published(self, status: ServerStatus) -> None:
        """A heartbeat came to its end."""
        if status.beat_at != self._now:
            self.fail(f"honesty: liveness is stamped {status.beat_at} by a heartbeat that ended at {self._now}")
        before, self.status = self.status, status
        work = status.work
        if work.last is not None and (before is None or work.last is not before.work.last):
            self._check_listing(work.last)
        if before is not None:
            lost = before.desired.adapters.keys() - status.desired.adapters.keys() - self._gone
            if lost:
                self.fail(f"memory: {sorted(lost)} left desired, and nothing says why")
        self._gone.clear()
        forgotten = self.memory - status.desired.adapters.keys()
        if forgotten and self._world.has_read:
            self.fail(f"memory: {sorted(forgotten)} was durable and is desired no more")
        self._check_durable(status)
        for name in self._failures.keys() - status.desired.adapters.keys():
            del self._failures[name]
        self._check_shown(status)

    def _check_listing(self, last: Observed) -> None:
        """What is taken for a listing must be one that the server gave since it was asked."""
        cards = tuple((card.name, card.path) for card in last.adapters)
        told = [one for one in self._world.server.told if one.cards == cards and one.at >= last.at]
        if not told:
            self.fail("restraint: something that the server never said was taken for its listing")
        self._note_unloads(told[0])
        self._listed_from |= set(cards)
        listed = dict(cards)
        for name, failures in self._failures.items():
            if name not in listed:
                failures.listed_since = None
            elif failures.listed_since is None:
                failures.listed_since = self._now
            elif self._now - failures.listed_since >= self._world.config.restore.backoff.reset_after:
                failures.count = 0

    def _note_unloads(self, told: Told) -> None:
        """Forget what must not come back where it may: another life, or loaded again by somebody."""
        life = self._world.server.life
        if life is None or life.number != told.life:
            return
        listed = dict(told.cards)
        for name in list(self.known_unloaded):
            if self.known_unloaded[name] != life.number or name in listed or name not in life.unloaded:
                del self.known_unloaded[name]

    def unloaded(self, name: str, life: Life) -> None:
        """Somebody unloaded an adapter: it need not be remembered, and perhaps it must not come back."""
        self.memory.discard(name)
        status, saved = self.status, self._saved
        world = self._world
        if self._damaged or status is None or saved is None or not world.proves_lives or not world.traits.forgets:
            return
        adapter = status.desired.adapters.get(name)
        durable = saved.desired == status.desired and name in status.desired.listed
        known = status.work.last is not None and status.desired.incarnation.start_time == life.routes.start_time
        if adapter is not None and adapter.origin is not Origin.DECLARED and durable and known:
            self.known_unloaded[name] = life.number

    def undeclared(self, name: str) -> None:
        """The config names an adapter no more: it need not be remembered."""
        self.memory.discard(name)
        self._undeclared.add(name)

    def declared(self, name: str) -> None:
        """The config names an adapter; with another path it deserves a fresh start."""
        failures = self._failures.get(name)
        if failures is not None and failures.adapter.path != self._world.adapters[name]["path"]:
            del self._failures[name]
        self._undeclared.discard(name)
        self._ever_declared.add(name)

    def _check_durable(self, status: ServerStatus) -> None:
        """What is desired is on the disk when the heartbeat ends, unless a condition says that it is not."""
        if any(c.type is ConditionType.CHECKPOINT_NOT_PERSISTED for c in status.conditions):
            return
        if status.desired is not self._checked:
            self._checked = status.desired
            path = self._world.volume.directory / f"vllm.{self._world.config.checkpoint.format}"
            found = decode(path.read_bytes()) if path.exists() else None
            if not isinstance(found, Checkpoint) or found.desired != status.desired:
                self.fail("durability: a heartbeat ended, and what it desired is not on the disk")
        life = self._world.server.life
        unloaded = {} if life is None else life.unloaded
        self.memory |= status.desired.adapters.keys() - unloaded.keys()

    def _check_shown(self, status: ServerStatus) -> None:
        """Nothing is shown as listed that is not known to be."""
        listed = {} if status.work.last is None else {card.name for card in status.work.last.adapters}
        up = status.work.server.phase is Phase.UP
        fresh = {one.adapter.name: one for one in adapters_of(status)}
        for shown in status.adapters:
            now = fresh[shown.adapter.name]
            if (shown.adapter, shown.state) != (now.adapter, now.state):
                self.fail(f"honesty: {shown.adapter.name} is shown as {shown.state}, and it is {now.state}")
            if shown.state is AdapterState.LISTED and (not up or shown.adapter.name not in listed):
                self.fail(f"honesty: {shown.adapter.name} is shown as listed, and that is not known")
        if status.verdict is Verdict.STEADY and (not up or status.work.drift.missing):
            self.fail("honesty: the verdict is steady, and it is not")

    # --- loads

    def load_sent(self, adapter: Adapter, incarnation: int | None) -> None:
        """The loader is about to load an adapter; for a life of the server, if it asked whether it may."""
        status, plan, now = self.status, self._plan, self._now
        self._not_received.add(adapter.name)
        self._decided_on[adapter.name] = None if status is None else status.work.last
        if status is None or plan is None:
            return self.fail("restraint: a load before the first heartbeat ended")
        if status.verdict is Verdict.UNKNOWN:
            self.fail(f"restraint: {adapter.name} is loaded while the server's state is unknown")
        if incarnation is not None and incarnation != plan.incarnation:
            self.fail(f"no harm: {adapter.name} is loaded on a plan for life {incarnation}, in {plan.incarnation}")
        if status.desired.adapters.get(adapter.name) != adapter and not self._goes_back(adapter, status.desired):
            self.fail(f"restraint: {adapter.name} is loaded from {adapter.path}, and that is not desired")
        if self._load_ended.get(adapter.name, float("-inf")) > plan.observed_at:
            self.fail(f"no harm: {adapter.name} is loaded again before a listing said what came of its last load")
        if self._ambiguous_at > plan.observed_at:
            self.fail(
                f"no harm: {adapter.name} is loaded on a listing of {plan.observed_at}, "
                f"after a load of unknown outcome that ended at {self._ambiguous_at}"
            )
        life = self._world.server.life
        fought = self.known_unloaded.get(adapter.name)
        may_return = adapter.origin is Origin.DECLARED or not self._world.proves_lives
        if (
            fought is not None
            and not may_return
            and life is not None
            and life.number == fought
            and adapter.name in life.unloaded
        ):
            self.fail(f"restraint: {adapter.name} was unloaded on purpose in this life and is loaded again")
        self._check_backoff(adapter, now)
        return None

    def _goes_back(self, adapter: Adapter, desired: Desired) -> bool:
        """Whether a replacement is being undone: the adapter is loaded from where it was listed before."""
        wanted = desired.adapters.get(adapter.name)
        moved = wanted is not None and replace(wanted, path=adapter.path) == adapter
        return moved and self._world.traits.replaces and (adapter.name, adapter.path) in self._listed_from

    def _check_backoff(self, adapter: Adapter, now: float) -> None:
        failures = self._failures.get(adapter.name)
        if failures is None or failures.adapter != adapter or not failures.count:
            return
        backoff = self._world.config.restore.backoff
        doubled = min(backoff.max, backoff.initial * 2 ** min(failures.count - 1, 30))
        least = (backoff.parked if failures.parked else doubled) / 2
        if now - failures.at < least - 1e-6:
            self.fail(
                f"no harm: {adapter.name} failed {failures.count} times in a row and is loaded again "
                f"after {now - failures.at:.2f} s; at least {least:g} s were due"
            )

    def load_ended(self, adapter: Adapter, result: Result | None) -> None:
        """A load came to its end, as the restorer was told; None is one that was not sent."""
        now = self._now
        if result is None or isinstance(result, LoadDeferred):
            return
        if isinstance(result, Failure) and result.kind is FailureKind.AMBIGUOUS:
            self._ambiguous_at = now
        if isinstance(result, Failure) and result.kind in _DEFINITE:
            failures = self._failures.get(adapter.name)
            if failures is None or failures.adapter != adapter:
                failures = self._failures[adapter.name] = _Failures(adapter)
            # The model counts only what it is sure of, so what it demands is the least that is due.
            failures.count, failures.at = failures.count + 1, now
            failures.parked = result.kind is FailureKind.ADAPTER
        self._load_ended[adapter.name] = now

    def received(self, method: str, path: str, body: bytes | None) -> None:
        """The server received a request of the sidecar."""
        if method == "GET":
            return
        asked: Mapping[str, object] = json.loads(body or b"")
        match path:
            case "/v1/load_lora_adapter":
                self._check_load(asked)
            case "/v1/unload_lora_adapter":
                self._check_unload(str(asked["lora_name"]))
            case _:
                self.fail(f"restraint: the sidecar sent {method} {path}")

    def _check_load(self, asked: Mapping[str, object]) -> None:
        world, name = self._world, str(asked["lora_name"])
        if name not in self._not_received:
            self.fail(f"no harm: the load of {name} is sent a second time, and nobody decided that")
        self._not_received.discard(name)
        self._check_width()
        if "load_inplace" in asked:
            self.fail("no harm: a load in place")
        life, now = world.server.life, self._now
        if life is None:
            return
        slept = life.asleep_since
        if slept is not None and not world.network.told_awake(slept, now - _ROUND_TRIP):
            self.fail(f"no harm: {asked['lora_name']} is loaded into an engine that sleeps since {slept:.3f}")
        self._check_not_listed(str(asked["lora_name"]), str(asked["lora_path"]), life)

    def _check_unload(self, name: str) -> None:
        """Only what the config gives another path, or names no more, and only where the policy says so."""
        traits = self._world.traits
        # What was sent before the config changed is on its way.
        declared = [config.get(name) for config in self._world.configs_within(_ROUND_TRIP)]
        status = self.status
        listed = {} if status is None or status.work.last is None else status.work.last.adapters
        paths = {card.path for card in listed if card.name == name}
        moved = (
            traits.replaces
            and name in self._ever_declared
            and any(one is None or not same_path(path, one["path"]) for path in paths for one in declared)
        )
        # A config that was changed a moment ago is not in force yet.
        left = status is not None and name in status.desired.orphaned
        pruned = traits.prunes and (name in self._undeclared or left)
        if not moved and not pruned:
            self.fail(f"restraint: {name} is unloaded, and the config does not ask for that")
        life = self._world.server.life
        if life is not None and life.asleep_since is not None and life.asleep_since < self._now - _QUIET:
            self.fail(f"no harm: {name} is unloaded from an engine that sleeps since {life.asleep_since:.3f}")

    def _check_width(self) -> None:
        """One load at a time, unless the config allows more, or the server was just seen without requests."""
        allowed, in_flight = self._world.config.restore.concurrency, self._world.network.sending
        if allowed == "auto":
            network = self._world.network
            # What was decided a moment before the news of a request is on its way.
            is_news = self._now - network.busy_since > _ROUND_TRIP
            allowed = 4 if self._now - network.quiet_at <= COUNTS + _ROUND_TRIP and not is_news else 1
        if in_flight > allowed:
            self.fail(f"no harm: {in_flight} loads are in flight, and {allowed} may be")

    def _check_not_listed(self, name: str, path: str, life: Life) -> None:
        """Never load what is known to be listed with this path."""
        last = self._decided_on.get(name)
        if last is None or name not in life.routes.registry.adapters:
            return
        since = life.installed[name]
        for card in last.adapters:
            if card.name == name and same_path(card.path, path) and since < last.at:
                self.fail(f"restraint: {name} is loaded, which the last listing has with this path")


def _brief(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return "nothing"
    desired = checkpoint.desired
    return f"generation {checkpoint.generation} ({sorted(desired.adapters)}, life {desired.incarnation.number})"
