from __future__ import annotations

import json
from typing import Any

import pytest

from lora_sidecar.files.safetensors import (
    HEADER_BYTES,
    BaseShape,
    Damage,
    base_shape,
    empty_tensor,
    half_a_pair,
    is_git_lfs_pointer,
    misfit,
    module_of,
    other_rank,
    shapes_of,
    unknown_module,
    unknown_name,
)

LAYER = "base_model.model.model.layers.0.self_attn"
A, B = f"{LAYER}.q_proj.lora_A.weight", f"{LAYER}.q_proj.lora_B.weight"
MODEL: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 3,
}


def tensor(*shape: int, at: tuple[int, int] = (0, 4), dtype: str = "F32") -> dict[str, Any]:
    """One entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


def read(header: object, data: int = 0) -> Any:
    """What is made of a file with this header and so many bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return shapes_of(len(text).to_bytes(8, "little") + text, 8 + len(text) + data)


def test_shapes_are_read_whatever_their_order_and_type() -> None:
    """A type that is not known is none of our business: new ones keep coming."""
    header = {"b": tensor(2, 3, at=(4, 28)), "a": tensor(1), "c": tensor(64, dtype="F4_E2M1_X9", at=(28, 60))}

    assert read(header | {"__metadata__": {"format": "pt"}}, 60) == {"b": (2, 3), "a": (1,), "c": (64,)}
    assert read({}) == {}
    assert read(b'{"__metadata__": null}     ') == {}


@pytest.mark.parametrize(
    ("head", "size", "is_short"),
    [
        (b"", 0, True),
        (bytes(7), 7, True),
        ((9).to_bytes(8, "little") + b"{}", 10, True),
        ((100_000_001).to_bytes(8, "little"), 200_000_000, False),
        (b"\xff" * 64, 64, False),
    ],
)
def test_a_header_that_cannot_be_whole(head: bytes, size: int, *, is_short: bool) -> None:
    """A file that is shorter than its header says is a copy under way; garbage is not."""
    found = shapes_of(head, size)

    assert isinstance(found, Damage)
    assert found.is_short is is_short


def test_a_file_shorter_than_its_header_says_is_half_copied() -> None:
    """And one that is longer is damaged, but whole."""
    header = {"a": tensor(1)}
    short, whole, long = read(header, 3), read(header, 4), read(header, 5)

    assert isinstance(short, Damage)
    assert short.is_short
    assert "speaks of" in short.why
    assert whole == {"a": (1,)}
    assert isinstance(long, Damage)
    assert not long.is_short


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"\xff", "has a header that is not JSON"),
        (b"{", "has a header that is not JSON"),
        (b"[" * 100_000, "has a header that is no JSON object"),
        (b"[]", "has a header that is no JSON object"),
        (b'{"__metadata__": {"step": 500}}', "has something else than text in the __metadata__ of its header"),
        (b'{"__metadata__": 3}', "has something else than text in the __metadata__ of its header"),
    ],
)
def test_a_header_that_the_library_does_not_take(header: bytes, said: str) -> None:
    """Each says what is wrong with it."""
    found = read(header)

    assert isinstance(found, Damage)
    assert found.why.startswith(said)
    assert not found.is_short


@pytest.mark.parametrize(
    "header",
    [
        {"a": 3},
        {"a": {}},
        {"a": {"shape": [1]}},
        {"a": {"shape": ["x"], "data_offsets": [0, 4]}},
        {"a": {"shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"shape": [1], "data_offsets": [0, 2**63]}},
        {"__metadata__": {"shape": "a word that a script wrote"}},
    ],
    ids=str,
)
def test_what_is_not_understood_is_not_judged(header: object) -> None:
    """The engine will say."""
    assert read(header, 4) is None


def test_a_header_that_was_not_read_is_not_judged() -> None:
    """A script's statistics may fill megabytes of it."""
    length = HEADER_BYTES + 1
    head = length.to_bytes(8, "little") + b'{"__metadata__": {"notes": "'

    assert shapes_of(head, 8 + length + 100) is None


def test_a_pointer_of_git_is_known() -> None:
    """By its first line."""
    assert is_git_lfs_pointer(b"version https://git-lfs.github.com/spec/v1\noid sha256:4e\n")
    assert not is_git_lfs_pointer(b"version 2\n")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("base_model.model.a.b.lora_A.weight", "a.b"),
        ("_orig_mod.a.lora_B.weight", "_orig_mod.a"),
        ("a.lora_B.bias", "a"),
        ("a.lora_embedding_A", "a"),
        ("a.b.lora_embedding_B", "a.b"),
        ("x.score.weight", "score"),
        ("x.classifier.bias", "classifier"),
        ("base_model.model.model.embed_tokens.base_layer.weight", "embed_tokens"),
        ("base_model.model.lm_head.base_layer.weight", "lm_head"),
        ("a.q_proj.base_layer.weight", None),
        ("a.lora_C.weight", None),
        ("a.lora_A.default.weight", None),
        ("a.lora_embedding_A.weight", None),
        ("score.other", None),
    ],
)
def test_names_of_tensors_belong_to_modules(name: str, module: str | None) -> None:
    """As vLLM reads them."""
    assert module_of(name) == module
    assert unknown_name({A: (8, 64), name: (1,)}) == ("" if module else name)


def test_a_tensor_without_values_is_named() -> None:
    """Only one of a LoRA: other tensors may be empty."""
    assert empty_tensor({"x.bias": (0,), A: (0, 64)}) == A
    assert empty_tensor({"x.bias": (0,), A: (8, 64)}) == ""


def test_half_of_a_pair_is_named() -> None:
    """A lora_B alone is told by nobody."""
    assert half_a_pair({A: (8, 64), B: (64, 8)}) == ""
    assert half_a_pair({B: (64, 8)}) == ""
    assert half_a_pair({A: (8, 64)}) == f"{A} has no lora_B beside it"


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (A, (8, 64), ""),
        (A, (16, 64), f"{A} has rank 16, and the config says 8"),
        (B, (16, 64), ""),
        (A, (16, 64, 1), ""),
        (A, (16,), ""),
        (f"{LAYER}.qkv_proj.lora_A.weight", (24, 64), ""),
        ("model.layers.0.mlp.experts.3.gate_proj.lora_A.weight", (32, 64), ""),
        ("model.layers.0.mlp.experts.lora_A.weight", (32, 64), ""),
    ],
)
def test_a_rank_that_the_weights_contradict(name: str, shape: tuple[int, ...], said: str) -> None:
    """Only where a row is a rank: what holds several matrices, or one for each expert, has more rows."""
    assert other_rank({"x": (1,), name: shape}, 8.0) == said


def shape(**fields: Any) -> BaseShape | None:
    """The shapes of a model with these settings; None leaves one out."""
    config = {key: value for key, value in (MODEL | fields).items() if value is not None}
    return base_shape(json.dumps(config).encode())


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


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"3", b"{}", b"[" * 100_000])
def test_a_base_model_that_is_not_understood_judges_nothing(text: bytes) -> None:
    """Shapes are guessed of no architecture but those whose shapes follow from the common settings."""
    assert base_shape(text) is None
    assert shape(model_type="deepseek_v3") is None
    assert shape(hidden_size=None) is None
    assert shape(num_attention_heads=0, head_dim=None) is None


def test_a_tensor_of_another_model_is_named() -> None:
    """Its inputs, its outputs or its layer; what the shape does not say is let pass, what follows is not."""
    base = shape()
    assert base is not None
    unknown = {"x.lora_A.weight": (8, 5), "x.lora_B.weight": (2, 8), "x.bias": (7, 7)}
    a, b = f"{LAYER}.v_proj.lora_A.weight", f"{LAYER}.v_proj.lora_B.weight"

    assert misfit(unknown | {A: (8, 64), B: (128, 8)}, base) == ""
    assert misfit(unknown | {a: (8, 65)}, base) == f"{a} has 65 inputs, and the base model's module has 64"
    assert misfit(unknown | {b: (63, 8)}, base) == f"{b} has 63 outputs, and the base model's module has 64"
    deep = a.replace("layers.0", "layers.3")
    assert misfit({a.replace("layers.0", "layers.2"): (8, 64)}, base) == ""
    assert misfit({deep: (8, 64)}, base) == f"{deep} is for layer 3, and the base model has 3 layers"


def test_a_module_that_the_model_has_not_is_named() -> None:
    """Its embeddings and heads it has, and PEFT's own word for what it wrapped is none."""
    base = shape()
    assert base is not None
    has = {
        f"model.{one}.lora_A.weight": (8, 64) for one in ("embed_tokens", "lm_head", "score", "x.base_layer", "up_proj")
    }
    name = f"{LAYER}.z_proj.lora_A.weight"

    assert unknown_module(has | {"a.alpha": (1,)}, base) == ""
    assert unknown_module(has | {name: (8, 64)}, base) == f"{name} is for a module that the base model has not"
