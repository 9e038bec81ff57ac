"""Reads an adapter folder as vLLM 0.32 does, and refuses it with vLLM's very words.

The trap guarded against is a fake that accepts what a real server refuses: the order of the checks and the text of
each refusal follow vLLM's own reading, down to the exceptions that Python itself raises for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXPECTED_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"}
)
_REQUIRED = ("r", "lora_alpha", "target_modules")
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
_UNSUPPORTED = {
    "use_dora": "vLLM does not yet support DoRA.",
    "lora_bias": "vLLM does not support LoRA bias (lora_bias).",
    "init_lora_weights": "",
    "alora_invocation_tokens": "vLLM does not support Activated LoRA (aLoRA).",
    "layer_replication": "vLLM does not support layer_replication.",
    "use_bdlora": "vLLM does not support block-diagonal LoRA (BD-LoRA).",
    "use_qalora": "vLLM does not support QALoRA.",
}
_HEADER_LIMIT = 100_000_000
_HEADER_LENGTH_BYTES = 8
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}


class AdapterRefusedError(Exception):
    """The folder is not an adapter that this server can load; `str()` of it is what vLLM's worker would say."""


def sanitized(message: str) -> str:
    """`message` with paths hidden as vLLM hides them: by folder names that it knows, and by file extensions."""
    message = re.sub(r"/(?:home|usr|opt|var|tmp|root|lib|mnt|srv)(?:/[\w.\-]+)+", "<path>", message)
    return re.sub(r"(?:/[\w\-]+)+/[\w\-]+\.\w+", "<path>", message).strip()


def read_adapter(path: str, *, max_rank: int) -> None:
    """Read the adapter at `path` as vLLM would; blocks on the disk.

    Raises `FileNotFoundError` where vLLM answers that no adapter was found, and `AdapterRefusedError` for the rest.
    """
    folder = Path(path).expanduser() if path.startswith("~") else Path(path)
    try:
        config = _read_config(folder)
        _check_config(config, max_rank)
        _check_weights(path, folder, config)
    except (FileNotFoundError, AdapterRefusedError):
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise AdapterRefusedError(str(error)) from error


def _read_config(folder: Path) -> dict[str, Any]:
    with (folder / "adapter_config.json").open(encoding="utf-8") as file:
        config: dict[str, Any] = json.load(file)
    # vLLM stores a setting of its own here, which is what fails for a document that is not an object.
    config["vllm_max_position_embeddings"] = None
    missing = set(_REQUIRED) - set(config)
    if missing:
        raise AdapterRefusedError(f"Missing required configuration fields: {missing}")
    return config


def _check_config(config: Mapping[str, Any], max_rank: int) -> None:
    rank = config["r"]
    if rank <= 0:
        raise AdapterRefusedError(f"LoRA rank `r` must be a positive integer, got {rank}.")
    pattern = config.get("rank_pattern") or {}
    for key, special in pattern.items():
        if not isinstance(special, int) or special <= 0:
            raise AdapterRefusedError(
                f"LoRA rank for `{key}` in `rank_pattern` must be a positive integer, got {special}."
            )
    _scaling(config)
    refusals = _unsupported_features(config)
    highest = max([rank, *pattern.values()])
    if highest > max_rank:
        refusals.append(f"LoRA rank {highest} is greater than max_lora_rank {max_rank}.")
    if config.get("bias", "none") != "none":
        refusals.append("Adapter bias is not supported.")
    if refusals:
        raise AdapterRefusedError(" ".join(refusals))


def _scaling(config: Mapping[str, Any]) -> float:
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _unsupported_features(config: Mapping[str, Any]) -> list[str]:
    refusals = []
    saved = [module for module in config.get("modules_to_save") or () if module not in ("classifier", "score")]
    if saved:
        refusals.append(
            "vLLM only supports modules_to_save being either None or "
            '["classifier", "score"] for classification models. '
            f"Unsupported modules_to_save: {saved}"
        )
    for setting, refusal in _UNSUPPORTED.items():
        value = config.get(setting)
        if setting == "init_lora_weights":
            if isinstance(value, str) and value.lower() not in _PLAIN_INITS:
                refusals.append(
                    f"vLLM does not support init_lora_weights={value!r}."
                    " Inits such as PiSSA, OLoRA, CorDA and LoftQ modify the base model"
                    " weights when PEFT loads the adapter. Convert it to a regular LoRA"
                    " adapter with PEFT's path_initial_model_for_weight_conversion, or"
                    " set init_lora_weights to true if the served base model already"
                    " contains the modified weights."
                )
        elif value:
            refusals.append(refusal)
    return refusals


def _check_weights(path: str, folder: Path, config: Mapping[str, Any]) -> None:
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        if (folder / "adapter_model.bin").is_file() or (folder / "adapter_model.pt").is_file():
            return
        raise AdapterRefusedError(f"{path} doesn't contain tensors")
    names = _tensor_names(weights)
    if not names:
        # A bare assertion fails here in vLLM, which leaves the worker nothing to say.
        raise AdapterRefusedError("")
    allowed = EXPECTED_MODULES.union(config.get("modules_to_save") or ())
    modules = {name: _module_of(name) for name in names if "base_layer" not in name}
    unexpected = [module for module in modules.values() if module.rsplit(".", 1)[-1] not in allowed]
    if unexpected:
        raise AdapterRefusedError(
            f"While loading {path}, expected target modules in {set(EXPECTED_MODULES)} but received {unexpected}."
            " Please verify that the loaded LoRA module is correct"
        )
    whole = {module for name, module in modules.items() if "lora_B" in name}
    if set(modules.values()) - whole and not math.isclose(_scaling(config), 1.0):
        raise AdapterRefusedError("unsupported operand type(s) for *=: 'NoneType' and 'float'")


def _module_of(name: str) -> str:
    stem = name.removeprefix("base_model.model.")
    match stem.split("."):
        case [*module, "lora_A" | "lora_B", "weight"]:
            return ".".join(module)
        case [*module, "lora_embedding_A" | "lora_embedding_B"]:
            return ".".join(module)
        case [*_, "score" | "classifier" as head, "weight" | "bias"]:
            return head
        case _:
            raise AdapterRefusedError(f"{name} is unsupported LoRA weight")


def _tensor_names(weights: Path) -> list[str]:
    def refused(why: str) -> AdapterRefusedError:
        return AdapterRefusedError(f"Error while deserializing header: {why}")

    size = weights.stat().st_size
    if size < _HEADER_LENGTH_BYTES:
        raise refused("header too small")
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
        if length > _HEADER_LIMIT:
            raise refused("header too large")
        if length > size - _HEADER_LENGTH_BYTES:
            raise refused("invalid header length")
        text = file.read(length)
    try:
        header = json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise refused(f"invalid UTF-8 in header: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise refused(f"invalid JSON in header: {error.msg} at line {error.lineno} column {error.colno}") from error
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    end = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor["data_offsets"]):
        start, stop = tensor["data_offsets"]
        if start != end or (stop - start) * 8 != math.prod(tensor["shape"]) * _BITS[tensor["dtype"]]:
            raise refused("invalid offset for tensor")
        end = stop
    if _HEADER_LENGTH_BYTES + length + end != size:
        raise refused("incomplete metadata, file not fully covered")
    return list(tensors)
