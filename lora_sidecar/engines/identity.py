"""Which engine an answer comes from. Pure: answers in, a value out.

The trap guarded against is a guess. vLLM and SGLang list their models on one route and load adapters on different ones,
and a load sent to the wrong route of the right server, or to the wrong server, is not made good by its error. So only
an engine's own mark counts, and without one the engine is unknown.

Read in the source: `owned_by` is "vllm" in vLLM 0.6 to 0.33, "vllm-frontend-rs" in its Rust frontend (0.33), "sglang"
in SGLang 0.5.6 to 0.5.23. Only vLLM has `/version`, only SGLang `/model_info`.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import Struct

from lora_sidecar.engines.listing import Listing
from lora_sidecar.engines.text import UNREADABLE


class Kind(StrEnum):
    """An engine that there is a client for."""

    VLLM = "vllm"
    SGLANG = "sglang"


class Identity(Struct, frozen=True):
    """What serves there, and the server's own word that says so."""

    kind: Kind
    evidence: str


_OWNERS = {"vllm": Kind.VLLM, "vllm-frontend-rs": Kind.VLLM, "sglang": Kind.SGLANG}


class _Version(Struct):
    version: str


class _ModelInfo(Struct):
    model_path: str
    is_generation: bool


_VERSION = msgspec.json.Decoder(_Version)
_MODEL_INFO = msgspec.json.Decoder(_ModelInfo)


def by_owner(listing: Listing) -> Identity | None:
    """The engine that the base models of a listing name as their owner; None unless all name one that is known."""
    if len(listing.owners) != 1:
        return None
    (owner,) = listing.owners
    return Identity(_OWNERS[owner], f"/v1/models is owned by {owner}") if owner in _OWNERS else None


def by_version(body: bytes) -> Identity | None:
    """The engine that answered `/version` so; None if it may be any."""
    try:
        version = _VERSION.decode(body).version
    except UNREADABLE:
        return None
    return Identity(Kind.VLLM, f"/version answers {version[:64]}") if version.isprintable() else None


def by_model_info(body: bytes) -> Identity | None:
    """The engine that answered `/model_info` so; None if it may be any."""
    try:
        _MODEL_INFO.decode(body)
    except UNREADABLE:
        return None
    return Identity(Kind.SGLANG, "/model_info answers as SGLang's does")
