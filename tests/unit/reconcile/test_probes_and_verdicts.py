from __future__ import annotations

from msgspec.structs import replace

from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.outcomes import ProbeAnswer, ProbeFailure
from lora_sidecar.reconcile.verification import PROMPTS, ProbeRecord, completed, conditions_of, judge, next_up

BASE = ProbeAnswer((("a", -0.1),))
OTHER = ProbeAnswer((("a", -0.2),))
FRESH = ProbeRecord("/adapters/one")


def test_a_probe_without_an_answer_is_counted_with_its_reason() -> None:
    """What was alike before counts no more; probes that said something are as many as they were."""
    before = replace(FRESH, probes=4, alike=2)

    assert judge(before, BASE, ProbeFailure("timeout"), 7.0) == ProbeRecord(before.path, 4, 1, 0, 7.0, "timeout")


def test_a_probe_with_an_answer_is_counted_and_clears_the_silence() -> None:
    """The reason of the silence goes with it."""
    before = replace(FRESH, probes=4, dead=1, why="timeout")

    assert judge(before, BASE, OTHER, 7.0) == ProbeRecord(before.path, 5, 0, 0, 7.0)
    assert judge(before, BASE, BASE, 7.0) == ProbeRecord(before.path, 5, 0, 1, 7.0)


def test_a_probe_that_the_base_model_did_not_answer_says_only_when() -> None:
    """It was tried, and is not tried again at once."""
    before = replace(FRESH, probes=4, dead=1, why="timeout")

    assert judge(before, ProbeFailure("busy"), OTHER, 7.0) == replace(before, at=7.0)


def test_conditions_name_the_adapters_their_reasons_and_what_to_do() -> None:
    """Each kind once, in one order, with what a person can do."""
    trials = {
        "b": replace(FRESH, dead=2, why="timeout"),
        "a": replace(FRESH, dead=3, why="HTTP 404"),
        "c": replace(FRESH, alike=3, probes=3),
        "d": replace(FRESH, alike=4, probes=4),
        "e": replace(FRESH, dead=1, alike=2),
    }

    assert conditions_of(trials, "the engine sleeps") == (
        Condition(
            ConditionType.ADAPTER_DEAD,
            "a: HTTP 404; b: timeout",
            "listed, and gives no answer while the base model does; unload it and load it again, or restart the server",
        ),
        Condition(
            ConditionType.ADAPTER_NOT_APPLIED,
            "c, d: log-probabilities equal the base model's, to the last digit, for 3 prompts",
            "unload it and load it again; an adapter whose weights have no effect on text looks the same",
        ),
        Condition(
            ConditionType.VERIFICATION_WITHHELD,
            "the engine sleeps",
            "nothing is proven by inference until then; verify.by: listed asks for nothing",
        ),
    )
    assert conditions_of({"e": trials["e"]}, "") == ()


def test_a_round_that_ended_is_not_told_without_adapters_or_again() -> None:
    """It is, where another adapter came to the decided ones, and where one of them is in doubt no more."""
    proven, doubtful = replace(FRESH, probes=1), replace(FRESH, probes=1, alike=1)

    assert completed({}, {}) == ()
    assert completed({"a": proven}, {}) == ()
    assert completed({"a": proven}, {"a": doubtful}) == ()
    assert completed({"a": proven}, {"a": proven}) == ()
    assert len(completed({"a": doubtful}, {"a": proven})) == 1
    assert len(completed({"a": proven}, {"a": proven, "b": proven})) == 1


def test_the_doubtful_wait_no_longer_than_the_rounds() -> None:
    """A short interval holds for them, too; what was silent is doubtful and not fresh."""
    doubtful = replace(FRESH, probes=1, alike=1, at=10.0)

    assert next_up({"a": doubtful}, 3.0) == ("a", 13.0)
    assert next_up({"a": doubtful}, 30.0) == ("a", 15.0)
    assert next_up({"a": replace(FRESH, dead=1, at=10.0)}, 30.0) == ("a", 15.0)


def test_the_prompts_go_round() -> None:
    """The fourth probe asks what the first did."""
    assert [replace(FRESH, probes=n).prompt for n in range(4)] == [*PROMPTS, PROMPTS[0]]
