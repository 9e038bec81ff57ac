"""Reads an adapter folder as vLLM does, and refuses it with vLLM's very words.

Two traps are guarded against. A fake that accepts what a real server refuses: the order of the checks and the text of
each refusal follow vLLM's own reading, down to the exceptions that Python itself raises for it, and what real ones
answered to 102 folders (`tests/contract/cases/`) holds it to that. And an oracle with the faults of what it judges:
nothing here comes from the sidecar.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"
SAFETENSORS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt")
EXPECTED_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"}
)

_REQUIRED = ("r", "lora_alpha", "target_modules")
_VOCABULARY = 260
_LENGTH_BYTES = 8
_HEADER_LIMIT = 100_000_000
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "C64": 64} | {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")

Shapes = Mapping[str, tuple[int, ...]]


class AdapterRefusedError(Exception):
    """The folder is not an adapter that this server can load; `str()` of it is what vLLM's worker would say."""


def sanitized(message: str) -> str:
    """`message` with paths hidden as vLLM hides them: by folder names that it knows, and by file extensions."""
    message = re.sub(r"/(?:home|usr|opt|var|tmp|root|lib|mnt|srv)(?:/[\w.\-]+)+", "<path>", message)
    return re.sub(r"(?:/[\w\-]+)+/[\w\-]+\.\w+", "<path>", message).strip()


def read_adapter(path: str, *, max_rank: int, version: str = "0.32.0") -> None:
    """Read the adapter at `path` as vLLM of that version would, 0.24 or 0.32; blocks on the disk.

    Raises `FileNotFoundError` where vLLM answers that no adapter was found, and `AdapterRefusedError` for the rest.
    """
    folder = Path(path).expanduser() if path.startswith("~") else Path(path)
    is_strict = tuple(map(int, re.findall(r"\d+", version)[:2])) >= (0, 32)
    try:
        config = _read_config(folder)
        if is_strict:
            _check_ranks(config)
        _scaling(config)
        _check_config(config, max_rank, is_strict=is_strict)
        _check_weights(path, folder, config, max_rank, is_strict=is_strict)
    except (FileNotFoundError, AdapterRefusedError):
        raise
    except (OSError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError, RecursionError) as error:
        raise AdapterRefusedError(str(error)) from error


def _read_config(folder: Path) -> dict[str, Any]:
    with (folder / CONFIG).open(encoding="utf-8") as file:
        config: dict[str, Any] = json.load(file)
    # vLLM stores a setting of its own here, which is what fails for a document that is not an object.
    config["vllm_max_position_embeddings"] = None
    if missing := set(_REQUIRED) - set(config):
        raise AdapterRefusedError(f"Missing required configuration fields: {missing}")
    return config


def _check_ranks(config: Mapping[str, Any]) -> None:
    if config["r"] <= 0:
        raise AdapterRefusedError(f"LoRA rank `r` must be a positive integer, got {config['r']}.")
    for key, rank in (config.get("rank_pattern") or {}).items():
        if not isinstance(rank, int) or rank <= 0:
            raise AdapterRefusedError(
                f"LoRA rank for `{key}` in `rank_pattern` must be a positive integer, got {rank}."
            )


def _scaling(config: Mapping[str, Any]) -> float:
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _check_config(config: Mapping[str, Any], max_rank: int, *, is_strict: bool) -> None:
    """Refuse what it lacks, all at once and in its order."""
    ranks = [config["r"], *((config.get("rank_pattern") or {}).values() if is_strict else ())]
    refused = {
        **(_unsupported_saves(config) if is_strict else {_NO_SAVES: config.get("modules_to_save")}),
        "vLLM does not yet support DoRA.": config.get("use_dora"),
        **(_unsupported_since_0_32(config) if is_strict else {}),
        f"LoRA rank {max(ranks)} is greater than max_lora_rank {max_rank}.": max(ranks) > max_rank,
        "Adapter bias is not supported.": config.get("bias", "none") != "none",
    }
    if any(refused.values()):
        raise AdapterRefusedError(" ".join(text for text, holds in refused.items() if holds))


_NO_SAVES = "vLLM only supports modules_to_save being None."


def _unsupported_saves(config: Mapping[str, Any]) -> dict[str, object]:
    saved = [module for module in config.get("modules_to_save") or () if module not in ("classifier", "score")]
    text = (
        'vLLM only supports modules_to_save being either None or ["classifier", "score"] for classification models.'
        f" Unsupported modules_to_save: {saved}"
    )
    return {text: saved}


def _unsupported_since_0_32(config: Mapping[str, Any]) -> dict[str, object]:
    init = config.get("init_lora_weights")
    strange = (
        f"vLLM does not support init_lora_weights={init!r}. Inits such as PiSSA, OLoRA, CorDA and LoftQ modify the"
        " base model weights when PEFT loads the adapter. Convert it to a regular LoRA adapter with PEFT's"
        " path_initial_model_for_weight_conversion, or set init_lora_weights to true if the served base model already"
        " contains the modified weights."
    )
    return {
        "vLLM does not support LoRA bias (lora_bias).": config.get("lora_bias"),
        strange: isinstance(init, str) and init.lower() not in _PLAIN_INITS,
        "vLLM does not support Activated LoRA (aLoRA).": config.get("alora_invocation_tokens"),
        "vLLM does not support layer_replication.": config.get("layer_replication"),
        "vLLM does not support block-diagonal LoRA (BD-LoRA).": config.get("use_bdlora"),
        "vLLM does not support QALoRA.": config.get("use_qalora"),
    }


def _check_weights(path: str, folder: Path, config: Mapping[str, Any], max_rank: int, *, is_strict: bool) -> None:
    weights = folder / SAFETENSORS
    if not weights.is_file():
        pickle = next((folder / name for name in PICKLES if (folder / name).is_file()), None)
        if pickle is None:
            raise AdapterRefusedError(f"{path} doesn't contain tensors")
        return _check_pickle(pickle.read_bytes()[:2])
    shapes = _shapes(weights)
    if not shapes:
        # A bare assertion fails here in vLLM, which leaves the worker nothing to say.
        raise AdapterRefusedError("")
    modules = {name: _module_of(name, is_strict=is_strict) for name in shapes if not _is_base_embedding(name)}
    allowed = EXPECTED_MODULES.union(config.get("modules_to_save") or ())
    unexpected = [module for module in modules.values() if module.rsplit(".", 1)[-1] not in allowed]
    if unexpected:
        raise AdapterRefusedError(
            f"While loading {path}, expected target modules in {set(EXPECTED_MODULES)} but received {unexpected}."
            " Please verify that the loaded LoRA module is correct"
        )
    whole = {module for name, module in modules.items() if "lora_B" in name or "lora_embedding_B" in name}
    if heads := {"score", "classifier"} & set(modules.values()):
        raise AdapterRefusedError(
            f"Cannot load full module {heads.pop()!r}: the model does not expose a unique ClassificationHeadWithLoRA."
        )
    if set(modules.values()) - whole and not math.isclose(_scaling(config), 1.0):
        raise AdapterRefusedError("unsupported operand type(s) for *=: 'NoneType' and 'float'")
    for name in modules:
        _check_shape(name, shapes[name], max_rank)
    return None


def _check_pickle(begin: bytes) -> None:
    if not begin:
        raise AdapterRefusedError("")
    if begin not in (b"PK", b"\x80\x02"):
        raise AdapterRefusedError("Weights only load failed. In PyTorch 2.6, we changed the default value")


def _check_shape(name: str, shape: tuple[int, ...], max_rank: int) -> None:
    """What fails where the weights are copied into buffers; those of another model's layers are left where they are."""
    first, second = shape[0], shape[1]
    if len(shape) > 2:
        raise AdapterRefusedError(
            f"The size of tensor a ({first}) must match the size of tensor b ({second}) at non-singleton dimension 1"
        )
    if name.endswith("lora_embedding_A") and second != _VOCABULARY:
        vocabulary = f"the base model's vocabulary size({_VOCABULARY})"
        raise AdapterRefusedError(f"The embedding LoRA size({second}) must be consistent with {vocabulary}.")
    if "_A" in name and first > max_rank:
        raise AdapterRefusedError(
            f"The size of tensor a ({max_rank}) must match the size of tensor b ({first}) at non-singleton dimension 0"
        )


def _is_base_embedding(name: str) -> bool:
    return name.endswith((".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight"))


def _module_of(name: str, *, is_strict: bool) -> str:
    bare = name.removeprefix("base_model.model.")
    match bare.split("."):
        case [*module, "lora_A" | "lora_B", "weight"]:
            return ".".join(module)
        case [*module, "lora_embedding_A" | "lora_embedding_B"]:
            return ".".join(module)
        case [*_, "score" | "classifier" as head, "weight" | "bias"]:
            return head
        case _:
            raise AdapterRefusedError(f"{name if is_strict else bare} is unsupported LoRA weight")


def _shapes(weights: Path) -> Shapes:
    """The shapes of the tensors, as the safetensors library reads them (0.8.0)."""
    size = weights.stat().st_size
    if size < _LENGTH_BYTES:
        raise _header_error("header too small")
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > _HEADER_LIMIT:
            raise _header_error("header too large")
        if length > size - _LENGTH_BYTES:
            raise _header_error("invalid header length")
        text = file.read(length)
    try:
        header: dict[str, Any] = json.loads(text.decode())
        metadata = header.pop("__metadata__", None) or {}
        odd = next((value for value in metadata.values() if not isinstance(value, str)), None)
        if odd is not None:
            raise _header_error(f"invalid JSON in header: invalid type: integer `{odd}`, expected a string at line 1")
        end = 0
        for tensor in sorted(header.values(), key=lambda one: one["data_offsets"]):
            start, stop = tensor["data_offsets"]
            if start != end or (stop - start) * 8 != math.prod(tensor["shape"]) * _BITS[tensor["dtype"]]:
                raise _header_error("invalid offset for tensor")
            end = stop
        shapes = {name: tuple(map(int, tensor["shape"])) for name, tensor in header.items()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise _header_error(f"invalid JSON in header: {error}") from error
    if _LENGTH_BYTES + length + end != size:
        raise _header_error("incomplete metadata, file not fully covered")
    return shapes


def _header_error(why: str) -> AdapterRefusedError:
    return AdapterRefusedError(f"Error while deserializing header: {why}")
