from __future__ import annotations

import pytest

from lora_sidecar.core.events import EventName, Level
from lora_sidecar.core.model import Origin
from lora_sidecar.core.observation import BaseModel, Reason
from lora_sidecar.core.outcomes import FailureKind, LoadDeferred, SleepState
from tests.support.core import START, World, adapter, declared, desired, failure

OTHER = BaseModel("other", "/models/other")


def up(*names: str, start_time: float | None = 1.0) -> World:
    """A world in which `names` are desired and listed, seen at START + 5."""
    world = World(desired(*map(adapter, names), start_time=start_time))
    world.see(*names, start_time=start_time)
    world.events.clear()
    return world


def levels(world: World, event: EventName) -> list[Level]:
    """How loud the facts of that name were."""
    return [fact.level for fact in world.events if fact.event is event]


def test_one_outage_is_one_record_with_all_that_matters() -> None:
    """When it went down, when it came back, what was restored, and how many seconds each took."""
    world = up("a", "b")
    world.miss(after=2.0)
    world.miss(after=3.0)
    world.see(start_time=2.0, after=10.0)
    assert not world.told(EventName.RECOVERY_COMPLETED)
    world.see("b", start_time=2.0, after=1.0)
    assert not world.told(EventName.RECOVERY_COMPLETED)
    for _ in range(3):
        world.see("a", "b", start_time=2.0, after=1.0)

    assert world.told(EventName.RECOVERY_COMPLETED) == [
        {
            "reason": "refused",
            "restarts": 1,
            "down_at": START + 5.0,
            "up_at": START + 20.0,
            "outage_seconds": 15.0,
            "total_seconds": 17.0,
            "lost": 2,
            "restored": 2,
            "failed": 0,
            "restored_adapters": ["a", "b"],
            "failed_adapters": {},
            "restore_seconds": 2.0,
        }
    ]
    assert levels(world, EventName.RECOVERY_COMPLETED) == [Level.INFO]
    assert world.state.recovery is None


def test_outage_that_lost_nothing_is_over_with_the_first_answer() -> None:
    """A server that was only away comes back with everything: one record that says so."""
    world = up("a")
    world.miss(Reason.SERVER_ERROR)
    world.see("a", start_time=1.0)

    (record,) = world.told(EventName.RECOVERY_COMPLETED)
    assert (record["reason"], record["restarts"], record["lost"]) == ("server_error", 0, 0)


def test_slow_answers_are_no_outage() -> None:
    """Two timeouts make no record."""
    world = up("a")
    world.miss(Reason.TIMEOUT)
    world.miss(Reason.TIMEOUT)
    world.see("a", start_time=1.0)

    assert not world.told(EventName.RECOVERY_COMPLETED)
    assert not world.told(EventName.SERVER_DOWN)


def test_restart_that_nobody_saw_has_its_record() -> None:
    """A restart between two heartbeats is told like any other, from the last good answer on."""
    world = up("a")
    world.see(start_time=2.0)
    world.see("a", start_time=2.0)

    (record,) = world.told(EventName.RECOVERY_COMPLETED)
    assert (record["reason"], record["down_at"], record["outage_seconds"]) == ("restarted unseen", START + 5.0, 5.0)


def test_restart_while_we_were_away_has_its_record() -> None:
    """A restart that our own death hid is told from our first look on."""
    world = up("a")
    world.restart_ourselves()
    world.see(start_time=2.0)
    world.see("a", start_time=2.0)

    (record,) = world.told(EventName.RECOVERY_COMPLETED)
    assert (record["restarts"], record["outage_seconds"], record["restored"]) == (1, 0.0, 1)


def test_restarts_during_a_recovery_belong_to_it() -> None:
    """A server that falls again before everything is back has one long outage, with every restart counted."""
    world = up("a", "b")
    world.miss()
    world.see(start_time=2.0)
    world.see("a", start_time=2.0)
    world.miss()
    world.see(start_time=3.0)
    world.see(start_time=4.0)
    assert not world.told(EventName.RECOVERY_COMPLETED)
    world.see("a", "b", start_time=4.0)

    (record,) = world.told(EventName.RECOVERY_COMPLETED)
    assert (record["restarts"], record["lost"], record["restored"]) == (3, 2, 2)
    assert record["down_at"] == START + 5.0


def test_what_a_later_life_has_by_itself_was_lost_all_the_same() -> None:
    """An adapter that one life of the outage lacked is counted, though the next came up with it."""
    world = up("a", "b")
    world.miss()
    world.see(start_time=2.0)
    world.see("b", start_time=3.0)
    world.see("a", "b", start_time=3.0)

    (record,) = world.told(EventName.RECOVERY_COMPLETED)
    assert (record["lost"], record["restored"]) == (2, 2)


def test_failing_adapter_ends_the_recovery_with_its_reason() -> None:
    """What is known to fail holds up no record, and the record says why, loudly."""
    world = up("a", "b")
    world.see(start_time=2.0)
    world.ended("a", failure(FailureKind.FILES, "No adapter found for /adapters/a"))
    world.ended("b")
    world.see("b", start_time=2.0)

    (record,) = world.told(EventName.RECOVERY_COMPLETED)
    assert record["failed_adapters"] == {"a": "No adapter found for /adapters/a"}
    assert (record["restored"], record["failed"]) == (1, 1)
    assert levels(world, EventName.RECOVERY_COMPLETED) == [Level.WARNING]


def test_adapter_of_another_base_model_ends_the_recovery_with_its_reason() -> None:
    """What must not be restored is part of the record."""
    world = up("a")
    world.miss()
    world.see(start_time=2.0, bases=(OTHER,))

    (record,) = world.told(EventName.RECOVERY_COMPLETED)
    assert record["failed_adapters"] == {"a": "it was adopted on another base model, /models/base"}


def test_sleeping_server_has_not_recovered() -> None:
    """Loads that are withheld are neither done nor failed: the record waits for them."""
    world = up("a")
    world.miss()
    world.see(start_time=2.0)
    for _ in range(5):
        world.ended("a", LoadDeferred(SleepState.ASLEEP, "asleep"))
        world.see(start_time=2.0)
    assert not world.told(EventName.RECOVERY_COMPLETED)
    world.see("a", start_time=2.0)

    assert len(world.told(EventName.RECOVERY_COMPLETED)) == 1


def test_adapter_that_is_no_longer_wanted_holds_up_no_record() -> None:
    """Removed from the config in the middle of the recovery, it is neither restored nor failed."""
    world = World()
    world.declare(declared("a"), declared("b"))
    world.see("a", "b")
    world.see(start_time=2.0)
    world.declare(declared("b"))
    world.see("b", start_time=2.0)

    (record,) = world.told(EventName.RECOVERY_COMPLETED)
    assert (record["lost"], record["restored"], record["failed"]) == (2, 1, 0)


def test_first_start_has_a_record_of_its_own() -> None:
    """At a fresh start nothing was lost in an outage: the restore is told, and no recovery."""
    world = World()
    world.declare(declared("a"), declared("b"))
    world.miss()
    world.see()
    world.ended("b", failure(FailureKind.ADAPTER, "rank"))
    for _ in range(3):
        world.see("a")

    assert world.told(EventName.RESTORE_COMPLETED) == [
        {
            "lost": 2,
            "restored": 1,
            "failed": 1,
            "restored_adapters": ["a"],
            "failed_adapters": {"b": "rank"},
            "restore_seconds": 5.0,
        }
    ]
    assert not world.told(EventName.RECOVERY_COMPLETED)


def test_first_start_with_nothing_to_do_has_no_record() -> None:
    """Nothing missing, nothing told."""
    world = World()
    world.declare(declared("a"))
    world.see("a")

    assert not world.told(EventName.RESTORE_COMPLETED)


@pytest.mark.parametrize("start_time", [2.0, 100.0])
def test_outage_in_the_middle_of_the_first_restore_is_an_outage(start_time: float) -> None:
    """A server that falls while the first adapters are loaded has a true record: when it fell and why."""
    world = World()
    world.declare(declared("a"), declared("b"))
    world.see()
    world.see("a")
    world.miss(Reason.RESET)
    world.see(start_time=start_time)
    world.see("a", "b", start_time=start_time)

    (record,) = world.told(EventName.RECOVERY_COMPLETED)
    assert (record["reason"], record["down_at"], record["lost"]) == ("reset", START + 10.0, 2)
    assert (record["up_at"], record["restarts"]) == (START + 20.0, int(start_time == 2.0))
    assert not world.told(EventName.RESTORE_COMPLETED)


def test_unseen_restart_in_the_middle_of_the_first_restore_is_a_restart() -> None:
    """The same where only the start time shows it."""
    world = World()
    world.declare(declared("a"))
    world.see()
    world.see(start_time=2.0)
    world.see("a", start_time=2.0)

    (record,) = world.told(EventName.RECOVERY_COMPLETED)
    assert (record["reason"], record["down_at"], record["restarts"]) == ("restarted unseen", START + 5.0, 1)


def test_each_outage_has_its_own_record() -> None:
    """Three outages that were made good are three records."""
    world = up("a")
    for life in (2.0, 3.0, 4.0):
        world.miss()
        world.see(start_time=life)
        world.see("a", start_time=life)

    assert [one["restarts"] for one in world.told(EventName.RECOVERY_COMPLETED)] == [1, 1, 1]


def test_record_names_no_more_than_fit_on_a_line() -> None:
    """A thousand adapters lost and failed are counted, and few are named."""
    names = [f"a{n:04}" for n in range(1000)]
    world = up(*names)
    world.miss()
    world.see(start_time=2.0)
    for name in names[:500]:
        world.ended(name, failure())
    world.see(*names[500:], start_time=2.0)

    (record,) = world.told(EventName.RECOVERY_COMPLETED)
    assert (record["lost"], record["restored"], record["failed"]) == (1000, 500, 500)
    assert len(record["restored_adapters"]) == len(record["failed_adapters"]) == 20
    assert record["restored_adapters"][-1] == "and 481 more"
    (restarted,) = world.told(EventName.SERVER_RESTARTED)
    assert (restarted["lost"], len(restarted["lost_adapters"])) == (1000, 20)


def test_unwanted_by_its_origin_is_counted_once() -> None:
    """An adapter that was forgotten before the outage is no part of the record."""
    world = World(desired(adapter("a"), adapter("b", Origin.REQUESTED)))
    world.see("a", "b")
    world.see("a")
    world.see("a")
    world.miss()
    world.see("a", start_time=2.0)

    (record,) = world.told(EventName.RECOVERY_COMPLETED)
    assert record["lost"] == 0
