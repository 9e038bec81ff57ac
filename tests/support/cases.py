"""102 adapter folders as people have them, whole and broken, by the name under which the answers to them are recorded.

What real servers answered to a load of each is in `tests/contract/cases/`, with why it is there. The folders are made
for the tiny model of `support.tiny_model`, as those were that the real servers had.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.support.adapters import CONFIG, WEIGHTS
from tests.support.drafts import HIDDEN, RANK, VOCABULARY, Draft

_FULL: Final[dict[str, Any]] = {
    **{key: {} for key in ("alpha_pattern", "loftq_config", "rank_pattern")},
    **dict.fromkeys(("auto_mapping", "corda_config", "eva_config", "exclude_modules", "layer_replication")),
    **dict.fromkeys(("layers_pattern", "layers_to_transform", "megatron_config", "modules_to_save", "revision")),
    **dict.fromkeys(("target_parameters", "trainable_token_indices", "arrow_config", "alora_invocation_tokens")),
    **dict.fromkeys(
        ("fan_in_fan_out", "lora_bias", "use_dora", "use_qalora", "use_rslora", "ensure_weight_tying"), False
    ),
    "inference_mode": True,
    "init_lora_weights": True,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "peft_version": "0.18.0",
    "use_bdlora": None,
}
_LFS: Final = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4e" * 32 + b"\nsize 83945296\n"
_EXPERTS: Final = "layers.0.mlp.experts"


def _every_expert() -> list[str]:
    projections = ("gate", "up", "down")
    return [f"model.layers.{n}.mlp.experts.{e}.{p}_proj" for n in range(48) for e in range(192) for p in projections]


def _ended_by(tail: bytes) -> Callable[[bytes], bytes]:
    """Puts something before the last brace of a config."""
    return lambda text: text.rstrip()[:-1].rstrip() + tail


def _shard(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model-00001-of-00002.safetensors")
    (folder / "adapter_model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {}}')


def _into_a_hub_cache(folder: Path) -> None:
    cache = folder.parent / "hf_cache_repo"
    snapshot = cache / "snapshots" / "abc123"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).rename(cache / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    shutil.rmtree(folder)
    folder.symlink_to(snapshot)


def _linked_to(target: str) -> Callable[[Path], None]:
    """Puts a link in the place of the weights."""

    def link(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / WEIGHTS).symlink_to(target)

    return link


def _directory_as_weights(folder: Path) -> None:
    (folder / WEIGHTS).mkdir()


def _trainer_files(draft: Draft) -> Draft:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        draft.file(name, b"\x80")
    return draft.file("trainer_state.json", b"{}").file("README.md", b"---\nbase_model: x\n---\n")


def _embeddings(draft: Draft, vocabulary: int = VOCABULARY) -> Draft:
    draft.add(RANK, vocabulary, name="embed_tokens.lora_embedding_A")
    return draft.target("embed_tokens").add(HIDDEN, RANK, name="embed_tokens.lora_embedding_B")


def _moe(draft: Draft) -> Draft:
    draft.say(
        target_modules=["q_proj", "v_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    ).keep(lambda name: "q_proj" in name or "v_proj" in name)
    for module, inner in ((f"{_EXPERTS}.base_layer", 128), (_EXPERTS, 64)):
        draft.add(32, inner, name=f"{module}.lora_A.weight").add(128, 32, name=f"{module}.lora_B.weight")
    return draft


def _lower_names(draft: Draft) -> Draft:
    for old, new in (("base_model.model.", ""), ("lora_A.weight", "lora_a"), ("lora_B.weight", "lora_b")):
        draft.rename(lambda name, old=old, new=new: name.replace(old, new))  # type: ignore[misc]
    return draft.reshape(lambda _, shape: shape[::-1])


CASES: Final[dict[str, Callable[[Draft], object]]] = {
    "full_peft018": lambda d: d.say(**_FULL),
    "base_null": lambda d: d.say(base_model_name_or_path=None),
    "regex_targets": lambda d: d.say(target_modules=r"model\.layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj"),
    "all_linear": lambda d: d.say(target_modules="all-linear"),
    "targets_null": lambda d: d.say(target_modules=None, target_parameters=["mlp.experts.gate_up_proj"]),
    "rslora": lambda d: d.say(use_rslora=True),
    "rank_pattern_ok": lambda d: d.say(rank_pattern={"q_proj": 16}, alpha_pattern={"q_proj": 32}).widen(2, "q_proj"),
    "rank_pattern_high": lambda d: d.say(rank_pattern={"q_proj": 32}).widen(4, "q_proj"),
    "rank_pattern_null": lambda d: d.say(rank_pattern=None, alpha_pattern=None),
    "eva_init": lambda d: d.say(init_lora_weights="eva", eva_config={"rho": 2.0, "tau": 0.99}),
    "corda_init": lambda d: d.say(init_lora_weights="corda", corda_config={"corda_method": "ipm"}),
    "pissa_init": lambda d: d.say(init_lora_weights="pissa_niter_4"),
    "init_false": lambda d: d.say(init_lora_weights=False),
    "lora_bias_true": lambda d: d.say(lora_bias=True).with_each_b("lora_B.bias"),
    "r_float": lambda d: d.say(r=8.0, lora_alpha=16.0),
    "r_string": lambda d: d.say(r="8"),
    "alpha_null": lambda d: d.say(lora_alpha=None),
    "alpha_string": lambda d: d.say(lora_alpha="16"),
    "alpha_float": lambda d: d.say(lora_alpha=22.6),
    "bom_config": lambda d: d.text(lambda text: b"\xef\xbb\xbf" + text),
    "utf16_config": lambda d: d.text(lambda text: text.decode().encode("utf-16")),
    "latin1_config": lambda d: d.text(_ended_by(b', "author": "Jos\xe9"}')),
    "crlf_config": lambda d: d.text(lambda text: text.replace(b"\n", b"\r\n")),
    "nan_config": lambda d: d.say(lora_dropout=float("nan"), extra=float("inf")),
    "dup_keys_config": lambda d: d.text(_ended_by(b', "r": 8}')),
    "trailing_comma": lambda d: d.text(_ended_by(b",\n}")),
    "huge_config": lambda d: d.target(*_every_expert()),
    "mts_null": lambda d: d.say(modules_to_save=None),
    "mts_empty": lambda d: d.say(modules_to_save=[]),
    "mts_embed": lambda d: (
        d.say(modules_to_save=["embed_tokens", "lm_head"])
        .add(VOCABULARY, HIDDEN, name="embed_tokens.weight")
        .add(VOCABULARY, HIDDEN, full="base_model.model.lm_head.weight")
    ),
    "mts_score": lambda d: d.say(modules_to_save=["score"], task_type="SEQ_CLS").add(
        1, HIDDEN, full="base_model.model.score.weight"
    ),
    "mts_named_only": lambda d: d.say(modules_to_save=["embed_tokens"]),
    "lora_embed": _embeddings,
    "lora_embed_grown": lambda d: _embeddings(d, VOCABULARY + 4).file("added_tokens.json", b'{"<extra0>": 260}'),
    "lora_lm_head": lambda d: (
        d.target("lm_head")
        .add(RANK, HIDDEN, full="base_model.model.lm_head.lora_A.weight")
        .add(VOCABULARY, RANK, full="base_model.model.lm_head.lora_B.weight")
    ),
    "base_layer_embed": lambda d: _embeddings(d).add(VOCABULARY, HIDDEN, name="embed_tokens.base_layer.weight"),
    "base_layer_linear": lambda d: d.add(HIDDEN, HIDDEN, name="layers.0.self_attn.q_proj.base_layer.weight"),
    "new_embeddings": lambda d: d.file("new_embeddings.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
    "trainable_tokens": lambda d: d.say(trainable_token_indices={"embed_tokens": [5, 6]}).add(
        2, HIDDEN, name="embed_tokens.token_adapter.trainable_tokens_delta"
    ),
    "dora": lambda d: d.say(use_dora=True).with_each_b("lora_magnitude_vector"),
    "magnitude_only": lambda d: d.with_each_b("lora_magnitude_vector"),
    "default_names": lambda d: d.rename(lambda name: name.replace(".weight", ".default.weight")),
    "no_prefix": lambda d: d.rename(lambda name: name.removeprefix("base_model.model.")),
    "double_prefix": lambda d: d.rename(lambda name: f"base_model.model.{name}"),
    "compiled_prefix": lambda d: d.rename(lambda name: f"_orig_mod.{name}"),
    "fsdp_prefix": lambda d: d.rename(lambda name: f"module.{name}"),
    "kohya_names": lambda d: (
        d.rename(lambda name: name.replace("lora_A", "lora_down"))
        .rename(lambda name: name.replace("lora_B", "lora_up"))
        .add(dtype="F32", name="layers.0.self_attn.q_proj.alpha")
    ),
    "lower_names": _lower_names,
    "mlx_folder": lambda d: (
        d.unsay(*d.config)
        .say(fine_tune_type="lora", num_layers=2, lora_parameters={"rank": 8, "scale": 20.0, "dropout": 0.0})
        .then(lambda folder: (folder / WEIGHTS).rename(folder / "adapters.safetensors"))
    ),
    "torchtune_folder": lambda d: d.unsay(*d.config).say(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], peft_type="LORA", base_model_name_or_path=None
    ),
    "zero3_empty": lambda d: d.reshape(lambda *_: (0,)),
    "zero3_40bytes": lambda d: d.keep(lambda _: False),
    "metadata_number": lambda d: d.header({"format": "pt", "step": 500}),
    "metadata_big": lambda d: d.header({"format": "pt", "notes": "x" * 9 * 2**20}),
    "header_padded": lambda d: d.header(padding=64),
    "header_order": lambda d: d.header(in_order=False),
    "trailing_bytes": lambda d: d.weights(lambda data: data + bytes(8)),
    "f8": lambda d: d.typed("F8_E4M3"),
    "f8_fnuz": lambda d: d.typed("F8_E4M3FNUZ"),
    "f8_e8m0_extra": lambda d: d.typed("F8_E8M0"),
    "complex64": lambda d: d.typed("C64"),
    "f64": lambda d: d.typed("F64"),
    "i8": lambda d: d.typed("I8"),
    "sharded": lambda d: d.then(_shard),
    "lfs_pointer": lambda d: d.weights(lambda _: _LFS),
    "lfs_pointer_bin": lambda d: d.weightless().file("adapter_model.bin", _LFS),
    "zero_bin": lambda d: d.weightless().file("adapter_model.bin", b""),
    "good_bin": lambda d: d.as_torch("adapter_model.bin"),
    "good_pt": lambda d: d.as_torch("adapter_model.pt"),
    "both_lfs_and_bin": lambda d: d.as_torch("adapter_model.bin").file(WEIGHTS, _LFS),
    "dir_as_weights": lambda d: d.as_torch("adapter_model.bin").then(_directory_as_weights),
    "hf_cache": lambda d: d.then(_into_a_hub_cache),
    "hf_cache_broken": lambda d: d.then(_linked_to("../../blobs/nowhere")),
    "symlink_loop": lambda d: d.then(_linked_to(WEIGHTS)),
    "checkpoint-500": _trainer_files,
    "name with space": lambda d: d,
    "ünïcode-日本": lambda d: d,
    "nbsp\u00a0folder": lambda d: d,
    "wide\u3000space": lambda d: d,
    "unused_target": lambda d: d.target("qkv_proj", "dense_h_to_4h"),
    "packed_qkv": lambda d: (
        d.say(target_modules=["qkv_proj"])
        .keep(lambda name: "q_proj" in name)
        .rename(lambda name: name.replace("q_proj", "qkv_proj"))
    ),
    "extra_module": lambda d: d.add(RANK, HIDDEN, name="layers.0.mlp.router.lora_A.weight").add(
        4, RANK, name="layers.0.mlp.router.lora_B.weight"
    ),
    "layernorm": lambda d: d.add(HIDDEN, name="layers.0.input_layernorm.weight"),
    "rank_lies_high": lambda d: d.widen(4),
    "rank_lies_ok": lambda d: d.widen(2),
    "moe3d": _moe,
    "layer9": lambda d: d.rename(lambda name: name.replace("layers.1.", "layers.9.")),
    "gqa_wrong_v": lambda d: d.reshape(lambda name, shape: (32, RANK) if "v_proj.lora_B" in name else shape),
    "alora": lambda d: d.say(alora_invocation_tokens=[1, 2]),
    "bias_lora_only": lambda d: d.say(bias="lora_only"),
    "bias_null": lambda d: d.say(bias=None),
    "layer_repl": lambda d: d.say(layer_replication=[[0, 1], [0, 1]]),
    "megatron": lambda d: d.say(megatron_config={"hidden_size": 128}, megatron_core="megatron.core"),
    "layers_transform": lambda d: d.say(layers_to_transform=[0], layers_pattern="layers").keep(
        lambda name: "layers.0." in name
    ),
    "adalora": lambda d: d.say(
        peft_type="ADALORA",
        init_r=12,
        target_r=8,
        rank_pattern={"model.layers.0.self_attn.q_proj.lora_E": [True] * 8},
    ),
    "loha": lambda d: d.unsay("lora_alpha").say(peft_type="LOHA", alpha=8),
    "r_zero": lambda d: d.say(r=0),
    "config_list": lambda d: d.text(lambda _: b"[]"),
    "config_empty": lambda d: d.text(lambda _: b""),
    "upper_dtype_none": lambda d: d.reshape(lambda name, shape: (*shape, 1) if "q_proj" in name else shape),
    "lora_A_only_A": lambda d: d.keep(lambda name: "lora_A" in name),
    "config_dir_ro": lambda d: d.then(lambda folder: folder.chmod(0o555)),
}
"""What is done to a plain adapter to make it each of them."""


def write_cases(root: Path) -> dict[str, Path]:
    """Write all of them below `root`; their paths by their names."""
    paths: dict[str, Path] = {}
    for name, change in CASES.items():
        draft = Draft()
        change(draft)
        paths[name] = draft.write(root / name)
    return paths
