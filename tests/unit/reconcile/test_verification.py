from __future__ import annotations

from msgspec.structs import replace

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.outcomes import Answer, ProbeAnswer, ProbeFailure
from lora_sidecar.engines.vllm_answers import decode_completion
from lora_sidecar.reconcile.verification import (
    PROMPTS,
    ProbeRecord,
    Trials,
    completed,
    conditions_of,
    current,
    judge,
    next_up,
)

BASE = ProbeAnswer((("a", -0.1), ("b", -2.5)))
OTHER = ProbeAnswer((("a", -0.1), ("b", -2.4999999)))
SILENT = ProbeFailure("timeout: no answer within 30 s")


def probed(*said: Answer, base: Answer = BASE) -> ProbeRecord:
    """The trial of an adapter that said so, one after the other."""
    trial = ProbeRecord("/adapters/one")
    for at, answer in enumerate(said):
        trial = judge(trial, base, answer, float(at))
    return trial


def held(trial: ProbeRecord) -> list[ConditionType]:
    """The types of the conditions that hold for it."""
    return [one.type for one in conditions_of({"one": trial}, "")]


def test_an_answer_of_its_own_proves_an_adapter() -> None:
    """One difference in the last digit is enough."""
    assert probed(OTHER).proven
    assert held(probed(OTHER)) == []


def test_no_answer_twice_while_the_base_model_answers_is_dead() -> None:
    """Once may be a race with an unload."""
    assert held(probed(SILENT)) == []
    assert held(probed(SILENT, SILENT)) == [ConditionType.ADAPTER_DEAD]
    assert held(probed(SILENT, OTHER, SILENT)) == []
    assert held(probed(SILENT, SILENT, OTHER)) == []


def test_the_silence_of_the_whole_server_is_no_adapters_fault() -> None:
    """Where the base model does not answer either, nothing is held against anybody."""
    assert probed(SILENT, SILENT, SILENT, base=SILENT).dead == 0


def test_the_base_models_numbers_three_times_are_not_applied() -> None:
    """Two may be chance; the prompts differ from probe to probe."""
    assert held(probed(BASE, BASE)) == []
    assert held(probed(BASE, BASE, BASE)) == [ConditionType.ADAPTER_NOT_APPLIED]
    assert held(probed(BASE, BASE, OTHER, BASE, BASE)) == []
    trial = ProbeRecord("/adapters/one")
    asked = []
    for _ in range(3):
        asked.append(trial.prompt)
        trial = judge(trial, BASE, BASE, 0.0)
    assert sorted(asked) == sorted(PROMPTS)


def test_an_answer_without_numbers_compares_with_nothing() -> None:
    """A server that gives no log-probabilities proves that the adapter answers, and no more."""
    empty = ProbeAnswer(())
    assert held(probed(empty, empty, empty, base=empty)) == []


def test_what_is_loaded_from_elsewhere_is_probed_anew() -> None:
    """A trial belongs to a name and a path, and ends with the listing of it."""
    dead = probed(SILENT, SILENT)
    assert current({"one": dead}, {"one": "/adapters/one"}) == {"one": dead}
    assert current({"one": dead}, {"one": "/adapters/two"}) == {"one": ProbeRecord("/adapters/two")}
    assert current({"one": dead}, {}) == {}


def test_new_adapters_come_first_then_the_doubtful_then_a_slow_round() -> None:
    """Fresh ones a second apart, a doubtful one after five seconds, and everybody in turn at the interval."""
    known = replace(probed(OTHER), at=100.0)
    older = replace(known, at=90.0)
    assert next_up({}, 30.0) is None
    assert next_up({"new": ProbeRecord("/n"), "known": known}, 30.0) == ("new", 101.0)
    assert next_up({"odd": replace(probed(BASE), at=90.0), "known": known}, 30.0) == ("odd", 105.0)
    assert next_up({"known": known, "older": older}, 30.0) == ("older", 130.0)


def test_a_fresh_adapter_that_could_not_be_asked_does_not_hurry() -> None:
    """It is tried again after the interval, not every second."""
    assert next_up({"new": ProbeRecord("/n", at=100.0)}, 30.0) == ("new", 130.0)


def test_the_end_of_a_round_is_told_once() -> None:
    """When every listed adapter is decided, with those that were not proven."""
    before: Trials = {"one": ProbeRecord("/adapters/one"), "two": probed(OTHER)}
    after: Trials = {"one": probed(SILENT, SILENT), "two": probed(OTHER)}
    (fact,) = completed(before, after)
    assert fact.event is EventName.VERIFICATION_COMPLETED
    assert (fact.fields["adapters"], fact.fields["proven"], fact.fields["not_proven"]) == (2, 1, ["one"])
    assert completed(after, after) == ()


def test_completions_are_read_with_their_numbers() -> None:
    """The first token's likeliest alternatives, in one order; anything else is no answer, with the reason."""
    body = b'{"choices":[{"logprobs":{"top_logprobs":[{"b":-2.5,"a":-0.1}]}}]}'
    assert decode_completion(200, body) == BASE
    assert isinstance(decode_completion(200, body.replace(b"-2.5", b"NaN")), ProbeFailure)
    assert isinstance(decode_completion(200, b'{"choices":[{"logprobs":null}]}'), ProbeFailure)
    assert isinstance(decode_completion(200, b'{"choices":[]}'), ProbeFailure)
    assert decode_completion(404, b'{"error":{"message":"no such model"}}') == ProbeFailure("no such model", 404)
