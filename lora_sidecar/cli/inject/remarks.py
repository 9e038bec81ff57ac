"""What is to be said to the person who runs inject: why something is not done, or what to look at.

The trap guarded against is a refusal without a place: each carries the path of what it speaks of, from which the line
is found.
"""

from __future__ import annotations

from msgspec import Struct

from lora_sidecar.cli.inject.manifests.value import Path


class Problem(Struct, frozen=True):
    """Why nothing is done: where, the reason, and what to do about it (maybe empty)."""

    path: Path
    reason: str
    hint: str = ""


class Note(Struct, frozen=True):
    """Something that was assumed, or is left to do: where, and what."""

    path: Path
    text: str


Remark = Problem | Note
