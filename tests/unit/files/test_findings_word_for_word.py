from __future__ import annotations

import json
from typing import Any

import pytest

from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.files.peft import (
    Finding,
    Folder,
    Limits,
    Weights,
    bad_rank,
    check,
    missing_fields,
    rank_limit_in,
    unsupported,
)
from lora_sidecar.files.safetensors import module_of, tensors_of

CONFIG: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
PLAIN = Weights("adapter_model.bin", 9)
WITHOUT = "train or convert it without that feature"
NONE = Limits()
MEND = "mend adapter_config.json"
COPY = "copy the whole adapter there: its weights are missing or half copied"
AGAIN = "export the adapter again"
HALF = "adapter_config.json is damaged or half copied: copy it again"


def findings(config: object, weights: Weights | None = PLAIN, limits: Limits = NONE, **more: Any) -> list[Finding]:
    """What is wrong with a folder of this config and these weights."""
    text = config if isinstance(config, bytes | None) else json.dumps(config).encode()
    return list(check(Folder("/given", more.get("real", "/given"), text, weights), limits))


def adapter_fault(message: str, hint: str = WITHOUT, *, certain: bool = True) -> Finding:
    """A finding against what the adapter is."""
    return Finding(FailureKind.ADAPTER, message, hint, certain)


def files_fault(message: str, hint: str = COPY) -> Finding:
    """A finding against its files."""
    return Finding(FailureKind.FILES, message, hint)


def test_a_folder_without_a_config_is_no_adapter() -> None:
    """Nor is one with half of it; where it lies is told before."""
    none = files_fault("No adapter found for /given", "copy the whole adapter there, adapter_config.json included")
    place = adapter_fault(
        "its folder is /real, which is under none of preflight.roots", "move it there, or add its root"
    )

    assert findings(None) == [none]
    assert findings(None, limits=Limits(roots=("/models", "/other")), real="/real") == [place, none]
    assert findings(b"{", limits=Limits(roots=("/models",)), real="/real")[0] == place
    broken = findings(b"{")
    assert broken == [files_fault("Expecting property name enclosed in double quotes: line 1 column 2 (char 1)", HALF)]
    assert findings([]) == [adapter_fault("adapter_config.json is no JSON object", HALF)]
    missing = findings({"r": 8, "lora_alpha": 16})
    assert missing == [
        adapter_fault("Missing required configuration fields: {'target_modules'}", "export the adapter again with PEFT")
    ]
    assert missing_fields(CONFIG) == ""


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, []),
        ({"bias": "none"}, []),
        ({"bias": "all"}, [adapter_fault("Adapter bias is not supported.", certain=False)]),
        ({"r": "8"}, [adapter_fault("LoRA rank `r` is '8', which is no whole number", MEND)]),
        ({"r": True}, [adapter_fault("LoRA rank `r` is True, which is no whole number", MEND)]),
        ({"r": 0}, [adapter_fault("LoRA rank `r` must be a positive integer, got 0.", MEND)]),
        ({"r": -1}, [adapter_fault("LoRA rank `r` must be a positive integer, got -1.", MEND, certain=False)]),
        ({"r": 1}, []),
        ({"rank_pattern": []}, [adapter_fault("`rank_pattern` is no mapping", MEND, certain=False)]),
        ({"rank_pattern": None}, []),
        ({"rank_pattern": {"x": 1}}, []),
        (
            {"rank_pattern": {"y": 4, "x": 0}},
            [
                adapter_fault(
                    "LoRA rank for `x` in `rank_pattern` must be a positive integer, got 0.", MEND, certain=False
                )
            ],
        ),
        (
            {"rank_pattern": {"x": "4"}},
            [
                adapter_fault(
                    "LoRA rank for `x` in `rank_pattern` must be a positive integer, got 4.", MEND, certain=False
                )
            ],
        ),
        (
            {"r": 65},
            [adapter_fault("LoRA rank 65 is greater than max_lora_rank 64.", "start vLLM with --max-lora-rank 128")],
        ),
        ({"r": 64}, []),
        (
            {"rank_pattern": {"x": 100, "y": 2}},
            [
                adapter_fault(
                    "LoRA rank 100 is greater than max_lora_rank 64.",
                    "start vLLM with --max-lora-rank 128",
                    certain=False,
                )
            ],
        ),
        (
            {"r": 64, "rank_pattern": {"x": 65}},
            [
                adapter_fault(
                    "LoRA rank 65 is greater than max_lora_rank 64.",
                    "start vLLM with --max-lora-rank 128",
                    certain=False,
                )
            ],
        ),
        ({"use_dora": True}, [adapter_fault("vLLM does not yet support DoRA.")]),
        ({"lora_bias": True}, [adapter_fault("vLLM does not support LoRA bias (lora_bias).", certain=False)]),
        ({"modules_to_save": 7}, [adapter_fault("`modules_to_save` is no list", certain=False)]),
        ({"modules_to_save": ["classifier", "score"]}, []),
        (
            {"modules_to_save": ["classifier", "embed"], "bias": "all"},
            [
                adapter_fault(
                    'vLLM only supports modules_to_save being either None or ["classifier", "score"] for '
                    "classification models. Unsupported modules_to_save: ['embed']"
                ),
                adapter_fault("Adapter bias is not supported.", certain=False),
            ],
        ),
    ],
)
def test_settings_are_answered_as_vllm_does(config: dict[str, Any], expected: list[Finding]) -> None:
    """Its words, what to do, and whether every version says so."""
    assert findings(CONFIG | config, limits=Limits(max_rank=64)) == expected


def test_what_is_surest_comes_first() -> None:
    """Whatever it is found in."""
    found = findings(CONFIG | {"bias": "all", "use_qalora": True, "use_dora": True})

    assert [one.certain for one in found] == [True, False, False]
    assert found[0].message == "vLLM does not yet support DoRA."


def test_another_engine_may_have_what_vllm_lacks() -> None:
    """There it is a doubt; what the files lack is not."""
    found = findings(CONFIG | {"use_dora": True}, None, Limits(vllm=False))

    assert found == [
        files_fault("/given doesn't contain tensors"),
        adapter_fault("vLLM does not yet support DoRA.", certain=False),
    ]


def test_features_are_refused_in_the_order_of_vllm() -> None:
    """Each by its own name; an init that changes the base model by the words about it."""
    config = CONFIG | {
        "use_bdlora": 1,
        "use_qalora": 1,
        "layer_replication": [[0, 1]],
        "alora_invocation_tokens": [1],
        "init_lora_weights": "pissa",
        "lora_bias": True,
    }

    assert unsupported(config) == [
        ("vLLM does not support LoRA bias (lora_bias).", False),
        (
            (
                "vLLM does not support init_lora_weights='pissa'. Inits such as PiSSA, OLoRA, CorDA and LoftQ modify "
                "the base model weights when PEFT loads the adapter. Convert it to a regular LoRA adapter with PEFT's "
                "path_initial_model_for_weight_conversion, or set init_lora_weights to true if the served base model "
                "already contains the modified weights."
            ),
            False,
        ),
        ("vLLM does not support Activated LoRA (aLoRA).", False),
        ("vLLM does not support layer_replication.", False),
        ("vLLM does not support block-diagonal LoRA (BD-LoRA).", False),
        ("vLLM does not support QALoRA.", False),
    ]
    for init in (True, False, None, "gaussian", "EVA", "Orthogonal"):
        assert unsupported(CONFIG | {"init_lora_weights": init}) == []
    assert bad_rank({"r": 1, "rank_pattern": {"x": True}}) == ""


def test_a_refusal_that_tells_the_limit_is_read() -> None:
    """From anywhere in the sentence."""
    assert rank_limit_in("so: LoRA rank 64 is greater than max_lora_rank 16.") == 16
    assert rank_limit_in("LoRA rank x is greater than max_lora_rank 16.") is None


def head_of(header: object, extra: int = 0) -> tuple[bytes, int]:
    """The first bytes and the size of a file of weights with this header, and that much behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + extra


def tensor(*shape: int, dtype: str = "F32", at: tuple[int, int] | None = None) -> dict[str, Any]:
    """One entry of a header."""
    size = 4
    for one in shape:
        size *= one
    return {"dtype": dtype, "shape": shape, "data_offsets": at or (0, size)}


LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def held(header: object, extra: int = 0, limits: Limits = NONE, **config: Any) -> list[Finding]:
    """What is wrong with an adapter whose file of weights has this header."""
    head, size = head_of(header, extra)
    return findings(CONFIG | config, Weights("adapter_model.safetensors", size, head), limits)


def test_weights_that_are_not_there_or_not_allowed() -> None:
    """A pickle is nothing that is read here; what was not read is not judged."""
    pickle = Limits(allow_pickle=False)
    refused = adapter_fault(
        "its weights are a pickle, adapter_model.pt, and preflight.allow_pickle is false",
        "convert them to safetensors, or allow it",
    )

    assert findings(CONFIG, None) == [files_fault("/given doesn't contain tensors")]
    assert findings(CONFIG, Weights("adapter_model.pt", 9), pickle) == [refused]
    assert findings(CONFIG, Weights("adapter_model.pt", 9)) == []
    assert findings(CONFIG, Weights("adapter_model.safetensors", 8)) == []
    short = files_fault("Error while deserializing header: header too small")
    assert findings(CONFIG, Weights("adapter_model.safetensors", 7)) == [short]


def test_a_file_without_a_tensor_or_with_a_strange_one() -> None:
    """The first strange name is told; one that some version takes is not."""
    empty = adapter_fault("adapter_model.safetensors holds no tensor", AGAIN)
    strange = adapter_fault(
        "x.weight is unsupported LoRA weight", "only plain LoRA tensors can be served: export it again"
    )
    two = {"x.weight": tensor(1), "y.weight": tensor(1, at=(4, 8))}
    once = {"x.base_layer.weight": tensor(1), "x.lora_A.bias": tensor(1, at=(4, 8))}

    assert held({}) == [empty]
    assert held({"__metadata__": {"format": "pt"}}) == [empty]
    assert held(two, 8) == [strange]
    assert held(once, 8) == []
    assert held(once | {"x.weight": tensor(1, at=(8, 12))}, 12) == [strange]


def test_a_rank_that_the_config_does_not_say_is_told_once() -> None:
    """Sure where the server's limit is passed; a pattern of ranks explains any."""
    other = LORA.replace("q_proj", "k_proj")
    header = {LORA: tensor(9, 1), other: tensor(10, 1, at=(36, 76))}
    message = f"{LORA} has rank 9, and adapter_config.json says 8"

    assert held(header, 76) == [adapter_fault(message, AGAIN, certain=False)]
    assert held(header, 76, Limits(max_rank=8)) == [adapter_fault(message, AGAIN)]
    assert held(header, 76, Limits(max_rank=9)) == [adapter_fault(message, AGAIN, certain=False)]
    assert held(header, 76, rank_pattern={"q_proj": 9}) == []
    assert held({LORA: tensor(8, 1)}, 32) == []
    first_right = {LORA: tensor(8, 1), other: tensor(9, 1, at=(32, 68))}
    assert held(first_right, 68)[0].message == f"{other} has rank 9, and adapter_config.json says 8"
    assert held({LORA: tensor()}, 4) == []
    assert held({LORA.replace("lora_A", "lora_B"): tensor(9, 8)}, 288) == []


@pytest.mark.parametrize(
    ("header", "extra", "said"),
    [
        (b"\xff", 0, "invalid UTF-8 in header: invalid start byte"),
        (b"{", 0, "invalid JSON in header: Expecting property name enclosed in double quotes at line 1 column 2"),
        ([], 0, "invalid header: 'list' object has no attribute 'items'"),
        ({"x": tensor(1, at=(4, 8))}, 8, "invalid offset for tensor"),
        ({"x": tensor(1, at=(0, 5))}, 5, "invalid offset for tensor"),
        ({"x": tensor(1, dtype="F7")}, 4, "invalid header: 'F7'"),
        ({"x": tensor(1)}, 5, "incomplete metadata, file not fully covered"),
        ({"x": tensor(1)}, 3, "incomplete metadata, file not fully covered"),
    ],
)
def test_a_header_is_answered_as_the_library_does(header: object, extra: int, said: str) -> None:
    """In its words as far as it has any."""
    head, size = head_of(header, extra)

    assert tensors_of(head, size) == said
    assert held(header, extra) == [files_fault(f"Error while deserializing header: {said}")]


def test_the_length_of_a_header_is_bounded() -> None:
    """By the library's limit, and by the file."""
    limit = 100_000_000

    assert tensors_of((limit + 1).to_bytes(8, "little"), 2 * limit) == "header too large"
    assert tensors_of(limit.to_bytes(8, "little"), limit + 7) == "invalid header length"
    read = tensors_of(limit.to_bytes(8, "little"), limit + 8)
    assert isinstance(read, str)
    assert read.startswith("invalid JSON in header")
    assert tensors_of((3).to_bytes(8, "little") + b"{} ", 11) == {}
    assert tensors_of((3).to_bytes(8, "little") + b"{} ", 10) == "invalid header length"
    assert tensors_of((1).to_bytes(8, "little"), 8) == "invalid header length"
    assert tensors_of(bytes(7), 7) == "header too small"


def test_tensors_are_read_in_the_order_of_their_bytes() -> None:
    """Whatever the order of their names; what follows the header is not read for it."""
    header = {"b": tensor(2, 3), "a": tensor(1, at=(24, 28)), "c": tensor(4, dtype="U8", at=(28, 32))}
    head, size = head_of(header, 32)

    assert tensors_of(head + b"}}}", size) == {"b": (2, 3), "a": (1,), "c": (4,)}


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("base_model.model.a.b.lora_A.weight", "a.b"),
        ("a.lora_B.weight", "a"),
        ("a.lora_embedding_A", "a"),
        ("a.b.lora_embedding_B", "a.b"),
        ("x.score.weight", "score"),
        ("x.classifier.bias", "classifier"),
        ("a.lora_C.weight", None),
        ("a.lora_A.bias", None),
        ("a.lora_embedding_A.weight", None),
        ("score.other", None),
    ],
)
def test_names_of_tensors_belong_to_modules(name: str, module: str | None) -> None:
    """As vLLM 0.32 reads them."""
    assert module_of(name) == module
