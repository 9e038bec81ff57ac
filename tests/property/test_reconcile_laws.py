"""Laws that hold for any history, coherent or not: whatever a server, a network and an operator may do."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.core.model import Desired, Origin
from lora_sidecar.core.observation import BaseModel, Observation, Observed, Reason, Unknown
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, LoadDeferred, Outcome, SleepState
from lora_sidecar.core.paths import same_path
from lora_sidecar.reconcile.backoff import Attempt, Now
from lora_sidecar.reconcile.beat import Happened
from lora_sidecar.reconcile.policy import Policy
from lora_sidecar.reconcile.reconcile import reconcile
from lora_sidecar.reconcile.state import Plan, State
from tests.support.core import BASE, World, adapter, card, declared, observed, rules, unknown

LAWS = settings(derandomize=True, max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NAMES = "abcd"
OTHER = BaseModel("other", "/models/other")


class Look(Struct, frozen=True):
    """A good listing."""

    names: frozenset[str]
    moved: frozenset[str]
    start_time: float | None
    changed_base: bool
    runtime_loading: bool | None


class Ended(Struct, frozen=True):
    """A load that ended, `late` seconds after the last heartbeat, in the present life or a former one."""

    name: str
    result: Accepted | Failure | LoadDeferred
    late: float
    former: bool


class Declares(Struct, frozen=True):
    """A config that declares these names."""

    names: frozenset[str]


class Dies(Struct, frozen=True):
    """Our own process dies and comes back."""


Step = Look | Reason | Ended | Declares | Dies

some_names = st.frozensets(st.sampled_from(NAMES))
looks = st.builds(
    Look,
    names=some_names,
    moved=st.frozensets(st.sampled_from(NAMES), max_size=1),
    start_time=st.sampled_from([None, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0]),
    changed_base=st.sampled_from([False, False, False, False, True]),
    runtime_loading=st.sampled_from([True, True, True, None, False]),
)
results = st.one_of(
    st.just(Accepted()),
    st.builds(Failure, kind=st.sampled_from(FailureKind), message=st.just("why"), status=st.just(500)),
    st.builds(LoadDeferred, wakefulness=st.sampled_from([SleepState.ASLEEP, SleepState.UNCLEAR]), detail=st.just("z")),
)
ends = st.builds(
    Ended,
    name=st.sampled_from(NAMES),
    result=results,
    late=st.sampled_from([0.5, 7.0]),
    former=st.sampled_from([False, False, True]),
)
steps: st.SearchStrategy[Step] = st.one_of(
    looks,
    looks,
    looks,
    ends,
    ends,
    ends,
    st.sampled_from(Reason),
    st.builds(Declares, names=some_names),
    st.just(Dies()),
)
undirected = st.one_of(looks, looks, looks, st.sampled_from(Reason), st.just(Dies()))
histories = st.lists(steps, min_size=15, max_size=40)
policies = st.builds(lambda unload: rules(on_external_unload=unload), st.sampled_from(["forget", "restore"]))
waits = st.floats(0.0, 100.0)

Check = Callable[[Desired, Observation, State, Plan], None]


def seen_in(look: Look, at: float) -> Observed:
    """The listing of a step."""
    cards = (card(n, f"/moved/{n}" if n in look.moved else None) for n in sorted(look.names))
    bases = (OTHER,) if look.changed_base else (BASE,)
    return observed(at, *cards, start_time=look.start_time, bases=bases, runtime_loading=look.runtime_loading)


def live(history: list[Step], policy: Policy, check: Check, jitter: float = 0.5) -> World:
    """Live through a history, with `check` called for each heartbeat."""
    world = World(policy=policy, jitter=jitter)
    for step in history:
        match step:
            case Dies():
                world.restart_ourselves()
            case Declares():
                world.declare(*map(declared, sorted(step.names)))
            case Ended():
                number = world.desired.incarnation.number - 1 if step.former else None
                world.ended(step.name, step.result, late=step.late, incarnation=number)
            case Look() | Reason():
                world.now += 5.0
                seen = seen_in(step, world.now) if isinstance(step, Look) else unknown(world.now, step)
                before, work = world.desired, world.state
                check(before, seen, work, world.beat(seen))
    return world


@LAWS
@given(history=st.lists(st.one_of(steps, st.just(None)), max_size=30), policy=policies)
def test_a_heartbeat_like_the_last_is_worth_a_full_look(history: list[Step | None], policy: Policy) -> None:
    """Where nothing changed, the quick answer is the one that a full look would have come to; None is such a look."""
    world = World(policy=policy, jitter=0.5)

    def check(before: Desired, seen: Observation, work: State, plan: Plan, outcomes: tuple[Outcome, ...]) -> None:
        looked = replace(work, settled=None)
        clock = Now(world.now, world.jitter)
        whole = reconcile(before, seen, looked, policy, clock=clock, happened=Happened(outcomes))
        assert replace(plan, state=replace(plan.state, settled=None)) == replace(
            whole, state=replace(whole.state, settled=None)
        )

    for step in history:
        match step:
            case Dies():
                world.restart_ourselves()
            case Declares():
                world.declare(*map(declared, sorted(step.names)))
            case Ended():
                number = world.desired.incarnation.number - 1 if step.former else None
                world.ended(step.name, step.result, late=step.late, incarnation=number)
            case None | Look() | Reason():
                world.now += 5.0
                seen: Observation | None = unknown(world.now, step) if isinstance(step, Reason) else None
                if isinstance(step, Look):
                    seen = seen_in(step, world.now)
                elif seen is None and world.state.last is not None:
                    seen = replace(world.state.last, at=world.now)
                if seen is not None:
                    before, work, outcomes = world.desired, world.state, world.pending
                    check(before, seen, work, world.beat(seen), outcomes)


@LAWS
@given(history=histories, policy=policies)
def test_unknown_is_never_empty(history: list[Step], policy: Policy) -> None:
    """On an unknown nothing is loaded and nothing forgotten: desired is the very same object."""

    def check(before: Desired, seen: Observation, _: State, plan: Plan) -> None:
        if isinstance(seen, Unknown):
            assert plan.desired is before
            assert (plan.restores, plan.wake_at) == ((), None)

    live(history, policy, check)


@settings(LAWS, max_examples=400)
@given(history=histories, policy=policies)
def test_restores_are_wanted_missing_and_allowed(history: list[Step], policy: Policy) -> None:
    """Nothing is loaded that is listed, undesired, of another base model, undecided, waiting or held."""

    def check(_: Desired, seen: Observation, __: State, plan: Plan) -> None:
        if not isinstance(seen, Observed):
            return
        listed = {one.name for one in seen.adapters}
        for one in plan.restores:
            assert one.name not in listed
            assert plan.desired.adapters[one.name] is one
            assert one.base is None or one.base in {base.root for base in seen.bases}
            assert seen.runtime_loading is not False
            attempt = plan.state.loads.attempts.get(one.name, Attempt())
            assert max(attempt.ended_at, attempt.not_before) <= seen.at
            assert plan.state.loads.backoff is None or plan.state.loads.backoff.until <= seen.at
        assert len({one.name for one in plan.restores}) == len(plan.restores)

    live(history, policy, check)


@LAWS
@given(history=histories, policy=policies, jitter=st.floats(0.0, 1.0, exclude_max=True))
def test_wake_up_is_in_the_future_and_finite(history: list[Step], policy: Policy, jitter: float) -> None:
    """A heartbeat is never asked for in the past, nor for no time at all."""

    def check(_: Desired, seen: Observation, __: State, plan: Plan) -> None:
        if plan.wake_at is not None:
            assert math.isfinite(plan.wake_at)
            assert plan.wake_at > seen.at

    live(history, policy, check, jitter)


@LAWS
@given(history=histories, policy=policies, order=st.permutations(NAMES))
def test_same_arguments_same_plan_in_any_order(history: list[Step], policy: Policy, order: list[str]) -> None:
    """The plan depends on its arguments alone, on the order of a listing not at all, and changes none of them."""
    kept: list[tuple[Desired, Observation, State]] = []

    def remember(before: Desired, seen: Observation, work: State, _: Plan) -> None:
        kept.append((before, seen, work))

    live(history, policy, remember)
    for before, seen, work in kept:
        copies = deepcopy((before, seen, work))
        plan = _plan(before, seen, work, policy)
        assert (before, seen, work) == copies
        assert _plan(*copies, policy) == plan
        if isinstance(seen, Observed):
            cards = tuple(sorted(seen.adapters, key=lambda one: order.index(one.name)))
            other = _plan(before, replace(seen, adapters=cards), work, policy)
            assert _without_order(other) == _without_order(plan)


def _plan(before: Desired, seen: Observation, work: State, policy: Policy) -> Plan:
    return reconcile(before, seen, work, policy, clock=Now(seen.at, 0.5))


def _without_order(plan: Plan) -> tuple[object, ...]:
    facts = sorted(map(repr, plan.events))
    return replace(plan, events=(), state=replace(plan.state, last=None)), facts


@LAWS
@given(history=histories, policy=policies)
def test_same_listing_again_changes_nothing_durable(history: list[Step], policy: Policy) -> None:
    """Once an absence was seen twice, the same listing again leaves desired as it is: no write without a cause."""
    world = live(history, policy, lambda *_: None)
    last = world.state.last or observed(world.now, "a")
    world.beat(replace(last, at=world.now))
    world.beat(replace(last, at=world.now))
    before, restores = world.desired, {one.name for one in world.plan.restores}
    for _ in range(3):
        world.now += 5.0
        plan = world.beat(replace(last, at=world.now))
        assert plan.desired is before
        assert restores <= {one.name for one in plan.restores} | world.state.loads.attempts.keys()


class Sighting(Struct, frozen=True):
    """A good listing as the law of forgetting looks at it; `doubt` is whether an outage came before it."""

    names: frozenset[str]
    start_time: float | None
    life: int
    doubt: bool


@settings(LAWS, max_examples=300)
@given(history=st.lists(undirected, min_size=15, max_size=40))
def test_forgotten_only_when_missed_twice_in_one_life(history: list[Step]) -> None:
    """Desired shrinks by an unload in the very life that listed the adapter, and in no other way."""
    sightings: list[Sighting] = []
    doubt = False

    def check(before: Desired, seen: Observation, work: State, plan: Plan) -> None:
        nonlocal doubt
        doubt = doubt or work.last is None
        if isinstance(seen, Unknown):
            doubt = doubt or seen.reason is not Reason.TIMEOUT
            return
        names = frozenset(one.name for one in seen.adapters)
        sightings.append(Sighting(names, seen.start_time, plan.desired.incarnation.number, doubt))
        doubt = False
        for name in before.adapters.keys() - plan.desired.adapters.keys():
            last = max(n for n, one in enumerate(sightings) if name in one.names)
            stretch, missed = sightings[last:], sightings[last + 1 :]
            assert len(missed) >= 2
            assert len({one.life for one in stretch}) == 1
            assert len({one.start_time for one in stretch} - {None}) <= 1
            assert not any(one.doubt and one.start_time is None for one in missed)
        assert {n for n in names if n in plan.desired.adapters} == names

    live(history, rules(), check)


@LAWS
@given(history=histories)
def test_declared_adapters_go_by_the_config_alone(history: list[Step]) -> None:
    """No listing takes a declared adapter away or changes its path."""

    def check(before: Desired, _: Observation, __: State, plan: Plan) -> None:
        ours = {n: one for n, one in before.adapters.items() if one.origin is Origin.DECLARED}
        assert {n: plan.desired.adapters.get(n) for n in ours} == ours

    live(history, rules(), check)


@LAWS
@given(history=histories)
def test_every_listed_adapter_is_ours_released_or_refused(history: list[Step]) -> None:
    """Nothing that is listed goes unaccounted for, and what is learned is what is listed."""

    def check(_: Desired, seen: Observation, __: State, plan: Plan) -> None:
        if not isinstance(seen, Observed):
            return
        for one in seen.adapters:
            known = plan.desired.adapters.get(one.name)
            assert known is not None or one.name in plan.desired.orphaned
            if known is not None and known.origin is Origin.ADOPTED:
                assert same_path(known.path, one.path)
        assert plan.desired.listed <= plan.desired.adapters.keys() | plan.desired.orphaned.keys()

    live(history, rules(), check)


@LAWS
@given(history=histories, policy=policies, name=st.sampled_from(NAMES), result=results, at=waits)
def test_outcome_of_a_former_life_changes_nothing(
    history: list[Step], policy: Policy, name: str, result: Accepted | Failure | LoadDeferred, at: float
) -> None:
    """With or without it, the plan is the same."""
    world = live(history, policy, lambda *_: None)
    for number in (world.desired.incarnation.number - 1, world.desired.incarnation.number + 1):
        late = Outcome(adapter(name), number, result, world.now + at, 1.0)
        for seen in (observed(world.now + 5.0, "a"), unknown(world.now + 5.0)):
            clock = Now(seen.at, 0.5)
            without = reconcile(world.desired, seen, world.state, policy, clock=clock)
            happened = Happened((late,))
            told = reconcile(world.desired, seen, world.state, policy, clock=clock, happened=happened)
            assert _without_order(told) == _without_order(without)
