from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.files.peft import Finding, Folder, Limits, Weights, check, rank_limit_in
from lora_sidecar.files.preflight import read_folder
from lora_sidecar.files.safetensors import base_shape
from tests.support.adapters import (
    CONFIG,
    WEIGHTS,
    adapter_config,
    safetensors_bytes,
    write_adapter,
    write_broken_adapters,
)

BASE = json.dumps(
    {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
    }
).encode()


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each fault."""
    return write_broken_adapters(tmp_path_factory.mktemp("broken"))


def of(path: Path, **limits: Any) -> tuple[Finding, ...]:
    """What is wrong with a folder on disk."""
    folder = read_folder(str(path))
    assert isinstance(folder, Folder)
    return check(folder, Limits(**({"max_rank": 16} | limits)))


def made_of(tensors: dict[str, tuple[int, ...]], **config: Any) -> Folder:
    """A folder whose weights have these shapes."""
    data = safetensors_bytes({name: (shape, bytes(2 * _size(shape))) for name, shape in tensors.items()})
    return Folder("/a", "/a", json.dumps(adapter_config(**config)).encode(), Weights(WEIGHTS, len(data), data))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for one in shape:
        size *= one
    return size


def test_a_sound_adapter_has_no_finding(tmp_path: Path) -> None:
    """Nothing is said of what the server would load."""
    assert of(write_adapter(tmp_path / "a"), base=base_shape(BASE.replace(b'heads": 2', b'heads": 4'))) == ()


@pytest.mark.parametrize(
    ("fault", "kind", "sentence"),
    [
        ("empty", FailureKind.FILES, "No adapter found for"),
        ("no_config", FailureKind.FILES, "No adapter found for"),
        ("no_weights", FailureKind.FILES, "doesn't contain tensors"),
        ("truncated", FailureKind.FILES, "incomplete metadata, file not fully covered"),
        ("garbage", FailureKind.FILES, "header too large"),
        ("empty_weights", FailureKind.FILES, "header too small"),
        ("config_not_json", FailureKind.FILES, "Expecting property name enclosed in double quotes"),
        ("config_empty", FailureKind.FILES, "Expecting value"),
        ("config_a_list", FailureKind.ADAPTER, "no JSON object"),
        ("without_r", FailureKind.ADAPTER, "Missing required configuration fields: {'r'}"),
        ("rank_zero", FailureKind.ADAPTER, "LoRA rank `r` must be a positive integer, got 0."),
        ("rank_64", FailureKind.ADAPTER, "LoRA rank 64 is greater than max_lora_rank 16."),
        ("dora", FailureKind.ADAPTER, "vLLM does not yet support DoRA."),
    ],
)
def test_a_fault_is_found_in_the_engines_words(
    broken: dict[str, Path], fault: str, kind: FailureKind, sentence: str
) -> None:
    """Each fault that every version refuses is a certain finding, with a hint."""
    first, *_ = of(broken[fault])

    assert first.kind is kind
    assert sentence in first.message
    assert first.certain
    assert first.hint


def test_every_problem_is_named_at_once(broken: dict[str, Path]) -> None:
    """A folder with several faults is told all of them, the surest first."""
    messages = [one.message for one in of(broken["dora_and_rank"])]

    assert messages == [
        "LoRA rank 64 is greater than max_lora_rank 16.",
        "vLLM does not yet support DoRA.",
        "Adapter bias is not supported.",
    ]


@pytest.mark.parametrize(
    "config",
    [{"lora_bias": True}, {"init_lora_weights": "pissa"}, {"bias": "all"}, {"rank_pattern": {"q_proj": 64}}],
    ids=str,
)
def test_what_only_some_versions_refuse_is_no_reason_to_withhold(tmp_path: Path, config: dict[str, Any]) -> None:
    """It is told, and the server decides."""
    findings = of(write_adapter(tmp_path / "a", layers=1, **config))

    assert len(findings) == 1
    assert not findings[0].certain


def test_a_rank_without_a_known_limit_is_not_judged(tmp_path: Path) -> None:
    """A limit that nobody told is no limit."""
    assert of(write_adapter(tmp_path / "a", rank=64), max_rank=None) == ()


def test_the_limit_is_learned_from_the_servers_refusal() -> None:
    """The sentence of any version tells it."""
    assert rank_limit_in("Call failed: LoRA rank 64 is greater than max_lora_rank 16.") == 16
    assert rank_limit_in("No adapter found for /a") is None


@pytest.mark.parametrize(
    ("name", "certain"),
    [
        ("base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector", True),
        ("base_model.model.lm_head.weight", True),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_B.bias", None),
        ("base_model.model.model.embed_tokens.base_layer.weight", None),
        ("base_model.model.score.weight", None),
    ],
)
def test_tensor_names(name: str, certain: bool | None) -> None:
    """A name that no version reads is found; one that some version reads or skips is not."""
    sound = {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": (8, 128)}
    findings = check(made_of(sound | {name: (8,)}), Limits())

    assert [one.certain for one in findings] == ([] if certain is None else [certain])


@pytest.mark.parametrize(
    ("module", "part", "shape", "said"),
    [
        ("layers.0.self_attn.q_proj", "lora_A", (8, 64), "has 64 inputs, and the base model's module has 128"),
        ("layers.0.self_attn.k_proj", "lora_B", (128, 8), "has 128 outputs, and the base model's module has 64"),
        ("layers.0.mlp.down_proj", "lora_A", (8, 128), "has 128 inputs, and the base model's module has 256"),
        ("layers.9.mlp.down_proj", "lora_A", (8, 256), "is for layer 9, and the base model has 2 layers"),
        ("layers.1.mlp.down_proj", "lora_A", (8, 256), ""),
        ("layers.1.mlp.unheard_of", "lora_A", (8, 3), ""),
    ],
)
def test_shapes_are_held_against_the_base_model(module: str, part: str, shape: tuple[int, ...], said: str) -> None:
    """What the engine would load without a word and answer wrongly from is found where the base model is mounted."""
    base = base_shape(BASE)
    assert base is not None
    findings = check(made_of({f"base_model.model.model.{module}.{part}.weight": shape}), Limits(base=base))

    assert [one.certain for one in findings] == ([True] if said else [])
    assert said in "".join(one.message for one in findings)


def test_a_base_model_that_is_not_understood_checks_nothing() -> None:
    """Shapes are guessed of no architecture but those whose shapes follow from the common settings."""
    assert base_shape(BASE.replace(b"llama", b"deepseek_v3")) is None
    assert base_shape(b"{}") is None
    assert base_shape(b"\xff") is None


def test_roots_hold_for_where_a_link_leads(tmp_path: Path) -> None:
    """A link out of the allowed root is refused, whatever its own path."""
    outside = write_adapter(tmp_path / "outside" / "a", layers=1)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(outside)
    (finding,) = of(tmp_path / "root" / "a", roots=(str(tmp_path / "root"),))

    assert str(outside) in finding.message
    assert of(outside, roots=(str(tmp_path / "outside"),)) == ()
    assert of(outside, roots=(str(tmp_path / "out"),))


def test_a_pickle_is_refused_unless_allowed(tmp_path: Path) -> None:
    """Our own rule, and the only one for weights that cannot be read without unpickling."""
    folder = write_adapter(tmp_path / "a", layers=1)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")

    assert "adapter_model.bin" in of(folder, allow_pickle=False)[0].message
    assert of(folder, allow_pickle=True) == ()


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"[]",
        b"1",
        b'{"r": "8", "lora_alpha": 1, "target_modules": 1}',
        b'{"r": true, "lora_alpha":1}',
        b'{"r":8,"lora_alpha":1,"target_modules":1,"rank_pattern":[1],"modules_to_save":3,"bias":{}}',
        b"[" * 100000,
    ],
    ids=lambda text: text[:20].decode(),
)
def test_no_config_makes_it_fail(text: bytes) -> None:
    """Whatever JSON holds is a finding, never an exception."""
    assert check(Folder("/a", "/a", text, None), Limits(max_rank=16))


@pytest.mark.parametrize(
    "header",
    [
        '{"a": 1}',
        '{"a": {"shape": [1], "dtype": "F32"}}',
        '{"a": {"shape": ["x"], "dtype": "F32", "data_offsets": [0, 4]}}',
        '{"a": {"shape": [1], "dtype": "F99", "data_offsets": [0, 4]}}',
        "[]",
        "3",
        '{"a": {"shape": [1e400]}}',
    ],
)
def test_no_header_makes_it_fail(header: str) -> None:
    """Whatever a header holds is a finding, never an exception."""
    data = len(header).to_bytes(8, "little") + header.encode()
    folder = Folder("/a", "/a", json.dumps(adapter_config()).encode(), Weights(WEIGHTS, len(data) + 4, data))

    assert "deserializing header" in check(folder, Limits())[0].message


def test_names_of_the_files_are_those_of_peft() -> None:
    """The checked files are the ones that the tests' adapters have."""
    assert (CONFIG, WEIGHTS) == ("adapter_config.json", "adapter_model.safetensors")
