from __future__ import annotations

import pytest

from lora_sidecar.core.events import EventName, Level
from lora_sidecar.core.model import Origin
from lora_sidecar.core.observation import Reason
from lora_sidecar.reconcile.state import Verdict
from tests.support.core import BORN, World, adapter, desired, rules

REBORN = 200.0
OTHERS = [Origin.ADOPTED, Origin.REQUESTED]


def two(origin: Origin = Origin.ADOPTED, start_time: float | None = BORN) -> World:
    """A world in which `a` and `b` are desired and were just seen listed."""
    world = World(desired(adapter("a", origin), adapter("b", origin), start_time=start_time))
    world.see("a", "b", start_time=start_time)
    world.events.clear()
    return world


# The server's own start time proves that it is the same process.


@pytest.mark.parametrize("origin", OTHERS)
def test_unloaded_in_one_life_is_forgotten_at_the_second_miss(origin: Origin) -> None:
    """An adapter that one and the same process stopped listing was unloaded by somebody, and stays unloaded."""
    world = two(origin)

    first = world.see("b")
    assert (first.restores, first.verdict, set(first.desired.adapters)) == ((), Verdict.STEADY, {"a", "b"})
    second = world.see("b")
    assert (second.restores, set(second.desired.adapters)) == ((), {"b"})
    assert "a" not in second.desired.listed
    assert world.told(EventName.ADAPTER_FORGOTTEN)[0]["evidence"] == "start_time"
    assert [f.level for f in world.events if f.event is EventName.ADAPTER_FORGOTTEN] == [Level.INFO]


def test_declared_and_unloaded_is_restored_at_the_second_miss() -> None:
    """What the config declares is loaded again, and not before a second listing confirms that it is gone."""
    world = two(Origin.DECLARED)

    assert world.see("b").restores == ()
    assert [one.name for one in world.see("b").restores] == ["a"]
    assert set(world.desired.adapters) == {"a", "b"}
    assert not world.told(EventName.ADAPTER_FORGOTTEN)


def test_one_miss_and_back_again_counts_for_nothing() -> None:
    """Two misses must follow on one another: an adapter that came back between them is not forgotten."""
    world = two()
    for listed in (["b"], ["a", "b"], ["b"], ["a", "b"]):
        world.see(*listed)

    assert set(world.desired.adapters) == {"a", "b"}
    assert not world.state.missed


def test_all_unloaded_in_one_life_are_forgotten() -> None:
    """A proven life of the server outweighs the suspicion that an empty listing raises."""
    world = two()
    world.see()
    world.see()

    assert not world.desired.adapters
    assert not world.told(EventName.SERVER_RESTARTED)


def test_outage_within_one_life_proves_nothing() -> None:
    """A process that was only stopped for a while kept its adapters: what is missing after that was unloaded."""
    world = two()
    world.miss(Reason.REFUSED)
    world.see("b")
    world.see("b")

    assert set(world.desired.adapters) == {"b"}
    assert world.desired.incarnation.number == 1


def test_misses_on_both_sides_of_an_unknown_count_together() -> None:
    """An unknown between two listings of one life neither counts as a miss nor takes one back."""
    world = two()
    world.see("b")
    world.miss(Reason.SERVER_ERROR)
    assert set(world.desired.adapters) == {"a", "b"}
    world.see("b")

    assert set(world.desired.adapters) == {"b"}


# Another start time proves that it is another process.


@pytest.mark.parametrize("origin", list(Origin))
@pytest.mark.parametrize("outage", [False, True])
@pytest.mark.parametrize("left", [(), ("b",)])
def test_lost_by_a_restart_is_restored_at_once(origin: Origin, outage: bool, left: tuple[str, ...]) -> None:
    """Whoever loaded it, whether or not the outage was seen, and whatever came back by itself."""
    world = two(origin)
    if outage:
        world.miss()
    world.see(*left, start_time=REBORN)

    assert set(world.restores) == {"a", "b"} - set(left)
    assert set(world.desired.adapters) == {"a", "b"}
    assert world.desired.incarnation.number == 2
    assert world.told(EventName.SERVER_RESTARTED)[0]["evidence"] == "start_time"


def test_restart_between_two_misses_is_no_unload() -> None:
    """A miss in one life and a miss in the next are not two misses of one life."""
    world = two()
    world.see("b")
    world.see("b", start_time=REBORN)

    assert world.restores == ["a"]


def test_lost_stays_lost_however_often_it_is_missed() -> None:
    """An adapter that the new life never listed cannot have been unloaded in it."""
    world = two()
    for _ in range(10):
        world.see(start_time=REBORN)

    assert sorted(world.restores) == ["a", "b"]


def test_restored_and_then_unloaded_is_forgotten() -> None:
    """Once the new life has listed it, an adapter can be unloaded on purpose again."""
    world = two()
    world.see(start_time=REBORN)
    world.see("a", "b", start_time=REBORN)
    world.see("b", start_time=REBORN)
    world.see("b", start_time=REBORN)

    assert set(world.desired.adapters) == {"b"}


# The server tells no start time.


@pytest.mark.parametrize("origin", list(Origin))
@pytest.mark.parametrize("left", [(), ("b",)])
@pytest.mark.parametrize("reason", [r for r in Reason if r is not Reason.TIMEOUT])
def test_unproven_after_an_outage_is_a_restart(origin: Origin, left: tuple[str, ...], reason: Reason) -> None:
    """Where nothing proves the contrary, any doubt about the time between two listings goes to restore."""
    world = two(origin, start_time=None)
    world.miss(reason)
    world.see(*left, start_time=None)

    assert set(world.restores) == {"a", "b"} - set(left)
    assert world.told(EventName.SERVER_RESTARTED)[0]["evidence"] == "outage"


@pytest.mark.parametrize("origin", list(Origin))
def test_unproven_all_of_two_missing_is_a_restart(origin: Origin) -> None:
    """A restart too fast to see takes everything with it."""
    world = two(origin, start_time=None)
    world.see(start_time=None)

    assert sorted(world.restores) == ["a", "b"]
    assert world.told(EventName.SERVER_RESTARTED)[0]["evidence"] == "all_missing"


@pytest.mark.parametrize("origin", OTHERS)
def test_unproven_some_missing_twice_is_an_unload_with_a_warning(origin: Origin) -> None:
    """A guess to forget is told as one."""
    world = two(origin, start_time=None)
    assert world.see("b", start_time=None).restores == ()
    assert set(world.desired.adapters) == {"a", "b"}
    world.see("b", start_time=None)

    assert set(world.desired.adapters) == {"b"}
    assert [f.level for f in world.events if f.event is EventName.ADAPTER_FORGOTTEN] == [Level.WARNING]


def test_unproven_the_only_one_missing_twice_is_an_unload() -> None:
    """One adapter alone is likelier unloaded than lost within one interval."""
    world = World(desired(adapter("a"), start_time=None))
    world.see("a", start_time=None)
    world.see(start_time=None)
    assert set(world.desired.adapters) == {"a"}
    world.see(start_time=None)

    assert not world.desired.adapters


def test_one_slow_answer_is_no_outage() -> None:
    """Fewer timeouts than it takes to be down leave an unload an unload."""
    world = two(start_time=None)
    world.miss(Reason.TIMEOUT)
    world.miss(Reason.TIMEOUT)
    world.see("b", start_time=None)
    world.see("b", start_time=None)
    assert set(world.desired.adapters) == {"b"}

    world.miss(Reason.TIMEOUT)
    world.miss(Reason.TIMEOUT)
    world.miss(Reason.TIMEOUT)
    world.see(start_time=None)
    assert world.restores == ["b"]


def test_start_time_that_is_unread_once_is_remembered() -> None:
    """A failed look at the metrics neither makes a restart nor hides the next one."""
    world = two()
    world.see("a", "b", start_time=None)
    assert world.desired.incarnation.start_time == BORN
    world.see("b", start_time=REBORN)

    assert world.restores == ["a"]


def test_start_time_that_is_read_late_is_the_one_of_this_life() -> None:
    """A start time first read in the middle of a life does not end it."""
    world = two(start_time=None)
    life = world.desired.incarnation.number
    world.see("a", "b", start_time=BORN)

    assert (world.desired.incarnation.number, world.desired.incarnation.start_time) == (life, BORN)
    assert not world.told(EventName.SERVER_RESTARTED)


# Our own restart in between: what is durable must be enough.


def test_unloaded_while_we_were_away_is_forgotten() -> None:
    """The remembered start time tells across our own restart that the process is the same."""
    world = two()
    world.restart_ourselves()
    assert world.see("b").restores == ()
    world.see("b")

    assert set(world.desired.adapters) == {"b"}


def test_restarted_while_we_were_away_is_restored() -> None:
    """The remembered start time tells across our own restart that the process is another."""
    world = two()
    world.restart_ourselves()
    world.see(start_time=REBORN)

    assert sorted(world.restores) == ["a", "b"]


@pytest.mark.parametrize(("known", "seen"), [(None, None), (None, BORN), (BORN, None)])
def test_while_we_were_away_anything_may_have_happened(known: float | None, seen: float | None) -> None:
    """Without two start times to compare, what is missing at our first look is restored."""
    world = two(start_time=known)
    world.restart_ourselves()
    world.see("b", start_time=seen)

    assert world.restores == ["a"]


def test_missed_once_before_our_restart_is_missed_once_more() -> None:
    """A miss that only memory knew does not count after our own restart."""
    world = two()
    world.see("b")
    world.restart_ourselves()
    world.see("b")
    assert set(world.desired.adapters) == {"a", "b"}
    world.see("b")

    assert set(world.desired.adapters) == {"b"}


def test_our_restart_in_the_middle_of_a_recovery_forgets_nothing() -> None:
    """What a restart lost and we had not restored yet is restored after our own death, too."""
    world = two()
    world.see(start_time=REBORN)
    world.see("a", start_time=REBORN)
    world.restart_ourselves()
    for _ in range(3):
        world.see("a", start_time=REBORN)

    assert world.restores == ["b"]
    assert set(world.desired.adapters) == {"a", "b"}


# Where the policy is to restore what others unload.


@pytest.mark.parametrize("start_time", [BORN, None])
def test_policy_restore_turns_forgetting_off(start_time: float | None) -> None:
    """Where the policy says so, an unload is undone at the second miss, again and again."""
    world = two(start_time=start_time)
    world.policy = rules(on_external_unload="restore")
    for _ in range(3):
        assert world.see("b", start_time=start_time).restores == ()
        assert [one.name for one in world.see("b", start_time=start_time).restores] == ["a"]
        world.see("a", "b", start_time=start_time)

    assert not world.told(EventName.ADAPTER_FORGOTTEN)


def test_a_restart_is_told_with_the_life_that_began() -> None:
    """Proven, it is told though nothing was lost and nobody watched; assumed of an unwatched one, only for a loss."""
    for born, listed, lost in ((REBORN, ["a"], []), (REBORN, [], ["a"]), (None, ["a"], None), (None, [], ["a"])):
        world = World(desired(adapter("a"), start_time=born and BORN, number=4))
        world.see(*listed, start_time=born)
        told = [(one["incarnation"], one["lost_adapters"]) for one in world.told(EventName.SERVER_RESTARTED)]
        assert told == ([] if lost is None else [(5, lost)])


def test_a_start_time_that_is_learned_begins_no_life() -> None:
    """Over a connection that never broke: what was listed is still known to have been, and is missed once."""
    world = World(desired(adapter("a"), adapter("b"), start_time=None))
    world.see("a", "b", start_time=None, line=1)
    world.see("a", start_time=BORN, line=1)

    assert (world.desired.incarnation.start_time, world.state.missed, world.restores) == (BORN, {"b": 1}, [])
