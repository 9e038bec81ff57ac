"""What an engine would say of an adapter folder, from its config and the header of its weights. Pure.

Two traps are guarded against. A load that must fail costs every request of the engine a pause, and a half-copied folder
may fail in ways that leave junk behind; so what can be known without torch is known first. And a rule that one version
of vLLM has is no reason to withhold an adapter from another; so a finding says whether every version from 0.7 to 0.33
would refuse (`certain`), and only such a one keeps an adapter from being sent.

The texts are vLLM's own as of 0.32, without its frames; the rules of the other versions were read in their source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.files.safetensors import HEADER_LENGTH_BYTES, BaseShape, Tensors, misfit, module_of, tensors_of

CONFIG = "adapter_config.json"
SAFETENSORS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt")

_REQUIRED = ("r", "lora_alpha", "target_modules")
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
_SINCE_0_32 = {
    "lora_bias": "vLLM does not support LoRA bias (lora_bias).",
    "init_lora_weights": "",
    "alora_invocation_tokens": "vLLM does not support Activated LoRA (aLoRA).",
    "layer_replication": "vLLM does not support layer_replication.",
    "use_bdlora": "vLLM does not support block-diagonal LoRA (BD-LoRA).",
    "use_qalora": "vLLM does not support QALoRA.",
}


class Finding(Struct, frozen=True):
    """One thing that is wrong with an adapter, in the engine's words where it has any, and what to do about it.

    `certain` is whether every supported version refuses it, or our own config does.
    """

    kind: FailureKind
    message: str
    hint: str
    certain: bool = True


class Weights(Struct, frozen=True):
    """A file of weights: its name, its size, and its first bytes up to the end of the header (empty: not read)."""

    name: str
    size: int
    head: bytes = b""


class Folder(Struct, frozen=True):
    """What was read of an adapter folder.

    `path` is what the server is given, `real` the folder it leads to. `config` is None where there is none.
    """

    path: str
    real: str
    config: bytes | None
    weights: Weights | None


class Limits(Struct, frozen=True):
    """What an adapter is held against; None and () are no limit. `roots` are real paths.

    Of a server that is not vLLM (`vllm`), what it lacks of an adapter's features is only a doubt.
    """

    max_rank: int | None = None
    allow_pickle: bool = True
    roots: tuple[str, ...] = ()
    base: BaseShape | None = None
    vllm: bool = True


def check(folder: Folder, limits: Limits) -> tuple[Finding, ...]:
    """Everything that is wrong with an adapter folder, what is surest first."""
    found = [*_place(folder, limits)]
    if folder.config is None:
        hint = "copy the whole adapter there, adapter_config.json included"
        found.append(Finding(FailureKind.FILES, f"No adapter found for {folder.path}", hint))
        return tuple(found)
    config = _config(folder.config)
    if isinstance(config, Finding):
        return (*found, config)
    found += (one if limits.vllm else replace(one, certain=False) for one in _settings(config, limits.max_rank))
    found += _weights(folder, config, limits)
    return tuple(sorted(found, key=lambda one: not one.certain))


def _place(folder: Folder, limits: Limits) -> Iterator[Finding]:
    if limits.roots and not any(_under(folder.real, root) for root in limits.roots):
        message = f"its folder is {folder.real}, which is under none of preflight.roots"
        yield Finding(FailureKind.ADAPTER, message, "move it there, or add its root")


def _under(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _config(text: bytes) -> Mapping[str, Any] | Finding:
    hint = f"{CONFIG} is damaged or half copied: copy it again"
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Finding(FailureKind.FILES, str(error), hint)
    if not isinstance(config, dict):
        return Finding(FailureKind.ADAPTER, f"{CONFIG} is no JSON object", hint)
    missing = missing_fields(config)
    if missing:
        return Finding(FailureKind.ADAPTER, missing, "export the adapter again with PEFT")
    return config


def missing_fields(config: Mapping[str, Any]) -> str:
    """What vLLM says of settings that it needs and the config lacks; empty if none."""
    missing = set(_REQUIRED) - set(config)
    return f"Missing required configuration fields: {missing}" if missing else ""


def bad_rank(config: Mapping[str, Any]) -> str:
    """What vLLM 0.32 says of ranks that are none; empty if all are. Raises `TypeError` where `r` cannot be compared."""
    if config["r"] <= 0:
        return f"LoRA rank `r` must be a positive integer, got {config['r']}."
    for key, special in (config.get("rank_pattern") or {}).items():
        if not isinstance(special, int) or special <= 0:
            return f"LoRA rank for `{key}` in `rank_pattern` must be a positive integer, got {special}."
    return ""


def unsupported(config: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """What vLLM 0.32 says of features that it lacks, in its order, and whether every version refuses them."""
    found: list[tuple[str, bool]] = []
    saved = [module for module in config.get("modules_to_save") or () if module not in ("classifier", "score")]
    if saved:
        text = (
            "vLLM only supports modules_to_save being either None or "
            '["classifier", "score"] for classification models. '
            f"Unsupported modules_to_save: {saved}"
        )
        found.append((text, True))
    if config.get("use_dora"):
        found.append(("vLLM does not yet support DoRA.", True))
    for setting, refusal in _SINCE_0_32.items():
        value = config.get(setting)
        if setting == "init_lora_weights":
            if isinstance(value, str) and value.lower() not in _PLAIN_INITS:
                found.append((_init_refused(value), False))
        elif value:
            found.append((refusal, False))
    return found


def _init_refused(value: str) -> str:
    return (
        f"vLLM does not support init_lora_weights={value!r}."
        " Inits such as PiSSA, OLoRA, CorDA and LoftQ modify the base model"
        " weights when PEFT loads the adapter. Convert it to a regular LoRA"
        " adapter with PEFT's path_initial_model_for_weight_conversion, or"
        " set init_lora_weights to true if the served base model already"
        " contains the modified weights."
    )


def rank_refused(rank: int, max_rank: int) -> str:
    """What vLLM says of a rank that its buffers do not hold."""
    return f"LoRA rank {rank} is greater than max_lora_rank {max_rank}."


_RANK_REFUSED = re.compile(r"LoRA rank [0-9]+ is greater than max_lora_rank ([0-9]{1,6})")


def rank_limit_in(message: str) -> int | None:
    """The server's rank limit, if its refusal of a load tells it."""
    found = _RANK_REFUSED.search(message)
    return int(found[1]) if found else None


def _settings(config: Mapping[str, Any], max_rank: int | None) -> Iterator[Finding]:
    adapter, again = FailureKind.ADAPTER, "train or convert it without that feature"
    rank = config["r"]
    if isinstance(rank, bool) or not isinstance(rank, int):
        yield Finding(adapter, f"LoRA rank `r` is {rank!r}, which is no whole number", "mend adapter_config.json")
        return
    pattern = config.get("rank_pattern")
    if not isinstance(pattern, dict | None):
        yield Finding(adapter, "`rank_pattern` is no mapping", "mend adapter_config.json", certain=False)
        pattern = None
    bad = bad_rank({"r": rank, "rank_pattern": pattern})
    if bad:
        yield Finding(adapter, bad, "mend adapter_config.json", certain=rank == 0)
    else:
        highest = max([rank, *(pattern or {}).values()])
        if max_rank is not None and highest > max_rank:
            hint = f"start vLLM with --max-lora-rank {_next_rank(highest)}"
            yield Finding(adapter, rank_refused(highest, max_rank), hint, certain=rank > max_rank)
    try:
        features = unsupported(config)
    except TypeError:
        features = [("`modules_to_save` is no list", False)]
    for text, certain in features:
        yield Finding(adapter, text, again, certain)
    if config.get("bias", "none") != "none":
        # vLLM up to 0.11.0 had a flag for it.
        yield Finding(adapter, "Adapter bias is not supported.", again, certain=False)


def _next_rank(rank: int) -> int:
    return next((one for one in (8, 16, 32, 64, 128, 256, 320, 512) if one >= rank), rank)


def _weights(folder: Folder, config: Mapping[str, Any], limits: Limits) -> Iterator[Finding]:
    weights = folder.weights
    copy = "copy the whole adapter there: its weights are missing or half copied"
    if weights is None:
        yield Finding(FailureKind.FILES, f"{folder.path} doesn't contain tensors", copy)
        return
    if weights.name in PICKLES:
        if not limits.allow_pickle:
            message = f"its weights are a pickle, {weights.name}, and preflight.allow_pickle is false"
            yield Finding(FailureKind.ADAPTER, message, "convert them to safetensors, or allow it")
        return
    if not weights.head and weights.size >= HEADER_LENGTH_BYTES:
        return
    tensors = tensors_of(weights.head, weights.size)
    if isinstance(tensors, str):
        yield Finding(FailureKind.FILES, f"Error while deserializing header: {tensors}", copy)
        return
    if not tensors:
        yield Finding(FailureKind.ADAPTER, f"{SAFETENSORS} holds no tensor", "export the adapter again")
    for name in tensors:
        if module_of(name) is None and not _once_accepted(name):
            message = f"{name} is unsupported LoRA weight"
            yield Finding(FailureKind.ADAPTER, message, "only plain LoRA tensors can be served: export it again")
            break
    yield from _shapes(tensors, config, limits)


def _once_accepted(name: str) -> bool:
    """Whether some version reads or skips a name that 0.32 refuses: biases to 0.11.0, base layers since 0.11.1."""
    return "base_layer" in name or name.endswith(".bias")


def _shapes(tensors: Tensors, config: Mapping[str, Any], limits: Limits) -> Iterator[Finding]:
    """What vLLM takes without a word and then answers wrongly from, or fails on half-way: the first of each kind."""
    rank, special = config["r"], bool(config.get("rank_pattern"))
    export, kind = "export the adapter again", FailureKind.ADAPTER
    for name, shape in tensors.items():
        # The rank is the first dimension of a lora_A and the second of a lora_B.
        if name.endswith(".lora_A.weight") and shape and shape[0] != rank and not special:
            message = f"{name} has rank {shape[0]}, and {CONFIG} says {rank}"
            yield Finding(kind, message, export, certain=limits.max_rank is not None and shape[0] > limits.max_rank)
            break
    if limits.base is not None and (message := misfit(tensors, limits.base)):
        yield Finding(kind, message, "is it an adapter of this base model?")
