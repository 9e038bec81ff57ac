from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lora_sidecar.cli.inject.injection import inject
from lora_sidecar.cli.inject.outcome import Outcome
from lora_sidecar.cli.inject.removal import remove
from lora_sidecar.cli.inject.workload import Options
from tests.support.manifests import streams

# Each example reads its text some ten times; under a tracer, on a busy machine, that takes its time.
pytestmark = pytest.mark.timeout(300)

NATIVE = Options(image="example.com/lora-sidecar:1")
PLAIN = Options(image="example.com/lora-sidecar:1", native=False)

thorough = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)


def injected(text: str, options: Options = NATIVE) -> Outcome:
    """What becomes of a text."""
    (outcome,) = inject([text], options)
    return outcome


def removed(text: str) -> Outcome:
    """What becomes of a text when sidecars are taken out of it."""
    (outcome,) = remove([text])
    return outcome


def is_subsequence(short: str, long: str) -> bool:
    """Whether a text is what is left of another when characters are struck out of that."""
    rest = iter(long)
    return all(character in rest for character in short)


def objects(text: str) -> list[Any]:
    """What the documents of a text say, as PyYAML reads them: another reader than the one that edits."""
    found: list[Any] = []
    for one in yaml.safe_load_all(text.expandtabs(2)):  # it knows no JSON that is indented by tabs
        found += one["items"] if isinstance(one, dict) and one.get("kind") == "List" else [one]
    return [one for one in found if one is not None]


def without_ours(value: Any) -> Any:
    """A value without what bears our name, and without what is empty: to the API server that is absent."""
    match value:
        case dict():
            kept = {key: without_ours(item) for key, item in value.items() if not str(key).startswith("lora-sidecar")}
            return {key: item for key, item in kept.items() if item not in (None, [], {})}
        case list():
            return [without_ours(item) for item in value if not is_ours(item)]
        case _:
            return value


def is_ours(item: Any) -> bool:
    """Whether an item of a list is one that inject adds."""
    name = str(item.get("name", "")) if isinstance(item, dict) else ""
    return name.startswith("lora-sidecar") or name == "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


def of_the_api_server(value: Any) -> Any:
    """A value as it comes back from a cluster: sorted, its empty parts gone, its containers filled up with defaults."""
    match value:
        case dict():
            filled = {"imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log"}
            whole = (value | filled) if "image" in value else value
            kept = {key: of_the_api_server(item) for key, item in sorted(whole.items())}
            return {key: item for key, item in kept.items() if item not in (None, [], {}) or key == "emptyDir"}
        case list():
            return [of_the_api_server(item) for item in value]
        case _:
            return value


@thorough
@given(text=streams(nulls=False), options=st.sampled_from([NATIVE, PLAIN]))
def test_characters_are_only_added(text: str, options: Options) -> None:
    """Whatever the style of a manifest, injecting strikes no character of it out and moves none."""
    outcome = injected(text, options)

    if "kind: Job" in text or '"Job"' in text or "'Job'" in text:
        return  # a Job cannot have a plain sidecar; tests/unit/cli/inject has that
    assert not outcome.refused
    assert len(outcome.text) > len(text)
    assert is_subsequence(text, outcome.text)


@thorough
@given(text=streams(nulls=False))
def test_a_second_run(text: str) -> None:
    """What has a sidecar is left as it is, to the byte."""
    once = injected(text)

    twice = injected(once.text)

    assert not once.refused
    assert not twice.refused
    assert twice.text == once.text


@thorough
@given(text=streams(nulls=True))
def test_there_and_back(text: str) -> None:
    """Taking the sidecars out gives the manifest that was there before, to the byte."""
    outcome = injected(text)
    back = removed(outcome.text)

    if outcome.refused:  # a null in brackets, which only a person can tell from a list
        assert "null" in text
    assert not back.refused
    assert back.text == text


@thorough
@given(text=streams(nulls=False, foreign=False))
def test_another_reader_sees_what_was_added(text: str) -> None:
    """To PyYAML, the result says what the manifest said, and besides only what bears the sidecar's name."""
    outcome = injected(text)

    before, after = objects(text), objects(outcome.text)
    workloads = [one for one in after if one["kind"] != "ConfigMap"]
    assert [without_ours(one) for one in workloads] == [without_ours(one) for one in before]
    assert len(after) == 2 * len(before)
    for one in workloads:
        spec = one["spec"] if one["kind"] == "Pod" else one["spec"]["template"]["spec"]
        assert [item["name"] for item in spec["initContainers"]][-1] == "lora-sidecar"
        assert [item["name"] for item in spec["volumes"]][-2:] == ["lora-sidecar-config", "lora-sidecar-state"]
        (server,) = [item for item in spec["containers"] if item["name"] == "vllm"]
        assert server["env"][-1] == {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "True"}


@thorough
@given(text=streams(nulls=False, foreign=False))
def test_out_of_a_cluster_and_back(text: str) -> None:
    """What was applied and read back has another text, and the sidecar comes out of it all the same."""
    applied = [of_the_api_server(one) for one in objects(injected(text).text)]
    listing = yaml.safe_dump({"apiVersion": "v1", "items": applied, "kind": "List"})

    back = removed(listing)

    assert not back.refused
    expected = [of_the_api_server(one) for one in objects(text)]
    assert [of_the_api_server(one) for one in objects(back.text)] == expected


@thorough
@given(text=streams(explicit_nulls=True))
def test_all_or_nothing(text: str) -> None:
    """Where one workload cannot be edited, the others of the stream are left alone too."""
    outcome = injected(text)

    assert outcome.refused == any(one.refused for one in outcome.said)
    if outcome.refused:
        assert outcome.text == text


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("ak:- \n\t\"'[]{}#&*!|>%@,?~é\ufeff\r"), max_size=60))
def test_no_text_is_too_strange(text: str) -> None:
    """Whatever a stream is, it is passed on as it is or refused by line; nothing crashes."""
    stream = f"kind: Deployment\nspec: {{x: containers}}\n{text}"

    outcome = injected(stream)

    assert outcome.text == stream
    assert all(1 <= one.line <= stream.count("\n") + 1 for one in outcome.said)
