"""What keeps an adapter from being loaded, or threatens one that is, is said in its state and its reason."""

from __future__ import annotations

from msgspec.structs import replace

from lora_sidecar.control.requests import withdraw
from lora_sidecar.core.model import Desired, Paused
from lora_sidecar.core.observation import BaseModel, Files, Sight
from lora_sidecar.core.outcomes import Failure, FailureKind
from lora_sidecar.reconcile.state import State
from lora_sidecar.reconcile.verification import ProbeRecord, Trials
from lora_sidecar.status.adapters import SERVED, AdapterState, WithdrawnStatus, same_states, states_of, withdrawn_of
from tests.support.core import World, adapter, card, declared, desired, failure, rules

SAFE = "0.32.0"


def state(world: World, name: str, trials: Trials | None = None) -> tuple[str, str, bool]:
    """The state of an adapter, its reason, and whether it is proven."""
    (one,) = [one for one in states_of(world.desired, world.state, trials or {}) if one.adapter.name == name]
    return one.state.value, one.reason, one.proven


def test_listed_and_nothing_to_say() -> None:
    """No reason where nothing is wrong."""
    world = World(desired(adapter("a")))
    world.see("a")
    assert state(world, "a") == ("listed", "", False)


def test_what_probes_say() -> None:
    """Proven, dead and without effect, each once enough probes were made; nothing of a server that is not up."""
    world = World(desired(adapter("a")))
    world.see("a")
    path = "/adapters/a"
    assert state(world, "a", {"a": ProbeRecord(path, probes=1)}) == ("listed", "", True)
    assert state(world, "a", {"a": ProbeRecord(path, dead=1, why="timeout")}) == ("listed", "", False)
    dead, why, proven = state(world, "a", {"a": ProbeRecord(path, dead=2, why="timeout")})
    assert (dead, proven) == ("dead", False)
    assert "timeout" in why
    assert state(world, "a", {"a": ProbeRecord(path, probes=3, alike=3)})[0] == "not_applied"
    world.miss()
    assert state(world, "a", {"a": ProbeRecord(path, probes=1)}) == ("unknown", "the server is down", False)


def test_files_that_are_gone_under_a_listed_adapter() -> None:
    """It serves, and is in danger."""
    world = World(desired(adapter("a")))
    world.files = {"/adapters/a": Files(Sight.GONE, looks=2, seen_before=True)}
    world.see("a")
    assert state(world, "a") == ("listed", "/adapters/a is gone", False)


def test_a_suspect_is_called_one_before_and_after_it_is_listed() -> None:
    """It is loaded last and alone, and stays a suspect for a while when it is listed."""
    world = World()
    world.declare(declared("a"), declared("b"))
    world.see()
    world.ended("a", failure(FailureKind.AMBIGUOUS, "reset"))
    world.miss()
    world.see(start_time=200.0)
    found, why, _ = state(world, "a")
    assert found == "missing"
    assert why == "suspected: the server died once while it was being loaded or probed; it is loaded last and alone"
    world.see("a", "b", start_time=200.0)
    assert state(world, "a")[:2] == ("listed", "suspected: the server died once while it was being loaded or probed")
    world.ended("b", failure(FailureKind.AMBIGUOUS, "reset"))
    world.miss()
    world.declare(declared("a"), declared("b"), declared("c"))
    world.see(start_time=300.0)
    assert state(world, "c")[1] == "the server may have died of a load: the restore starts slowly"


def test_each_bar_has_its_reason() -> None:
    """A name that is taken and another base model are no silent reasons to wait."""
    world = World(desired(adapter("a", base="/models/other"), adapter("base"), listed=frozenset()))
    world.see()
    assert state(world, "a") == ("parked", "it was adopted on another base model, /models/other", False)
    assert state(world, "base")[:2] == ("parked", "its name is that of a served base model")
    world.see(bases=(BaseModel("base", "/models/other"),))
    assert state(world, "a")[:2] == ("missing", "")


def test_a_replacement_is_followed_in_words() -> None:
    """While it is listed from the former path, while it is away, and when it cannot be loaded from the new one."""
    world = World(policy=rules(replace="safe"))
    world.declare(declared("sql", path="/adapters/new"))
    old = card("sql", "/adapters/old")
    world.see(old, version=SAFE)
    assert state(world, "sql")[:2] == ("replaced", "listed with the path /adapters/old: it is being replaced")
    world.retired("sql")
    world.see(version=SAFE)
    assert state(world, "sql")[:2] == (
        "missing",
        "it is being replaced: unloaded from /adapters/old, to be loaded from /adapters/new",
    )
    world.ended("sql", Failure(FailureKind.ADAPTER, "preflight, not sent: LoRA rank 64 is greater than 16"))
    world.see(version=SAFE)
    found, why, _ = state(world, "sql")
    assert found == "missing"
    assert why.startswith("it cannot be loaded from /adapters/new: preflight, not sent: LoRA rank 64")
    world.see(old, version=SAFE)
    assert "the former one is loaded again" in state(world, "sql")[1]


def test_a_replacement_that_is_refused_says_why() -> None:
    """The reason of the policy stands beside the path."""
    world = World(policy=rules(replace="never"))
    world.declare(declared("sql", path="/adapters/new"))
    world.see(card("sql", "/adapters/old"), version=SAFE)
    assert state(world, "sql")[:2] == ("replaced", "listed with the path /adapters/old: policy.replace is never")


def test_missed_once_waits_for_the_next_listing() -> None:
    """Neither lost nor unloaded yet."""
    world = World(desired(adapter("a"), adapter("b")))
    world.see("a", "b")
    world.see("b")
    assert state(world, "a")[:2] == ("missing", "the next listing tells whether it was unloaded")


def test_a_pause_says_whose_it_is() -> None:
    """Nothing is loaded for a reason in an operator's words."""
    world = World(desired(adapter("a"), listed=frozenset()))
    world.desired = replace(world.desired, paused=Paused("maintenance"))
    world.see()
    assert state(world, "a")[:2] == ("held", "paused: maintenance")


def test_what_was_withdrawn_is_shown_with_what_the_config_says_of_it() -> None:
    """A declared one keeps its path; one that the config does not name has only its name."""
    world = World(desired(adapter("a")))
    world.declare(declared("b"))
    world.see("a", "b")
    for name in ("a", "b"):
        world.desired, _ = withdraw(world.desired, name)
    b = world.desired.withdrawn["b"].declared
    assert b is not None
    assert withdrawn_of(world.desired) == (
        WithdrawnStatus("a", None, "to be unloaded"),
        WithdrawnStatus("b", b, "to be unloaded"),
    )
    world.unloaded("a")
    world.unloaded("b")
    world.see()
    assert withdrawn_of(world.desired) == (WithdrawnStatus("b", b, "unloaded by request"),)


def test_every_reason_that_appears_is_noticed() -> None:
    """The states are made anew when anything that they depend on has changed, and only then."""
    world = World(desired(adapter("a"), adapter("b")))
    world.see("a", "b")
    before: tuple[Desired, State, Trials] = (world.desired, world.state, {})
    assert same_states(before, before)
    assert not same_states(before, (world.desired, world.state, {"a": ProbeRecord("/adapters/a", dead=2)}))
    world.files = {"/adapters/a": Files(Sight.GONE, looks=2, seen_before=True)}
    world.see("a", "b")
    assert not same_states(before, (world.desired, world.state, {}))


def test_only_what_is_served_lets_a_required_adapter_be_ready() -> None:
    """Readiness goes by the listing, and by nothing less."""
    assert {state.value for state in set(AdapterState) - SERVED} == {
        "missing",
        "backoff",
        "parked",
        "quarantined",
        "held",
        "withdrawn",
        "unknown",
    }
