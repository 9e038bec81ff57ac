"""Makes adapter folders, whole and broken, without torch: the fake server and the real vLLM read the same ones.

The trap guarded against is a fake that is checked with folders of its own: a folder made here is accepted or refused
by both, so a difference between them shows as a failing test.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def _bfloat16(values: list[float]) -> bytes:
    # A bfloat16 is the upper half of a float32; truncation is exact enough for random weights.
    packed = struct.pack(f"<{len(values)}f", *values)
    return b"".join(packed[i + 2 : i + 4] for i in range(0, len(packed), 4))


def safetensors_bytes(tensors: Mapping[str, tuple[tuple[int, ...], bytes]]) -> bytes:
    """What a safetensors file of these bfloat16 tensors holds; each is a shape and its data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, (shape, raw) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(data)


def adapter_config(rank: int = 8, **changes: Any) -> dict[str, Any]:
    """The settings that PEFT writes for a plain LoRA adapter, with `changes` applied."""
    return {
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in MODULES}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    } | changes


class Size(TypedDict):
    """How large an adapter is."""

    rank: int
    hidden: int
    layers: int


SMALL = Size(rank=1, hidden=8, layers=1)
"""Enough for whoever only looks at the files."""


def write_adapter(
    folder: Path,
    rank: int = 8,
    seed: int = 0,
    hidden: int = 128,
    layers: int = 2,
    *,
    modules: tuple[str, ...] = MODULES,
    **config: Any,
) -> Path:
    """Write a PEFT adapter for the tiny model into `folder` (made where absent); its weights follow from `seed`.

    `config` replaces single settings of adapter_config.json. The feed-forward size is twice `hidden`.
    """
    chance = random.Random(seed)
    sizes = {"gate_proj": (hidden, 2 * hidden), "up_proj": (hidden, 2 * hidden), "down_proj": (2 * hidden, hidden)}
    tensors: dict[str, tuple[tuple[int, ...], bytes]] = {}
    for layer in range(layers):
        for module in modules:
            inner, outer = sizes.get(module.rsplit(".", 1)[-1], (hidden, hidden))
            stem = f"base_model.model.model.layers.{layer}.{module}"
            for part, shape, spread in (("lora_A", (rank, inner), 0.1), ("lora_B", (outer, rank), 0.5)):
                values = [chance.gauss(0.0, spread) for _ in range(shape[0] * shape[1])]
                tensors[f"{stem}.{part}.weight"] = (shape, _bfloat16(values))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(adapter_config(rank, **config), indent=2))
    (folder / WEIGHTS).write_bytes(safetensors_bytes(tensors))
    return folder


def write_broken_adapters(root: Path) -> dict[str, Path]:
    """Write one folder for each way in which an adapter can be wrong; the result maps the fault's name to its path.

    `missing` is never made, and `a_file` is a file.
    """
    broken = {"missing": root / "missing", "a_file": root / "a_file", "empty": root / "empty"}
    root.mkdir(parents=True, exist_ok=True)
    broken["a_file"].write_text("not a folder")
    broken["empty"].mkdir(exist_ok=True)
    broken["rank_64"] = write_adapter(root / "rank_64", rank=64)
    broken["dora"] = write_adapter(root / "dora", use_dora=True)
    broken["bias"] = write_adapter(root / "bias", bias="all")
    broken["dora_and_rank"] = write_adapter(root / "dora_and_rank", rank=64, use_dora=True, bias="all")
    broken["unknown_module"] = write_adapter(root / "unknown_module", modules=("self_attn.z_proj",), layers=1)
    for fault in (
        "no_config",
        "no_weights",
        "truncated",
        "garbage",
        "empty_weights",
        "config_not_json",
        "config_empty",
        "config_a_list",
        "without_r",
        "without_r_and_alpha",
        "rank_zero",
    ):
        broken[fault] = write_adapter(root / fault, layers=1)
    (broken["no_config"] / CONFIG).unlink()
    (broken["no_weights"] / WEIGHTS).unlink()
    whole = (broken["truncated"] / WEIGHTS).read_bytes()
    (broken["truncated"] / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    (broken["garbage"] / WEIGHTS).write_bytes(b"\xff" * 4096)
    (broken["empty_weights"] / WEIGHTS).write_bytes(b"")
    (broken["config_not_json"] / CONFIG).write_text("{not json")
    (broken["config_empty"] / CONFIG).write_text("")
    (broken["config_a_list"] / CONFIG).write_text("[]")
    settings = adapter_config()
    del settings["r"]
    (broken["without_r"] / CONFIG).write_text(json.dumps(settings))
    del settings["lora_alpha"]
    (broken["without_r_and_alpha"] / CONFIG).write_text(json.dumps(settings))
    (broken["rank_zero"] / CONFIG).write_text(json.dumps(adapter_config(rank=0)))
    return broken
