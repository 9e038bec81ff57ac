"""`lora-sidecar checkpoint`: says what a checkpoint file holds, or why it holds nothing that can be used.

The trap guarded against is a look that changes what it looks at: the file is read without a lock, and nothing is moved
aside.
"""

from __future__ import annotations

import sys

from lora_sidecar.checkpoint.decode import Checkpoint, Corrupt, TooNew, decode
from lora_sidecar.checkpoint.store import read_file
from lora_sidecar.core.errors import CheckpointError


def verify(path: str) -> bool:
    """Print one line that says whether the file is sound; returns it, too."""
    found = _read(path)
    if found is not None:
        print(f"{path}: ok, generation {found.generation}, {len(found.desired.adapters)} adapters")
    return found is not None


def show(path: str) -> bool:
    """Print what the file holds; returns whether it is sound."""
    found = _read(path)
    if found is not None:
        _show(found)
    return found is not None


def _read(path: str) -> Checkpoint | None:
    try:
        found = decode(read_file(path))
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return None
    match found:
        case Corrupt():
            print(f"{path}: {found.reason} ({found.hint})", file=sys.stderr)
            return None
        case TooNew():
            print(f"{path}: {found.reason} (read it with the lora-sidecar that wrote it)", file=sys.stderr)
            return None
        case Checkpoint():
            return found


def _show(checkpoint: Checkpoint) -> None:
    desired = checkpoint.desired
    start = desired.incarnation.start_time
    started = "unknown" if start is None else f"{start:.2f}"
    print(f"server {checkpoint.server}, generation {checkpoint.generation}")
    print(f"incarnation {desired.incarnation.number}, started at {started} (Unix seconds)")
    width = max((len(name) for name in desired.adapters), default=0)
    for name, adapter in sorted(desired.adapters.items()):
        listed = "listed" if name in desired.listed else "not listed"
        print(f"{name!s:{width}}  {adapter.origin.value:9}  {listed:10}  {adapter.path}")
    for name, suspect in sorted(desired.suspects.items()):
        accused = ", and its last load or probe broke off" if suspect.accused else ""
        print(f"{name!s:{width}}  suspected  the server died {suspect.deaths} x while it was loaded or probed{accused}")
    for name, path in sorted(desired.orphaned.items()):
        print(f"{name!s:{width}}  orphaned   until it is unloaded  {path}")
