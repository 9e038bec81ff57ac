"""Reads an adapter folder as SGLang does (0.5.6 to 0.5.23), and refuses it with SGLang's words.

Two traps are guarded against. A fake that says "not found" where SGLang does not: a path that is no folder is taken for
a repository's id, and what the hub's client says of that id is the whole message. And a fake that lives on what a real
one dies of: SGLang looks at a header when it loads, and at the weights when they are asked for.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LENGTH_BYTES = 8
_HEADER_LIMIT = 100_000_000
_LAYERS = 2
_MODULES = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})


class RefusedError(Exception):
    """The folder is not an adapter that this server can load; `str()` of it is what SGLang says."""


def check_adapter(name: str, path: str, *, max_rank: int, version: str = "0.5.23") -> None:
    """Read the adapter at `path` and raise `RefusedError` where SGLang would refuse it; blocks on the disk."""
    folder = Path(path)
    if not folder.is_dir():
        if _REPOSITORY.fullmatch(path):
            raise RefusedError(
                "An error happened while trying to locate the files on the Hub and we cannot find the appropriate"
                " snapshot folder for the specified revision on the local disk."
            )
        raise RefusedError(
            "Repo id must be in the form 'repo_name' or 'namespace/repo_name':"
            f" '{path}'. Use `repo_type` argument if needed."
        )
    try:
        config = _config(folder)
        added = (
            json.loads((folder / "added_tokens.json").read_text()) if (folder / "added_tokens.json").exists() else {}
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(str(error)) from error
    if added:
        raise RefusedError(f"LoRA adapter has {len(added)} added tokens, but added tokens are not supported yet")
    # 0.5.10 takes one, and applies no magnitudes.
    if config.get("use_dora") and version != "0.5.10":
        raise RefusedError(f"Failed to load {name} because LoRA serving currently doesn't support DoRA adapters")
    if config["r"] > max_rank:
        raise RefusedError(
            f"LoRA adapter {name} with rank {config['r']} is incompatible with the current"
            " LoRA memory pool configuration. Please ensure that the LoRA adapter's rank is within the configured"
            " `--max-lora-rank` and that the target modules are included in `--lora-target-modules`."
        )
    for tensor in _header(folder):
        layer = re.search(r"\.layers\.(\d+)\.", tensor)
        if layer and int(layer[1]) >= _LAYERS:
            raise RefusedError(f"index {layer[1]} is out of range")


def dies_at_use(path: str) -> bool:
    """Whether the server dies of the first request for this adapter, which it has loaded; blocks on the disk.

    A module that the model has not, a rank that the weights contradict, or a lora_A without its lora_B: 0.5.21 died of
    each. A folder that is gone by then does no harm: the weights are in memory.
    """
    try:
        rank, header = _config(Path(path))["r"], _header(Path(path))
    except (OSError, ValueError, KeyError, TypeError, RefusedError):
        return False
    for name, tensor in header.items():
        module, _, part = name.removesuffix(".weight").rpartition(".")
        if part == "lora_A" and (tensor["shape"][0] != rank or f"{module}.lora_B.weight" not in header):
            return True
        if part in ("lora_A", "lora_B") and module.rpartition(".")[2] not in _MODULES:
            return True
    return False


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    for key in ("target_modules", "r", "lora_alpha"):
        config[key]
    return config


def _header(folder: Path) -> dict[str, Any]:
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise RefusedError(f"Cannot find any model weights with `{folder}`")
    data = weights.read_bytes()
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES:
        raise RefusedError("Error while deserializing header: header too small")
    if length > _HEADER_LIMIT:
        raise RefusedError("Error while deserializing header: header too large")
    if length > len(data) - _LENGTH_BYTES:
        raise RefusedError("Error while deserializing header: invalid header length")
    header: dict[str, Any] = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    header.pop("__metadata__", None)
    end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if _LENGTH_BYTES + length + end != len(data):
        raise RefusedError("Error while deserializing header: incomplete metadata, file not fully covered")
    return header
