"""What a file of weights holds and what a base model takes, told from a header and a config.json. Pure.

The trap guarded against is a header that is believed: it is written by strangers, may claim any size, and is often that
of a copy that is still under way. So each length is held against the file's own, and what does not fit is said in the
words of the safetensors library that the engine would use (0.8.0, beside vLLM 0.32.0).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from msgspec import Struct

HEADER_LENGTH_BYTES = 8

_HEADER_LIMIT = 100_000_000
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16} | {
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64
}  # fmt: skip


Tensors = Mapping[str, tuple[int, ...]]


class BaseShape(Struct, frozen=True):
    """What a base model's config.json says of its layers: how many, and inputs and outputs of each linear module."""

    layers: int
    modules: Mapping[str, tuple[int, int]]


def tensors_of(head: bytes, size: int) -> Tensors | str:
    """The shape of each tensor in a safetensors file of `size` bytes, or what the library says that is wrong with it.

    `head` are the file's first bytes up to the end of the header at least, or all of a shorter file.
    """
    if size < HEADER_LENGTH_BYTES:
        return "header too small"
    length = int.from_bytes(head[:HEADER_LENGTH_BYTES], "little")
    if length > _HEADER_LIMIT:
        return "header too large"
    if length > size - HEADER_LENGTH_BYTES:
        return "invalid header length"
    try:
        header = json.loads(head[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length].decode())
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        shapes = {name: tuple(map(int, tensor["shape"])) for name, tensor in tensors.items()}
        end = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = tensor["data_offsets"]
            if start != end or (stop - start) * 8 != math.prod(shapes[name]) * _BITS[tensor["dtype"]]:
                return "invalid offset for tensor"
            end = stop
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 in header: {error.reason}"
    except json.JSONDecodeError as error:
        return f"invalid JSON in header: {error.msg} at line {error.lineno} column {error.colno}"
    except (ArithmeticError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"invalid header: {error}"
    if HEADER_LENGTH_BYTES + length + end != size:
        return "incomplete metadata, file not fully covered"
    return shapes


def module_of(name: str) -> str | None:
    """The module that a tensor belongs to as vLLM 0.32 reads names, None where it refuses the name."""
    match name.removeprefix("base_model.model.").split("."):
        case [*module, "lora_A" | "lora_B", "weight"]:
            return ".".join(module)
        case [*module, "lora_embedding_A" | "lora_embedding_B"]:
            return ".".join(module)
        case [*_, "score" | "classifier" as head, "weight" | "bias"]:
            return head
        case _:
            return None


def misfit(tensors: Tensors, base: BaseShape) -> str:
    """The first tensor that the base model has no place for, as a sentence; empty if all fit."""
    for name, shape in tensors.items():
        module = module_of(name)
        if module is None or len(shape) != 2:  # noqa: PLR2004 - a matrix
            continue
        inputs, outputs = base.modules.get(module.rpartition(".")[2], (0, 0))
        have, want, side = (shape[1], inputs, "inputs") if "lora_A" in name else (shape[0], outputs, "outputs")
        if want and have != want:
            return f"{name} has {have} {side}, and the base model's module has {want}"
        layer = re.search(r"\.layers\.([0-9]{1,6})\.", name)
        if layer and int(layer[1]) >= base.layers:
            return f"{name} is for layer {layer[1]}, and the base model has {base.layers} layers"
    return ""


_PLAIN_MODELS = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types whose linear modules have the shapes that the common settings say, and no others."""


def base_shape(text: bytes) -> BaseShape | None:
    """The shapes that a base model's config.json spells; None for what is not understood, which is then not checked."""
    try:
        config = json.loads(text)
        if config["model_type"] not in _PLAIN_MODELS:
            return None
        hidden, inner, heads = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
        head = int(config.get("head_dim") or hidden // heads)
        queries, keys = heads * head, int(config.get("num_key_value_heads") or heads) * head
        modules = {
            "q_proj": (hidden, queries),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }
        return BaseShape(int(config["num_hidden_layers"]), modules)
    except (ArithmeticError, ValueError, TypeError, KeyError, RecursionError):
        return None
