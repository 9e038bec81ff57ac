"""Laws of the whole way back: a server that keeps what it is given, dies with it, and is given it again."""

from __future__ import annotations

import math
from enum import Enum

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.model import Origin
from lora_sidecar.core.observation import Reason
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, Result
from lora_sidecar.reconcile.flapping import WINDOW
from lora_sidecar.reconcile.policy import Policy
from lora_sidecar.reconcile.state import Plan
from tests.support.core import World, declared, failure, rules

LAWS = settings(derandomize=True, max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

GOOD = ["a", "b", "c", "d"]
BAD = {"files": FailureKind.FILES, "refused": FailureKind.ADAPTER, "strange": FailureKind.UNCLASSIFIED}


class Act(Enum):
    """What may happen between two heartbeats."""

    NOTHING = "nothing"
    CRASH_SEEN = "crash, with the outage seen"
    CRASH_UNSEEN = "crash, too fast to see"
    CRASH_MIDWAY = "crash after the first load of the plan"
    GLITCH = "an answer that says nothing"
    SLOW = "a timeout"
    SELF = "this process dies"


class Loads(Struct, frozen=True):
    """Somebody loads an adapter."""

    name: str


class Unloads(Struct, frozen=True):
    """Somebody unloads an adapter."""

    name: str


class Declares(Struct, frozen=True):
    """The config declares these."""

    names: frozenset[str]


Step = Act | Loads | Unloads | Declares

good = st.sampled_from(GOOD)
steps: st.SearchStrategy[Step] = st.one_of(
    st.sampled_from(Act),
    st.builds(Loads, good),
    st.builds(Unloads, good),
    st.builds(Declares, st.frozensets(st.sampled_from([*GOOD, *BAD]))),
)


class Pod:
    """A server and its sidecar; the loads of a plan are over, well or not, before the next heartbeat."""

    def __init__(self, policy: Policy, *, tells: bool) -> None:
        """`tells` is whether the server publishes its start time."""
        self.world = World(policy=policy)
        self.tells = tells
        self.life = 1
        self.loaded: list[str] = []
        self.lost: set[str] = set()
        self.unloaded: set[str] = set()

    def act(self, step: Step) -> None:
        """Let it happen, and have a heartbeat."""
        match step:
            case Loads():
                self.load(step.name)
            case Unloads():
                self.unload(step.name)
            case Declares():
                self.world.declare(*map(declared, sorted(step.names)))
                self.lost &= self.world.desired.adapters.keys()
            case Act():
                self.suffer(step)
        self.beat()
        self.restore()

    def load(self, name: str) -> None:
        """An operator loads an adapter."""
        if name not in self.loaded:
            self.loaded.append(name)
        self.unloaded.discard(name)

    def unload(self, name: str) -> None:
        """An operator unloads an adapter; we can only know of it if we ever saw it listed in this life."""
        if name in self.loaded:
            self.loaded.remove(name)
            if name in self.world.desired.listed:
                self.unloaded.add(name)

    def suffer(self, act: Act) -> None:
        """Let something go wrong."""
        match act:
            case Act.GLITCH:
                self.world.miss(Reason.SERVER_ERROR)
            case Act.SLOW:
                self.world.miss(Reason.TIMEOUT)
            case Act.SELF:
                self.world.restart_ourselves()
            case Act.CRASH_MIDWAY:
                self.restore(most=1)
                self.crash()
                self.world.miss(Reason.RESET)
            case Act.CRASH_SEEN | Act.CRASH_UNSEEN:
                self.crash()
                if act is Act.CRASH_SEEN or not self.tells:
                    self.world.miss()
            case Act.NOTHING:
                pass

    def crash(self) -> None:
        """The server dies, and with it all that it was given."""
        self.life += 1
        self.lost |= set(self.loaded) & self.world.desired.adapters.keys()
        self.loaded.clear()
        self.unloaded.clear()

    def beat(self, after: float = 5.0) -> Plan:
        """A heartbeat with a good listing, by which nothing may be forgotten that was lost."""
        world = self.world
        plan = world.see(*self.loaded, start_time=float(self.life) if self.tells else None, after=after)
        self.lost -= set(self.loaded)
        planned = {one.name for one in plan.restores}
        for name in self.lost:
            assert name in plan.desired.adapters, f"{name} was lost by a restart and is forgotten"
            tried = name in planned or name in plan.state.loads.attempts
            # A server that flaps is given one adapter a heartbeat: then another is planned, or the time for the next.
            assert tried or planned or plan.wake_at, f"{name} was lost by a restart and is not restored"
        return plan

    def calm(self) -> None:
        """Nothing happens for so long that the server no longer counts as flapping."""
        self.beat(after=WINDOW)
        self.restore()

    def restore(self, most: int = 1000) -> None:
        """Carry out the newest plan."""
        for one in self.world.plan.restores[:most]:
            self.world.ended(one.name, self.answer(one.name), late=0.5)

    def answer(self, name: str) -> Result:
        """What the server makes of a load."""
        if name in BAD:
            return Failure(BAD[name], "it cannot be loaded", 500)
        if name in self.loaded:
            return Accepted(already=True)
        self.loaded.append(name)
        if self.world.desired.adapters[name].origin is Origin.DECLARED:
            self.unloaded.discard(name)
        return Accepted()


@LAWS
@given(history=st.lists(steps, min_size=8, max_size=30), tells=st.booleans(), forget=st.booleans())
def test_whatever_happened_the_server_ends_up_with_what_is_desired(
    history: list[Step], tells: bool, forget: bool
) -> None:
    """After any history, a few quiet heartbeats load all that can be loaded, and then there is nothing left to do."""
    pod = Pod(rules(on_external_unload="forget" if forget else "restore"), tells=tells)
    for step in history:
        pod.act(step)
    pod.calm()
    for _ in range(4):
        pod.act(Act.NOTHING)
    wanted = set(pod.world.desired.adapters) - BAD.keys()

    assert wanted <= set(pod.loaded)
    assert set(pod.loaded) <= wanted | pod.world.desired.orphaned.keys()
    assert {one.name for one in pod.world.plan.restores} <= BAD.keys()


@LAWS
@given(history=st.lists(steps, min_size=8, max_size=30))
def test_unloaded_on_purpose_stays_unloaded(history: list[Step]) -> None:
    """Where the server's life is known, an operator who unloads an adapter that nobody declared is not fought."""
    pod = Pod(rules(), tells=True)
    for step in history:
        pod.act(step)
    pod.act(Act.NOTHING)
    assert not pod.unloaded & pod.world.desired.adapters.keys()
    for _ in range(3):
        pod.act(Act.NOTHING)

    assert not pod.unloaded & set(pod.loaded)


@LAWS
@given(history=st.lists(steps, min_size=8, max_size=30), tells=st.booleans())
def test_carried_out_plan_leaves_nothing_to_do(history: list[Step], tells: bool) -> None:
    """A plan that was carried out well is followed by a plan without restores."""
    pod = Pod(rules(), tells=tells)
    for step in history:
        pod.act(step)
    pod.calm()
    pod.world.declare(*map(declared, GOOD))
    pod.loaded = [one for one in pod.loaded if one not in BAD]
    pod.beat()
    pod.beat()
    for one in pod.world.plan.restores:
        pod.loaded.append(one.name)
        pod.world.ended(one.name, late=0.5)

    assert pod.beat().restores == ()


@LAWS
@given(
    kind=st.sampled_from([k for k in FailureKind if k is not FailureKind.ADAPTER] + [None]),
    looks=st.lists(st.floats(0.01, 20.0), min_size=20, max_size=200),
    jitter=st.floats(0.0, 1.0, exclude_max=True),
)
def test_failing_adapter_is_not_hammered(kind: FailureKind | None, looks: list[float], jitter: float) -> None:
    """Whatever the failure, an accepted load that is never listed included, loads grow rare, however often we look."""
    backoff = BackoffConfig(initial=1.0, max=60.0)
    world = World(policy=rules(backoff=backoff), jitter=jitter)
    world.declare(declared("x"))
    tries, began = 0, world.now
    for after in looks:
        world.see(after=after)
        if world.restores:
            tries += 1
            world.ended("x", Accepted() if kind is None else failure(kind), late=0.0)
    elapsed = world.now - began

    assert tries <= 2 + math.log2(backoff.max / backoff.initial) + elapsed / (backoff.max / 2)
    assert tries >= min(3, elapsed / 40)


@LAWS
@given(
    bad=st.dictionaries(st.sampled_from("pqr"), st.sampled_from(FailureKind), min_size=1),
    priority=st.integers(-5, 5),
    jitter=st.floats(0.0, 1.0, exclude_max=True),
)
def test_failing_adapters_starve_no_other(bad: dict[str, FailureKind], priority: int, jitter: float) -> None:
    """Though the failing ones go first and each failure ends the round, every good adapter is loaded in the end."""
    blameless = (FailureKind.SERVER_SETUP, FailureKind.UNAUTHORIZED, FailureKind.LOCAL)
    world = World(jitter=jitter)
    world.declare(*(declared(n, priority=priority) for n in bad), *map(declared, GOOD))
    loaded: list[str] = []
    for _ in range(60):
        world.see(*loaded)
        for one in world.plan.restores:
            if one.name not in bad:
                loaded.append(one.name)
                world.ended(one.name, late=0.1)
                continue
            world.ended(one.name, failure(bad[one.name]), late=0.1)
            if bad[one.name] not in (FailureKind.FILES, FailureKind.ADAPTER, FailureKind.UNCLASSIFIED):
                break

    assert set(GOOD) <= set(loaded) or any(kind in blameless for kind in bad.values())
