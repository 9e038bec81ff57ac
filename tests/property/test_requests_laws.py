from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_sidecar.config.inventory import AdapterConfig
from lora_sidecar.control.requests import Load, Pause, Request, Resume, Unload, receive, retract
from lora_sidecar.core.model import Desired, Origin
from lora_sidecar.core.observation import Observation
from lora_sidecar.reconcile.desired import declare
from lora_sidecar.reconcile.outage import Phase
from tests.support.core import NOTHING, World, card, observed, unknown

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.sampled_from(["/1", "/2", "/2/"])
INTENTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(Load, NAMES, PATHS, st.booleans()),
    st.builds(Unload, NAMES),
    st.builds(Pause, st.sampled_from(["", "why"])),
    st.builds(Resume),
)
CONFIGS = st.dictionaries(NAMES, PATHS, max_size=3).map(lambda d: [AdapterConfig(n, p) for n, p in d.items()])
LISTINGS = st.none() | st.dictionaries(NAMES, PATHS, max_size=3)
STEPS = st.lists(st.one_of(INTENTS, CONFIGS, st.tuples(LISTINGS, st.booleans())), max_size=12)


def seen(listing: dict[str, str] | None) -> tuple[Observation, Phase]:
    """A listing of these adapters, or a server that is away."""
    if listing is None:
        return unknown(2_000), Phase.DOWN
    return observed(2_000, *(card(name, path) for name, path in listing.items())), Phase.UP


def lived(steps: list[object]) -> Desired:
    """What is desired after a history of requests, configs, listings and restarts."""
    world = World(NOTHING)
    for step in steps:
        match step:
            case Load() | Unload() | Pause() | Resume():
                received = receive(world.desired, step, *seen({}))
                if received is not None:
                    world.desired = received.desired
            case list():
                world.declare(*step)
            case (None, _):
                world.miss()
            case (dict() as listing, bool() as reborn):
                cards = [card(name, path) for name, path in listing.items()]
                world.see(*cards, start_time=world.now if reborn else 100.0)
            case _:
                raise AssertionError(step)
    return world.desired


@given(steps=STEPS)
def test_nothing_is_desired_and_withdrawn_at_once(steps: list[object]) -> None:
    """Whatever is asked for in whatever order, a name is wanted or unwanted and never both."""
    desired = lived(steps)

    assert not desired.adapters.keys() & desired.withdrawn.keys()
    assert not desired.orphaned.keys() & desired.withdrawn.keys()


@given(steps=STEPS, intent=INTENTS, listing=LISTINGS)
def test_error_changes_nothing(steps: list[object], intent: Request, listing: dict[str, str] | None) -> None:
    """An answer of 4xx leaves desired as it was, but for an adapter that is loaded already by the path asked for."""
    before = lived(steps)
    received = receive(before, intent, *seen(listing))

    if received is not None and received.answer is not None and received.answer.status >= 400:
        loaded = isinstance(intent, Load) and (listing or {}).get(intent.name, "").rstrip("/") == intent.path.rstrip(
            "/"
        )
        assert received.desired is before or loaded


@given(steps=STEPS, intent=st.one_of(st.builds(Load, NAMES, PATHS), st.builds(Unload, NAMES)), listing=LISTINGS)
def test_request_taken_back_leaves_no_trace(
    steps: list[object], intent: Load | Unload, listing: dict[str, str] | None
) -> None:
    """After a refusal adapters, released and withdrawn are what they were."""
    before = lived(steps)
    received = receive(before, intent, *seen(listing))
    if received is None or received.answer is not None:
        return
    after = retract(received.desired, intent, before)

    assert (after.adapters, after.orphaned, after.withdrawn) == (before.adapters, before.orphaned, before.withdrawn)


@given(steps=STEPS, intent=st.one_of(st.builds(Load, NAMES, PATHS), st.builds(Unload, NAMES)), config=CONFIGS)
def test_request_taken_back_leaves_the_config_its_say(
    steps: list[object], intent: Load | Unload, config: list[AdapterConfig]
) -> None:
    """A config that came between a request and its refusal is in force after it."""
    before = lived(steps)
    received = receive(before, intent, *seen(None))
    if received is None or received.answer is not None:
        return
    reloaded, _ = declare(received.desired, config)
    after = retract(reloaded, intent, before)

    assert declare(after, config)[0].adapters == after.adapters
    declared = {n for n, a in after.adapters.items() if a.origin is Origin.DECLARED}
    assert declared <= {one.name for one in config}
    assert not after.adapters.keys() & after.withdrawn.keys()


@given(steps=STEPS, name=NAMES, configs=st.lists(CONFIGS, max_size=3), restarts=st.integers(1, 3))
def test_withdrawn_is_never_restored(
    steps: list[object], name: str, configs: list[list[AdapterConfig]], restarts: int
) -> None:
    """After an unload by request no plan loads that name, while neither its config entry nor anybody asks for it."""
    desired = lived(steps)
    received = receive(desired, Unload(name), *seen(None))
    assert received is not None
    world = World(received.desired)
    entry = world.desired.withdrawn[name].declared
    for config in configs:
        kept = [one for one in config if one.name != name]
        world.declare(*kept, *([] if entry is None else [AdapterConfig(name, entry.path)]))
    for life in range(restarts):
        world.restart_ourselves()
        for _ in range(3):
            world.see(start_time=200.0 + life)
            assert name not in world.restores
            assert name not in world.desired.adapters
