"""What a file of weights holds and what a base model takes, told from a header and a config.json. Pure.

Two traps are guarded against. A header that is believed: it is written by strangers, may claim any size, and is often
that of a copy that is still under way. And a header whose few bytes are much work: numbers of thousands of digits,
millions of empty objects, a shape without end. So each length is held against the file's own, only what is asked for is
ever built, and what is not understood is not judged: the formats grow, and the engine has the last word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from lora_sidecar.core.text import printable

HEADER_LENGTH_BYTES: Final = 8

HEADER_BYTES: Final = 2 * 1024 * 1024
"""The longest header that is read: 12,000 tensors. The worst one of that size takes 0.3 s and 30 MB."""

_HEADER_LIMIT: Final = 100_000_000
"""The longest header that the safetensors library takes (0.8.0)."""

_GIT_LFS: Final = b"version https://git-lfs.github.com/spec/"

_Whole = Annotated[int, Meta(ge=0, le=2**62)]


class Tensor(Struct, frozen=True, gc=False):
    """An entry of a header; None where it says nothing."""

    shape: tuple[_Whole, ...] | None = None
    data_offsets: tuple[_Whole, _Whole] | None = None


class Damage(Struct, frozen=True):
    """Why no engine can read a file of weights; `is_short` where it is shorter than its header says."""

    why: str
    is_short: bool = False


Shapes = Mapping[str, tuple[int, ...]]


class _Metadata(Struct):
    metadata: dict[str, str] | None = msgspec.field(name="__metadata__", default=None)


_METADATA = msgspec.json.Decoder(_Metadata)
_TENSORS = msgspec.json.Decoder(dict[str, Tensor | None])
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def is_git_lfs_pointer(head: bytes) -> bool:
    """Whether a file is what git leaves in the place of one that it keeps elsewhere."""
    return head.startswith(_GIT_LFS)


def shapes_of(head: bytes, size: int) -> Shapes | Damage | None:
    """The shape of each tensor in a safetensors file of `size` bytes, or why none can be read; None: not judged.

    `head` are the file's first bytes, up to the end of the header unless that is longer than `HEADER_BYTES`.
    """
    if size < HEADER_LENGTH_BYTES:
        return Damage(f"has {size} bytes, and its header alone needs more", is_short=True)
    length = int.from_bytes(head[:HEADER_LENGTH_BYTES], "little")
    if length > _HEADER_LIMIT:
        return Damage("is no safetensors file: its first bytes are not the length of a header")
    begin = HEADER_LENGTH_BYTES + length
    if begin > size:
        return Damage(f"has {size} bytes, and its header alone ends at byte {begin}", is_short=True)
    header = head[HEADER_LENGTH_BYTES:begin]
    return _shapes(header, begin, size) if len(header) == length <= HEADER_BYTES else None


def _shapes(header: bytes, begin: int, size: int) -> Shapes | Damage | None:
    try:
        header.decode()
        metadata = _METADATA.decode(header).metadata or {}
    except msgspec.ValidationError:
        if header.lstrip(b" \t\r\n").startswith(b"{"):
            return Damage("has something else than text in the __metadata__ of its header")
        return Damage("has a header that is no JSON object")
    except _UNREADABLE as error:
        return Damage(f"has a header that is not JSON: {printable(str(error))}")
    if not metadata.keys().isdisjoint(Tensor.__struct_fields__):
        # The metadata would be read as a tensor.
        return None
    try:
        tensors = _TENSORS.decode(header)
    except _UNREADABLE:
        return None
    tensors.pop("__metadata__", None)
    shapes, end = {}, begin
    for name, one in tensors.items():
        if one is None or one.shape is None or one.data_offsets is None:
            return None
        shapes[name] = one.shape
        end = max(end, begin + one.data_offsets[1])
    if end != size:
        told = f"has {size} bytes, and its header speaks of {end}"
        return Damage(told, is_short=True) if end > size else Damage(f"{told} alone")
    return shapes


class BaseShape(Struct, frozen=True):
    """What a base model's config.json says of its layers: how many, and inputs and outputs of each linear module."""

    layers: int
    modules: Mapping[str, tuple[int, int]]


_PLAIN_MODELS = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types whose linear modules have the shapes that the common settings say, and that have no other modules."""

_NOT_LINEAR = frozenset({"embed_tokens", "lm_head", "score", "classifier", "base_layer"})
"""What else a tensor may be for: modules that any of them may have, and PEFT's word for what it wrapped."""

_PLAIN_MODULES = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
"""Modules whose lora_A has as many rows as the adapter's rank; of one that holds several at once, nothing is known."""


def base_shape(text: bytes) -> BaseShape | None:
    """The shapes that a base model's config.json spells; None for what is not understood, which is then not judged."""
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
    except (ArithmeticError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def module_of(name: str) -> str | None:
    """The module that a tensor belongs to, None where its name is none that vLLM 0.24 or 0.32 reads or skips."""
    match name.removeprefix("base_model.model.").split("."):
        case [*module, "lora_A" | "lora_B", "weight" | "bias"]:
            return ".".join(module)
        case [*module, "lora_embedding_A" | "lora_embedding_B"]:
            return ".".join(module)
        case [*_, "score" | "classifier" as head, "weight" | "bias"]:
            return head
        case [*_, "embed_tokens" | "lm_head" as module, "base_layer", "weight"]:
            return module
        case _:
            return None


def unknown_name(shapes: Shapes) -> str:
    """The first tensor whose name vLLM does not know; empty if it knows all."""
    return next((name for name in shapes if module_of(name) is None), "")


def empty_tensor(shapes: Shapes) -> str:
    """The first tensor of a LoRA that has no values; empty if all have."""
    return next((name for name, shape in shapes.items() if 0 in shape and ".lora_" in name), "")


def misfit(shapes: Shapes, base: BaseShape) -> str:
    """The first tensor that the base model's module or layers have no place for, as a sentence; empty if all fit."""
    for name, shape in shapes.items():
        module = _linear(name)
        if module is None or len(shape) != 2:  # noqa: PLR2004 - a matrix
            continue
        inputs, outputs = base.modules.get(module, (0, 0))
        have, want, side = (shape[1], inputs, "inputs") if _is_a(name) else (shape[0], outputs, "outputs")
        if want and have != want:
            return f"{printable(name)} has {have} {side}, and the base model's module has {want}"
        layer = re.search(r"\.layers\.([0-9]{1,6})\.", name)
        if layer and int(layer[1]) >= base.layers:
            return f"{printable(name)} is for layer {layer[1]}, and the base model has {base.layers} layers"
    return ""


def unknown_module(shapes: Shapes, base: BaseShape) -> str:
    """The first tensor of a module that the base model has not, as a sentence; empty if it has all."""
    known = base.modules.keys() | _NOT_LINEAR
    for name in shapes:
        module = _linear(name)
        if module is not None and module not in known:
            return f"{printable(name)} is for a module that the base model has not"
    return ""


def other_rank(shapes: Shapes, rank: float) -> str:
    """The first tensor of another rank than the config says, as a sentence; empty if there is none.

    Only where a row is a rank: experts that are kept in one tensor have as many rows more.
    """
    for name, shape in shapes.items():
        is_plain = _is_a(name) and _linear(name) in _PLAIN_MODULES and ".experts." not in name
        if is_plain and len(shape) == 2 and shape[0] != rank:  # noqa: PLR2004 - a matrix
            return f"{printable(name)} has rank {shape[0]}, and the config says {rank:g}"
    return ""


def half_a_pair(shapes: Shapes) -> str:
    """The first lora_A without its lora_B, as a sentence; empty if there is none."""
    for name in shapes:
        if _is_a(name) and name.removesuffix(_A) + _B not in shapes:
            return f"{printable(name)} has no lora_B beside it"
    return ""


_A, _B = ".lora_A.weight", ".lora_B.weight"


def _is_a(name: str) -> bool:
    return name.endswith(_A)


def _linear(name: str) -> str | None:
    """The last part of the name of the module that a matrix of a LoRA is for, None if it is for none."""
    return name.removesuffix(_A).removesuffix(_B).rpartition(".")[2] if name.endswith((_A, _B)) else None
