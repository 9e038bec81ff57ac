"""Reads an adapter folder as vLLM does, and refuses it with vLLM's very words.

The trap guarded against is a fake that accepts what a real server refuses: the order of the checks and the text of
each refusal follow vLLM's own reading, down to the exceptions that Python itself raises for it. The rules are those of
the product (`adapter_check`), so the contract with a real server holds those, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_sidecar.files.peft import CONFIG, PICKLES, SAFETENSORS, bad_rank, missing_fields, rank_refused, unsupported
from lora_sidecar.files.safetensors import HEADER_LENGTH_BYTES, module_of, tensors_of
from tests.fakes.dialect import Dialect

EXPECTED_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"}
)


class AdapterRefusedError(Exception):
    """The folder is not an adapter that this server can load; `str()` of it is what vLLM's worker would say."""


def read_adapter(path: str, *, max_rank: int, dialect: Dialect) -> None:
    """Read the adapter at `path` as vLLM would; blocks on the disk.

    Raises `FileNotFoundError` where vLLM answers that no adapter was found, and `AdapterRefusedError` for the rest.
    """
    folder = Path(path).expanduser() if path.startswith("~") else Path(path)
    try:
        config = _read_config(folder)
        _check_config(config, max_rank, dialect)
        _check_weights(path, folder, config, dialect)
    except (FileNotFoundError, AdapterRefusedError):
        raise
    except (OSError, ValueError, TypeError, AttributeError, KeyError, ArithmeticError, RecursionError) as error:
        raise AdapterRefusedError(str(error)) from error


def _read_config(folder: Path) -> dict[str, Any]:
    with (folder / CONFIG).open(encoding="utf-8") as file:
        config: dict[str, Any] = json.load(file)
    # vLLM stores a setting of its own here, which is what fails for a document that is not an object.
    config["vllm_max_position_embeddings"] = None
    if missing := missing_fields(config):
        raise AdapterRefusedError(missing)
    return config


def _check_config(config: Mapping[str, Any], max_rank: int, dialect: Dialect) -> None:
    if dialect.checks_rank and (bad := bad_rank(config)):
        raise AdapterRefusedError(bad)
    _scaling(config)
    refusals = [text for text, _ in unsupported(config)]
    highest = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if highest > max_rank:
        refusals.append(rank_refused(highest, max_rank))
    if config.get("bias", "none") != "none":
        refusals.append(dialect.bias_refused)
    if refusals:
        raise AdapterRefusedError(" ".join(refusals))


def _scaling(config: Mapping[str, Any]) -> float:
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _check_weights(path: str, folder: Path, config: Mapping[str, Any], dialect: Dialect) -> None:
    weights = folder / SAFETENSORS
    if not weights.is_file():
        if any((folder / name).is_file() for name in PICKLES):
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
        expected = dialect.members(EXPECTED_MODULES)
        raise AdapterRefusedError(
            f"While loading {path}, expected target modules in {expected} but received {unexpected}."
            " Please verify that the loaded LoRA module is correct"
        )
    whole = {module for name, module in modules.items() if "lora_B" in name}
    if set(modules.values()) - whole and not math.isclose(_scaling(config), 1.0):
        raise AdapterRefusedError("unsupported operand type(s) for *=: 'NoneType' and 'float'")


def _module_of(name: str) -> str:
    module = module_of(name)
    if module is None:
        raise AdapterRefusedError(f"{name} is unsupported LoRA weight")
    return module


def _tensor_names(weights: Path) -> list[str]:
    size = weights.stat().st_size
    with weights.open("rb") as file:
        head = file.read(HEADER_LENGTH_BYTES)
        head += file.read(min(int.from_bytes(head, "little"), size))
    tensors = tensors_of(head, size)
    if isinstance(tensors, str):
        raise AdapterRefusedError(f"Error while deserializing header: {tensors}")
    return list(tensors)
