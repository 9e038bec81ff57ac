"""Whether two paths, or an adapter and what is listed, are the same, as far as their text tells.

The trap guarded against is drift that is none: a server may list a path in another spelling than it was sent.
"""

from __future__ import annotations

from collections.abc import Iterable

from lora_sidecar.core.model import Adapter
from lora_sidecar.core.observation import BaseModel


def same_path(one: str, other: str) -> bool:
    """Whether two paths name the same folder as far as their text tells; vLLM keeps a trailing slash as it was sent."""
    return one == other or one.rstrip("/") == other.rstrip("/")


def is_listed_path(adapter: Adapter, path: str) -> bool:
    """Whether an adapter that is listed with `path` is the one that is desired."""
    return same_path(adapter.path, path) or (adapter.listed_as is not None and same_path(adapter.listed_as, path))


def belongs_to(adapter: Adapter, bases: Iterable[BaseModel]) -> bool:
    """Whether an adapter belongs to one of the served base models, as far as it is known to which it belongs."""
    return adapter.base is None or any(adapter.base in (base.root, base.id) for base in bases)
