from __future__ import annotations

import pytest
from msgspec.structs import replace

from lora_sidecar.core.model import Suspect
from lora_sidecar.core.observation import Files, Sight
from lora_sidecar.reconcile.guard import defuse, hold_back, in_turn, notice_limit
from lora_sidecar.reconcile.state import Attempt, BlockReason, QuarantineTimer, State
from tests.support.core import BEAT, RULE, START, adapter, desired, observed


@pytest.mark.parametrize(("counted", "exchanges"), [("ab", 1), ("a", 0)])
def test_what_we_unloaded_ourselves_is_no_sign_of_a_full_engine(counted: str, exchanges: int) -> None:
    """An adapter that leaves as another comes is an exchange, unless it was defused or is being replaced."""
    wanted = desired(adapter("a"), adapter("b"), adapter("c"), listed=frozenset(counted))
    work = State(last=observed(START, "a", "b"), attempts={"c": Attempt(ended_at=START + 1, accepted=True)})
    held = {"a": "/adapters/a", "c": "/adapters/c"}

    assert notice_limit(wanted, work, held, START, restarted=False).crowd.exchanges == exchanges


@pytest.mark.parametrize("lives", [(), (START - 3, START - 2, START - 1)], ids=["calm", "flapping"])
def test_what_does_not_fit_goes_first_and_suspects_last(lives: tuple[float, ...]) -> None:
    """So it is whether many are sent at once or one a heartbeat: the most important of the innocent are loaded last."""
    adapters = [adapter(name, priority=priority) for name, priority in (("top", 3), ("mid", 2), ("low", 1), ("bad", 0))]
    suspects = {"bad": Suspect("/adapters/bad", 1)}
    wanted = desired(*adapters, listed=frozenset())
    wanted = type(wanted)(wanted.adapters, wanted.incarnation, suspects=suspects)
    work = State(lives=lives, load_ended=START - BEAT)

    def sent(*names: str) -> list[str]:
        due = [one for one in adapters if one.name in names]
        return [one.name for one in in_turn(due, wanted, work, 1, BEAT, START)[0]]

    one_at_a_time = bool(lives)
    assert sent("top", "mid", "low", "bad") == (["mid"] if one_at_a_time else ["mid", "low"])
    assert sent("top", "low", "bad") == ["low"]
    assert sent("top", "bad") == ["top"]
    assert sent("bad") == ["bad"]


def test_each_reason_to_hold_back_leaves_the_others() -> None:
    """A suspect, one without files, one of another base model."""
    wanted = desired(adapter("a"), adapter("b"), adapter("c", base="/models/other"))
    wanted = replace(wanted, suspects={"a": Suspect("/adapters/a", 2)})
    work = State(probation={"a": QuarantineTimer(2, START + 60.0)})
    files = {"/adapters/b": Files(Sight.GONE, looks=2, seen_before=True)}
    after = hold_back(wanted, work, wanted.adapters, observed(START), files, RULE, START, unload_gone=True)

    assert {name: barred.bar for name, barred in after.barred.items()} == {
        "a": BlockReason.QUARANTINED,
        "b": BlockReason.FILES_GONE,
        "c": BlockReason.BASE_MODEL,
    }


@pytest.mark.parametrize(("listed", "bombs"), [("/adapters/a", ("a",)), ("/adapters/former", ())])
def test_what_is_listed_from_elsewhere_is_not_defused(listed: str, bombs: tuple[str, ...]) -> None:
    """Unloaded, it would be loaded from the new path at once, which is for the policy of replacement to say."""
    gone = Files(Sight.GONE, looks=2, seen_before=True)
    files = {"/adapters/a": gone, "/adapters/former": gone, "/adapters/b": Files(Sight.PRESENT)}

    assert defuse(desired(adapter("a"), adapter("b")), {"a": listed, "b": "/adapters/b"}, files)[1] == bombs
