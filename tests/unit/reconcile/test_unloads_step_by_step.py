from __future__ import annotations

from msgspec.structs import replace

from lora_sidecar.core.events import Event, EventName, Level
from lora_sidecar.core.model import Origin, Withdrawn
from lora_sidecar.core.outcomes import Accepted, Retired, Unloaded
from lora_sidecar.reconcile.state import (
    Attempt,
    State,
)
from lora_sidecar.reconcile.unloads import absorb_unloads, due_unloads, settle_unloads, unloaded_by_us
from tests.support.core import CLOCK, DEAD, NOW, RULE, adapter, desired


def told(facts: tuple[Event, ...]) -> list[tuple[EventName, Level, str, dict[str, object]]]:
    """All that a person is told."""
    return [(one.event, one.level, one.repeats, dict(one.fields)) for one in facts]


def test_unloads_are_noted_counted_and_told() -> None:
    """Those of another life are passed over, and those after them are not."""
    before = State(unloads={"b": Attempt(1, DEAD)})
    over = [Unloaded("x", 9, DEAD, 1.0), Unloaded("a", 1, Accepted(), 990.0), Unloaded("b", 1, DEAD, 991.0)]
    after, facts = absorb_unloads(before, over, 1, RULE, CLOCK)

    assert after.unloads == {
        "a": Attempt(not_before=NOW + RULE.max, ended_at=990.0, accepted=True),
        "b": Attempt(2, DEAD, NOW + 1.0, ended_at=991.0),
    }
    fields = {"adapter": "b", "kind": "engine", "status": 500, "message": "dead", "consecutive": 2}
    assert told(facts) == [(EventName.UNLOAD_FAILED, Level.WARNING, "b engine", fields)]
    assert absorb_unloads(before, [], 1, RULE, CLOCK)[0] is before
    assert absorb_unloads(State(), [Unloaded("a", 1, DEAD, 1.0)], 1, RULE, CLOCK)[0].unloads["a"].failures == 1


DECLARED = adapter("a", Origin.DECLARED)


def test_a_withdrawn_name_is_over_when_the_server_was_told() -> None:
    """By a listing asked for later; a declared one stays withdrawn and is told no more."""
    known = replace(
        desired(), withdrawn={"a": Withdrawn(DECLARED), "b": Withdrawn(), "c": Withdrawn(), "d": Withdrawn()}
    )
    accepted = Attempt(ended_at=990.0, accepted=True)
    unloads = {
        "a": accepted,
        "b": accepted,
        "c": replace(accepted, ended_at=NOW + 1),
        "d": Attempt(1, DEAD),
        "x": accepted,
    }
    after, left, facts = settle_unloads(known, unloads, {}, NOW, restarted=False)

    assert after.withdrawn == {"a": Withdrawn(DECLARED, pending=False), "c": Withdrawn(), "d": Withdrawn()}
    assert after.adapters == {}
    assert left == {"c": unloads["c"], "d": unloads["d"]}
    assert told(facts) == [(EventName.ADAPTER_UNLOADED, Level.INFO, "", {"adapter": name}) for name in "ab"]


def test_a_new_life_has_unloaded_what_it_does_not_list() -> None:
    """What it does list is still to be unloaded."""
    known = replace(desired(), withdrawn={"a": Withdrawn(), "b": Withdrawn()})
    after, _, facts = settle_unloads(known, {}, {"b": "/b"}, NOW, restarted=True)

    assert after.withdrawn == {"b": Withdrawn()}
    assert [one.fields["adapter"] for one in facts] == ["a"]


def test_what_somebody_loaded_again_is_declared_again() -> None:
    """As the config had it."""
    done = Withdrawn(DECLARED, pending=False)
    known = replace(desired(adapter("b")), withdrawn={"a": done})
    after, _, facts = settle_unloads(known, {}, {"a": "/adapters/a"}, NOW, restarted=False)

    assert (after.adapters, after.withdrawn) == ({"b": adapter("b"), "a": DECLARED}, {})
    fields = {"adapter": "a", "reason": "loaded again by somebody else"}
    assert told(facts) == [(EventName.ADAPTER_REINSTATED, Level.INFO, "", fields)]
    assert settle_unloads(known, {}, {}, NOW, restarted=False) == (known, {}, ())
    assert settle_unloads(known, {}, {}, NOW, restarted=True)[0] is known
    assert settle_unloads(desired(), {"a": Attempt()}, {}, NOW, restarted=False) == (desired(), {}, ())


def test_unloads_fall_due_in_order_and_after_their_wait() -> None:
    """Undecided ones wait for a listing; the next one's end is known."""
    unloads = {
        "a": Attempt(not_before=NOW),
        "b": Attempt(not_before=NOW + 7.0),
        "c": Attempt(not_before=NOW + 5.0),
        "d": Attempt(not_before=NOW + 6.0),
        "e": Attempt(ended_at=NOW + 1.0),
        "f": Attempt(ended_at=NOW),
    }

    assert due_unloads("gfedcba", unloads, NOW, NOW) == (("g", "f", "a"), NOW + 5.0)
    assert due_unloads("", unloads, NOW, NOW) == ((), None)


def test_what_we_unloaded_ourselves_counts_as_never_listed() -> None:
    """In this life, and where the server said so."""
    known = desired(*map(adapter, "abcd"))
    ended: list[Unloaded | Retired] = [
        Unloaded("a", 1, Accepted(), 1.0),
        Retired("b", 1, Accepted(), 1.0),
        Unloaded("c", 1, DEAD, 1.0),
        Unloaded("d", 9, Accepted(), 1.0),
    ]

    assert unloaded_by_us(known, ended).listed == {"c", "d"}
    assert unloaded_by_us(known, ended[2:]) is known
    assert unloaded_by_us(known, [Unloaded("x", 1, Accepted(), 1.0)]) is known
