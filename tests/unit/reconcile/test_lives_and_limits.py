from __future__ import annotations

from msgspec.structs import replace

from lora_sidecar.core.model import Suspect
from lora_sidecar.core.outcomes import LoadDeferred, SleepState
from lora_sidecar.reconcile.aliases import learn
from lora_sidecar.reconcile.capacity import Displacement, crowded, exchanged, first_tier, too_many, urgency
from lora_sidecar.reconcile.eviction import crowding, evicted, full, registered
from lora_sidecar.reconcile.guard import enter_life, in_turn, notice_limit
from lora_sidecar.reconcile.pacing import born, flapping, paced
from lora_sidecar.reconcile.state import (
    Attempt,
    Blocked,
    BlockReason,
    CapacityEstimate,
    Replacement,
    ServerBackoff,
    State,
)
from tests.support.core import DEAD, NOW, adapter, card, desired, observed


def test_a_new_life_forgets_what_counted_for_the_former_one() -> None:
    """And is counted as one where its beginning was seen."""
    full_of = State(
        last=observed(1.0),
        missed={"a": 1},
        attempts={"a": Attempt()},
        hold=ServerBackoff(DEAD, 1, 1.0),
        withheld=LoadDeferred(SleepState.ASLEEP, "z"),
        restoring=True,
        unloads={"a": Attempt()},
        evicted=frozenset("a"),
        swaps={"a": Replacement("/a", "/b")},
        prunes={"a": Attempt()},
        lives=(NOW - 1.0,),
        load_ended=5.0,
        crowd=CapacityEstimate(1),
    )

    assert enter_life(full_of, NOW, restarted=True, assumed=False) == State(last=full_of.last, lives=(NOW - 1.0, NOW))
    assert enter_life(full_of, NOW, restarted=True, assumed=True).lives == (NOW - 1.0,)
    assert enter_life(replace(full_of, last=None), NOW, restarted=True, assumed=False).lives == (NOW - 1.0,)
    assert enter_life(full_of, NOW, restarted=False, assumed=False) == full_of


def test_lives_are_counted_within_their_window() -> None:
    """Three within ten minutes flap; one that began just so long ago counts no more."""
    assert born((NOW - 600.0, NOW - 599.9), NOW, restarted=True) == (NOW - 599.9, NOW)
    assert born((NOW - 1.0,), NOW, restarted=False) == (NOW - 1.0,)
    assert not flapping((1.0, 2.0))
    assert flapping((1.0, 2.0, 3.0))


def test_careful_loads_go_one_at_a_time() -> None:
    """After everything else, and not before a heartbeat since the last one; at that very moment they may."""
    a, b, c = adapter("a"), adapter("b"), adapter("c")

    def sent(*all_: object, suspects: str = "", slowly: bool = False, at: float = 0.0) -> object:
        return paced(all_, suspects, slowly=slowly, not_before=at, now=NOW)  # type: ignore[arg-type]

    assert sent(a, b, c, suspects="b") == ((a, c), None)
    assert sent(a, b, suspects="ab") == ((a,), None)
    assert sent(a, b, suspects="ab", at=NOW) == ((a,), None)
    assert sent(a, b, suspects="ab", at=NOW + 1) == ((), NOW + 1)
    assert sent(a, b, suspects="a", slowly=True) == ((b,), None)
    assert sent(a, b, c, slowly=True, at=NOW + 1) == ((), NOW + 1)
    assert sent(suspects="a", at=NOW + 1) == ((), None)


def test_a_turn_waits_one_interval_after_the_last_load() -> None:
    """Where it must be careful; and what does not fit goes first."""
    a, b = adapter("a", priority=1), adapter("b")
    known = replace(desired(a, b), suspects={"a": Suspect("/adapters/a", 1), "b": Suspect("/adapters/b", 1)})
    work = State(load_ended=NOW - 4.0)

    assert in_turn((a, b), known, work, None, 5.0, NOW) == ((), NOW + 1.0)
    assert in_turn((a, b), known, work, None, 4.0, NOW) == ((a,), None)
    free = desired(a, b)
    assert in_turn((a, b), free, work, None, 5.0, NOW) == ((a, b), None)
    assert in_turn((a, b), free, work, 1, 5.0, NOW) == ((b,), None)
    assert in_turn((a, b), free, replace(work, lives=(1.0, 2.0, 3.0)), None, 5.0, NOW) == ((), NOW + 1.0)


def test_what_does_not_fit_is_loaded_before_what_does() -> None:
    """The least important, then the rest; where everything fits there is one tier."""
    a, b, c = adapter("a", priority=2), adapter("b", required=True), adapter("c")
    all_ = {one.name: one for one in (c, b, a)}

    assert sorted(all_.values(), key=urgency) == [a, b, c]
    assert first_tier((a, b, c), all_, 2) == (c,)
    assert first_tier((a, b), all_, 2) == (a, b)
    assert first_tier((a, b, c), all_, 3) == (a, b, c)
    assert first_tier((a, b, c), all_, None) == (a, b, c)


def test_an_exchange_is_as_many_gone_as_came() -> None:
    """By loads of ours, of desired ones; a strange one that left, or came, says nothing."""
    ours = {"c": Attempt(ended_at=5.0), "d": Attempt(ended_at=6.0), "e": Attempt()}

    assert exchanged("ab", "bc", ours, "abc") == Displacement(frozenset("c"), frozenset("a"))
    assert exchanged("ab", "cd", ours, "abcd") == Displacement(frozenset("cd"), frozenset("ab"))
    for before, listed, wanted in (
        ("ab", "c", "abc"),
        ("ab", "be", "abe"),
        ("ab", "bx", "ab"),
        ("ab", "bc", "bc"),
        ("ab", "ab", "ab"),
        ("abc", "bc", "abc"),
    ):
        assert exchanged(before, listed, ours, wanted) == Displacement()


def test_a_circle_of_exchanges_is_a_limit() -> None:
    """What is listed then is what fits; one whose newcomer was not pushed out before begins the count anew."""
    first, back = Displacement(frozenset("c"), frozenset("a")), Displacement(frozenset("a"), frozenset("b"))
    other = Displacement(frozenset("d"), frozenset("b"))
    once = crowded(CapacityEstimate(), first, 4, NOW)

    assert once == CapacityEstimate(1, None, frozenset("a"))
    assert crowded(once, other, 4, NOW) == CapacityEstimate(1, None, frozenset("b"))
    twice = crowded(once, back, 4, NOW)
    assert twice == CapacityEstimate(2, 4, frozenset("ab"), NOW + 3600.0)
    assert crowded(twice, back, 3, NOW + 1) == CapacityEstimate(3, 3, frozenset("ab"), NOW + 3601.0)
    assert crowded(twice, other, 4, NOW + 1) == CapacityEstimate(1, 4, frozenset("b"), NOW + 3600.0)


def test_a_limit_is_refuted_by_a_longer_listing_and_tried_again_in_time() -> None:
    """At its very moment; before it, and without a limit, nothing changes."""
    full_up = CapacityEstimate(2, 4, frozenset("ab"), NOW)

    assert crowded(full_up, Displacement(), 5, 0.0) == CapacityEstimate()
    assert crowded(full_up, Displacement(), 4, NOW - 0.1) is full_up
    assert crowded(full_up, Displacement(), 4, NOW) == CapacityEstimate(1, None, frozenset("ab"), NOW)
    once = CapacityEstimate(1, None, frozenset("a"))
    assert crowded(once, Displacement(), 9, NOW) is once


def test_what_has_no_room_is_the_least_important() -> None:
    """As many as fit may still be loaded."""
    a, b = adapter("a"), adapter("b", priority=1)
    full_up = Blocked(BlockReason.CAPACITY, "5 wanted, 4 fit: loading one makes another vanish")

    assert too_many(CapacityEstimate(2, 4), [a, b], 3, 5) == {"a": full_up}
    assert too_many(CapacityEstimate(2, 4), [a, b], 9, 5) == {"a": full_up, "b": full_up}
    assert too_many(CapacityEstimate(2, 4), [a, b], 2, 5) == {}
    assert too_many(CapacityEstimate(1, None), [a, b], 9, 5) == {}


def test_a_limit_is_noticed_within_one_life() -> None:
    """By what the listing before showed and we did not unload ourselves, and by loads of ours."""
    work = State(
        last=observed(1.0, "a", "b"),
        attempts={"c": Attempt(ended_at=5.0)},
        crowd=CapacityEstimate(1, None, frozenset("c")),
    )
    known = desired(*map(adapter, "abc"))
    held = {"b": "/b", "c": "/c"}

    noticed = notice_limit(known, work, held, NOW, restarted=False).crowd
    assert noticed == CapacityEstimate(2, 2, frozenset("ac"), NOW + 3600.0)
    assert notice_limit(known, work, held, NOW, restarted=True).crowd == work.crowd
    assert notice_limit(known, replace(work, last=None), held, NOW, restarted=False).crowd == work.crowd
    unloaded = replace(known, listed=frozenset("bc"))
    assert notice_limit(unloaded, work, held, NOW, restarted=False).crowd == work.crowd


def test_a_listing_is_full_at_its_limit() -> None:
    """And crowded where more are wanted."""
    assert full(observed(NOW, "a", capacity=1))
    assert not full(observed(NOW, "a", capacity=2))
    assert not full(observed(NOW, "a"))
    assert crowding(observed(NOW, "a", capacity=2), 2)
    assert not crowding(observed(NOW, "a", capacity=2), 1)
    assert not crowding(observed(NOW, "a"), 9)


def test_what_was_pushed_out_before_it_was_seen_was_loaded() -> None:
    """By a load that the server accepted, of a desired one, in a full listing asked for later."""
    known = desired(*map(adapter, "ab"), listed=frozenset("a"))
    work = State(attempts={"b": Attempt(ended_at=5.0, accepted=True)})
    seen = observed(NOW, "a", capacity=1)
    listed = {"a": "/adapters/a"}

    assert registered(known, work, seen, listed).listed == {"a", "b"}
    for other in (
        registered(known, work, observed(NOW, "a", capacity=2), listed),
        registered(known, State(attempts={"b": Attempt(ended_at=5.0)}), seen, listed),
        registered(known, State(attempts={"b": Attempt(ended_at=NOW + 1, accepted=True)}), seen, listed),
        registered(known, State(attempts={"x": Attempt(ended_at=5.0, accepted=True)}), seen, listed),
        registered(known, work, seen, {"b": "/adapters/b"}),
    ):
        assert other is known
    noted = replace(known, listed=frozenset("b"))
    assert registered(noted, work, seen, listed) is noted


def test_what_a_full_server_left_out_was_evicted() -> None:
    """Where more were registered than it lists, of those; known ones stay so until they are listed again."""
    known = desired(*map(adapter, "abc"), listed=frozenset("ab"))
    work = State(last=observed(1.0), evicted=frozenset("bx"))
    listed = {"a": "/adapters/a"}

    assert evicted(known, work, observed(NOW, "a", capacity=1), listed) == {"b"}
    assert evicted(known, work, observed(NOW, "a", capacity=2), listed) == {"b"}
    assert evicted(known, replace(work, evicted=frozenset()), observed(NOW, "a", capacity=2), listed) == frozenset()
    assert evicted(known, replace(work, evicted=frozenset(), last=None), observed(NOW, "a", capacity=2), listed) == {
        "b"
    }
    assert evicted(known, work, observed(NOW, "a"), listed) == frozenset()
    strangers = listed | {"s": "/s"}
    assert evicted(known, State(last=observed(1.0)), observed(NOW, "a", "s", capacity=2), strangers) == {"b"}


def test_a_path_is_learned_from_our_own_load() -> None:
    """Only from a server that resolves paths, of a fresh load that the listing came after."""
    known = desired(adapter("a", path="/link"), adapter("b", path="/other"), adapter("h", path="org/name"))
    fresh = Attempt(ended_at=5.0, fresh=True)
    cards = [card("x"), card("a", "/real"), card("b", "/other"), card("h", "/hub")]
    seen = observed(NOW, *cards, resolves_paths=True)
    attempts = dict.fromkeys("xabh", fresh)
    after = learn(known, attempts, seen)

    assert after.adapters == {**known.adapters, "a": adapter("a", path="/link", listed_as="/real")}
    assert learn(after, attempts, seen) is after
    assert learn(known, attempts, observed(NOW, *cards)) is known
    for one in (replace(fresh, fresh=False), replace(fresh, ended_at=NOW + 1)):
        assert learn(known, {"a": one}, seen) is known
    assert learn(known, {}, seen) is known
    assert learn(known, attempts, observed(NOW, card("a", "org/name"), resolves_paths=True)) is known
