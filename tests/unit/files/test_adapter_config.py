from __future__ import annotations

import json
from typing import Any

import pytest

from lora_sidecar.files.adapter_config import (
    UNREAD,
    has_one_rank,
    highest_rank,
    rank_of,
    read_settings,
    refused_by_vllm,
    unusable,
)

PLAIN: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


def read(text: bytes) -> dict[str, Any]:
    """The settings of a config that can be read."""
    settings = read_settings(text)
    assert isinstance(settings, dict)
    return settings


def test_only_the_settings_that_count_are_read() -> None:
    """Those that are not there are not there, and the last of two counts."""
    text = json.dumps(PLAIN | {"extra": {"a": [1]}, "bias": None}).encode()

    assert read(text) == PLAIN | {"bias": None}
    assert read(b'{"r": 1, "r": 2}') == {"r": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xef\xbb\xbf{}", "it begins with a byte order mark (BOM)"),
        ("{}".encode("utf-16"), "it is UTF-16: "),
        (b'{"author": "Jos\xe9"}', "it is not UTF-8: "),
        (b"", "it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b'{"r": 8,\n}', "it is not JSON: Expecting property name enclosed in double quotes"),
        (b'{"a": "\x01"}', "it is not JSON: Invalid control character"),
        (b"[]", "it is no JSON object"),
        (b"NaN", "it is no JSON object"),
        (b'{"a":' * 100_000, "it is not JSON: maximum recursion depth exceeded"),
    ],
)
def test_a_config_that_no_engine_reads_says_why(text: bytes, said: str) -> None:
    """In Python's words, as the engine says it, where it comes so far."""
    found = read_settings(text)

    assert isinstance(found, str)
    assert found.startswith(said)
    assert len(found) < 300


def test_what_python_takes_for_json_is_read() -> None:
    """NaN, infinity and halves of characters, which stricter readers refuse."""
    assert read(b'{"r": 8, "lora_dropout": NaN, "x": Infinity}') == {"r": 8}
    assert read(b'{"r": 8, "x": "\\ud800"}') == {"r": 8}


def test_a_large_config_that_is_not_json_is_not_judged() -> None:
    """To read it as the engine does would take thirty times its size."""
    assert read_settings(b'{"r": NaN, "x": "' + b"x" * 1024 * 1024 + b'"}') is None


def test_a_config_of_a_mixture_of_experts_is_read() -> None:
    """It names every module, and has more than a MiB; what is long is there, and not read."""
    found = read(json.dumps(PLAIN | {"target_modules": ["model.layers.0.mlp.experts.gate_proj"] * 40_000}).encode())

    assert found == PLAIN | {"target_modules": UNREAD}
    assert list(unusable(found)) == []
    assert repr(UNREAD) == "(too long to be read)"


def test_a_number_without_end_is_no_rank() -> None:
    """It is there, nothing is made of it, and nothing fails over it."""
    digits = b"9" * 5000
    found = read(b'{"r": ' + digits + b', "lora_alpha": 1e999, "target_modules": [], "rank_pattern": {"a": 1e999}}')

    assert rank_of(found) is None
    assert highest_rank(found) is None
    assert list(unusable(found)) == []
    assert list(refused_by_vllm(found)) == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, []),
        ({"r": 8.0, "lora_alpha": 22.6}, []),
        ({"r": True}, []),
        ({"r": "8"}, ["`r` is '8', which is no number"]),
        ({"r": None}, ["`r` is None, which is no number"]),
        ({"r": 0}, ["`r` is 0, and must be positive"]),
        ({"lora_alpha": None}, ["`lora_alpha` is None, which is no number"]),
        ({"lora_alpha": "16"}, ["`lora_alpha` is '16', which is no number"]),
        ({"r": []}, ["`r` is [], which is no number"]),
    ],
)
def test_what_every_engine_needs(config: dict[str, Any], said: list[str]) -> None:
    """Numbers of any kind are good."""
    assert list(unusable(PLAIN | config)) == said


def test_every_missing_field_is_named_at_once() -> None:
    """In their order."""
    assert list(unusable({"r": 8})) == ["Missing required configuration fields: lora_alpha, target_modules"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"bias": "none", "use_dora": False, "modules_to_save": [], "lora_bias": None, "init_lora_weights": True}, []),
        ({"use_dora": True}, [("vLLM does not yet support DoRA.", False)]),
        ({"modules_to_save": ["score", "lm_head"]}, [("vLLM does not support modules_to_save: ['lm_head']", False)]),
        ({"modules_to_save": ["score"]}, [("vLLM does not support modules_to_save: ['score']", True)]),
        ({"modules_to_save": "all"}, []),
        ({"bias": "all"}, [("Adapter bias is not supported.", True)]),
        ({"bias": None}, [("Adapter bias is not supported.", True)]),
        ({"r": -1}, [("`r` is -1, and must be positive", True)]),
        ({"rank_pattern": None}, []),
        ({"rank_pattern": {"q": 4}}, []),
        ({"rank_pattern": [4]}, [("`rank_pattern` is no mapping", True)]),
        (
            {"rank_pattern": {"q": 4, "v": [True], "o": 0}},
            [("`rank_pattern` says [True] of v, which is no positive whole number", True)],
        ),
        ({"init_lora_weights": "EVA"}, []),
        ({"init_lora_weights": False}, []),
        (
            {"init_lora_weights": "pissa"},
            [("vLLM does not support init_lora_weights='pissa': it changes the base model's weights", True)],
        ),
        ({"lora_bias": True}, [("vLLM does not support LoRA bias (lora_bias).", True)]),
        ({"alora_invocation_tokens": [1]}, [("vLLM does not support Activated LoRA (aLoRA).", True)]),
        ({"layer_replication": [[0, 1]]}, [("vLLM does not support layer_replication.", True)]),
        ({"use_bdlora": 1}, [("vLLM does not support block-diagonal LoRA (BD-LoRA).", True)]),
        ({"use_qalora": True}, [("vLLM does not support QALoRA.", True)]),
    ],
)
def test_what_vllm_does_not_serve(config: dict[str, Any], said: list[tuple[str, bool]]) -> None:
    """With whether only some of its versions refuse it."""
    assert list(refused_by_vllm(PLAIN | config)) == said


def test_the_highest_rank_is_that_of_any_module() -> None:
    """What is no number does not count."""
    assert highest_rank(PLAIN | {"rank_pattern": {"q": 32, "v": "64", "o": [1]}}) == 32
    assert highest_rank({"rank_pattern": {"q": 4}}) == 4
    assert highest_rank({}) is None


def test_a_pattern_gives_modules_other_ranks() -> None:
    """So do the parameters of a mixture of experts."""
    assert has_one_rank(PLAIN)
    assert has_one_rank(PLAIN | {"rank_pattern": {}, "target_parameters": None})
    assert not has_one_rank(PLAIN | {"rank_pattern": {"q": 4}})
    assert not has_one_rank(PLAIN | {"target_parameters": ["mlp.experts.down_proj"]})


def test_what_is_said_is_bounded() -> None:
    """Whatever stands in the config."""
    long = "x" * 60_000
    config = PLAIN | {"r": long, "modules_to_save": [long], "init_lora_weights": long, "rank_pattern": {long: long}}

    assert all(len(text) < 600 for text in (*unusable(config), *(text for text, _ in refused_by_vllm(config))))
