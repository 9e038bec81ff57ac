from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from lora_sidecar.files.peft import Folder, Limits, Weights, check
from lora_sidecar.files.safetensors import BaseShape, base_shape

MODEL: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 3,
}
CONFIG = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
LAYER = "base_model.model.model.layers.0.self_attn"


def shape(**fields: Any) -> BaseShape | None:
    """The shapes of a model with these settings; None leaves one out."""
    config = {key: value for key, value in (MODEL | fields).items() if value is not None}
    return base_shape(json.dumps(config).encode())


def told(tensors: Mapping[str, tuple[int, ...]], limits: Limits, config: dict[str, Any] | None = None) -> list[str]:
    """What is wrong with an adapter of these tensors."""
    at, header = 0, {}
    for name, dimensions in tensors.items():
        size = 4
        for dimension in dimensions:
            size *= dimension
        header[name] = {"dtype": "F32", "shape": dimensions, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    head = len(text).to_bytes(8, "little") + text
    weights = Weights("adapter_model.safetensors", len(head) + at, head)
    folder = Folder("/a", "/a", json.dumps(CONFIG | (config or {})).encode(), weights)
    return [one.message for one in check(folder, limits)]


def test_the_shapes_of_every_module_are_known() -> None:
    """Inputs first; queries and keys by their heads."""
    assert shape() == BaseShape(
        3,
        {
            "q_proj": (64, 128),
            "k_proj": (64, 64),
            "v_proj": (64, 64),
            "o_proj": (128, 64),
            "gate_proj": (64, 96),
            "up_proj": (64, 96),
            "down_proj": (96, 64),
        },
    )


def test_settings_that_are_left_out_follow_from_the_others() -> None:
    """A head is its part of the hidden size, rounded down; without groups each head has its keys."""
    plain = shape(head_dim=None, num_key_value_heads=None, hidden_size=65)

    assert plain is not None
    assert (plain.modules["q_proj"], plain.modules["k_proj"]) == ((65, 64), (65, 64))
    assert shape(model_type="gpt2") is None
    assert shape(hidden_size=None) is None


def test_a_tensor_of_another_model_is_named() -> None:
    """Its inputs, its outputs or its layer; what the shape does not say is let pass, what follows is not."""
    limits = Limits(base=shape())
    unknown = {"x.lora_A.weight": (8, 5), "x.lora_B.weight": (2, 8)}
    odd = {"base_model.model.q_proj.lora_magnitude_vector.bias": (7,), f"{LAYER}.q_proj.bias": (1, 1)}

    assert told(unknown | odd, limits) == []
    assert told({f"{LAYER}.q_proj.lora_A.weight": (8, 64), f"{LAYER}.q_proj.lora_B.weight": (128, 8)}, limits) == []
    a, b = f"{LAYER}.v_proj.lora_A.weight", f"{LAYER}.v_proj.lora_B.weight"
    assert told(unknown | odd | {a: (8, 65)}, limits) == [f"{a} has 65 inputs, and the base model's module has 64"]
    assert told(unknown | {b: (63, 8)}, limits) == [f"{b} has 63 outputs, and the base model's module has 64"]
    deep = a.replace("layers.0", "layers.3")
    assert told({a.replace("layers.0", "layers.2"): (8, 64)}, limits) == []
    assert told({deep: (8, 64)}, limits) == [f"{deep} is for layer 3, and the base model has 3 layers"]


def test_another_rank_hides_no_tensor_of_another_model() -> None:
    """Both are told: they are two mistakes, and only one of them is mended by an export."""
    name = f"{LAYER}.v_proj.lora_A.weight"
    rank = f"{name} has rank 9, and adapter_config.json says 8"
    model = f"{name} has 65 inputs, and the base model's module has 64"

    assert told({name: (9, 65)}, Limits(base=shape())) == [model, rank]


def test_an_unknown_tensor_hides_none_of_another_model() -> None:
    """Of the unknown ones the first speaks for all; the shapes of the others are looked at all the same."""
    misfit = f"{LAYER}.v_proj.lora_A.weight"
    strangers = {"a.stranger": (1,), "b.stranger": (1,)}

    assert told(strangers | {misfit: (8, 65)}, Limits(base=shape())) == [
        "a.stranger is unsupported LoRA weight",
        f"{misfit} has 65 inputs, and the base model's module has 64",
    ]


@pytest.mark.parametrize(
    ("rank", "flag"),
    [
        *((1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64), (65, 128), (128, 128)),
        *((129, 256), (256, 256), (257, 320), (320, 320), (321, 512), (512, 512), (513, 513)),
    ],
)
def test_the_flag_that_takes_a_rank_is_named(rank: int, flag: int) -> None:
    """The smallest one that vLLM accepts, and the rank itself where there is none."""
    folder = Folder("/a", "/a", json.dumps(CONFIG | {"r": rank}).encode(), Weights("adapter_model.bin", 9))
    (finding,) = check(folder, Limits(max_rank=0))

    assert finding.message == f"LoRA rank {rank} is greater than max_lora_rank 0."
    assert finding.hint == f"start vLLM with --max-lora-rank {flag}"


@pytest.mark.parametrize(("root", "inside"), [("/models/X", False), ("/models", True), ("/models/", True), ("/", True)])
def test_a_root_ends_at_a_slash(root: str, inside: bool) -> None:
    """A folder whose name begins alike is beside it; slashes at its end, and no other characters, are ignored."""
    folder = Folder("/a", "/models/a", json.dumps(CONFIG).encode(), Weights("adapter_model.bin", 9))

    assert (check(folder, Limits(roots=(root,))) == ()) is inside
