from __future__ import annotations

from msgspec.structs import replace

from lora_sidecar.config.settings import AdoptConfig, BackoffConfig, HeartbeatConfig
from lora_sidecar.core.model import Paused, Withdrawn
from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.reconcile.due import due
from lora_sidecar.reconcile.loads import Now
from lora_sidecar.reconcile.policy import Policy
from lora_sidecar.reconcile.state import (
    Attempt,
    Retire,
    ServerBackoff,
    State,
)
from tests.support.core import adapter, desired, failure, observed

NOW = 1_000.0
RULE = BackoffConfig()
CLOCK = Now(NOW, 0.0)
GONE = failure(FailureKind.FILES, "no files")
DEAD = failure(FailureKind.ENGINE, "dead", 500)


POLICY = Policy(AdoptConfig(), forget_unloaded=True, backoff=RULE, heartbeat=HeartbeatConfig())


NONE = State()


def sent(work: State = NONE, **more: object) -> tuple[list[str], float | None]:
    """The names of the loads that are due, and when something more is."""
    known = desired(*map(adapter, "abc"))
    seen = more.get("seen", observed(NOW))
    found = due(known, work, seen, POLICY, NOW, loadable=known.adapters, bombs=(), retires=())  # type: ignore[arg-type]
    return [one.name for one in found.restores], found.wake_at


def test_loads_fall_due_after_their_wait() -> None:
    """At that very moment; what is undecided waits for a listing, and the earliest of the others is known."""
    attempts = {
        "a": Attempt(not_before=NOW + 9.0),
        "b": Attempt(not_before=NOW + 8.0),
        "c": Attempt(not_before=NOW),
    }

    assert sent() == (["a", "b", "c"], None)
    assert sent(State(attempts=attempts)) == (["c"], NOW + 8.0)
    assert sent(State(attempts={"a": Attempt(ended_at=NOW + 1.0)})) == (["b", "c"], None)
    assert sent(State(attempts={"a": Attempt(ended_at=NOW)})) == (["a", "b", "c"], None)


def test_a_hold_ends_at_its_moment() -> None:
    """Before it nothing is due; nor without a route to load by."""
    assert sent(State(hold=ServerBackoff(DEAD, 1, NOW + 1.0))) == ([], NOW + 1.0)
    assert sent(State(hold=ServerBackoff(DEAD, 1, NOW))) == (["a", "b", "c"], None)
    assert sent(seen=observed(NOW, runtime_loading=False)) == ([], None)
    assert sent(seen=observed(NOW, runtime_loading=None)) == (["a", "b", "c"], None)


def test_where_not_all_are_kept_the_most_urgent_comes_last() -> None:
    """The server keeps what was loaded last."""
    assert sent(seen=observed(NOW, capacity=2)) == (["c", "b", "a"], None)
    assert sent(seen=observed(NOW, capacity=3)) == (["a", "b", "c"], None)


def test_what_the_configured_memory_does_not_hold_goes_first() -> None:
    """The rest follows once it is listed."""
    known = desired(*map(adapter, "abc"))
    few = replace(POLICY, capacity=2)
    found = due(known, NONE, observed(NOW), few, NOW, loadable=known.adapters, bombs=(), retires=())

    assert [one.name for one in found.restores] == ["c"]


def test_unloads_retires_and_bombs_are_due_beside_the_loads() -> None:
    """What is retired anyway is no bomb as well; in a pause nothing is due; the earliest moment counts."""
    known = replace(desired(adapter("a")), withdrawn={"w": Withdrawn(), "v": Withdrawn()})
    retires = (Retire("r"),)
    work = State(
        attempts={"a": Attempt(not_before=NOW + 5.0)},
        unloads={"v": Attempt(not_before=NOW + 4.0)},
    )
    found = due(known, work, observed(NOW), POLICY, NOW, loadable=known.adapters, bombs=("b", "r"), retires=retires)

    assert (found.restores, found.unloads, found.retires, found.wake_at) == ((), ("w", "b"), retires, NOW + 4.0)
    paused = replace(known, paused=Paused())
    quiet = due(paused, work, observed(NOW), POLICY, NOW, loadable=known.adapters, bombs=("b",), retires=retires)
    assert (quiet.restores, quiet.unloads, quiet.retires, quiet.wake_at) == ((), (), (), None)
