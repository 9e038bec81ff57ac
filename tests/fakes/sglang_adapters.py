"""Reads an adapter folder as SGLang does (0.5.6 to 0.5.23), and refuses it with SGLang's words.

The trap guarded against is a fake that says "not found" where SGLang does not: a path that is no folder is taken for a
repository's id, and what the hub's client says of that id is the whole message.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LENGTH_BYTES = 8


class RefusedError(Exception):
    """The folder is not an adapter that this server can load; `str()` of it is what SGLang says."""


def check_adapter(name: str, path: str, *, max_rank: int) -> None:
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
        config = json.loads((folder / "adapter_config.json").read_text())
        for key in ("target_modules", "r", "lora_alpha"):
            config[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(str(error)) from error
    if config.get("use_dora"):
        raise RefusedError(f"Failed to load {name} because LoRA serving currently doesn't support DoRA adapters")
    if config["r"] > max_rank:
        raise RefusedError(
            f"LoRA adapter {name} with rank {config['r']} is incompatible with the current"
            " LoRA memory pool configuration. Please ensure that the LoRA adapter's rank is within the configured"
            " `--max-lora-rank` and that the target modules are included in `--lora-target-modules`."
        )
    _check_weights(folder)


def _check_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise RefusedError(f"Cannot find any model weights with `{folder}`")
    data = weights.read_bytes()
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or length > len(data) - _LENGTH_BYTES:
        raise RefusedError("Error while deserializing header: invalid header length")
    header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    end = max((tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0)
    if _LENGTH_BYTES + length + end != len(data):
        raise RefusedError("Error while deserializing header: incomplete metadata, file not fully covered")
