"""Checkpoints to store, and files whose checksum holds whatever stands behind it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lora_sidecar.checkpoint.decode import Checkpoint, Format
from lora_sidecar.core.model import Adapter, Desired, Incarnation, Origin

PAYLOAD: dict[str, Any] = {
    "version": 2,
    "generation": 1,
    "server": "vllm",
    "incarnation": {"number": 1, "start_time": None},
    "adapters": [],
    "listed": [],
    "orphaned": [],
}
ADAPTER: dict[str, Any] = {
    "name": "a",
    "path": "/a",
    "origin": "adopted",
    "required": False,
    "priority": 0,
    "is_3d_lora_weight": False,
    "base": None,
}
"""The fields of the least checkpoint, and those of one adapter in it."""


def a_checkpoint(generation: int, server: str = "vllm") -> Checkpoint:
    """A checkpoint that differs from that of every other generation in its content too."""
    name = f"adapter-{generation}"
    adapters = {name: Adapter(name, f"/adapters/{generation}", Origin.ADOPTED, base="/models/base")}
    return Checkpoint(generation, server, Desired(adapters, Incarnation(1, 1753000000.25), frozenset({name})))


def sealed(payload: bytes, format_: Format) -> bytes:
    """The payload behind the two lines that a file of this format starts with."""
    sum_ = hashlib.sha256(payload).hexdigest().encode()
    headers: dict[Format, bytes] = {
        "json": b'{"format": "lora-sidecar/checkpoint",\n"sha256": "%b",\n',
        "yaml": b"format: lora-sidecar/checkpoint\nsha256: %b\n",
    }
    return headers[format_] % sum_ + payload


def sealed_tree(tree: dict[str, Any], format_: Format) -> bytes:
    """A file of these top-level fields."""
    texts: dict[Format, str] = {
        "json": json.dumps(tree)[1:],
        "yaml": "".join(f"{name}: {json.dumps(value)}\n" for name, value in tree.items()),
    }
    return sealed(texts[format_].encode(), format_)
