"""What a checkpoint costs, in a process of its own.

The trap guarded against is a save of what did not change, which never happens: at each save here one more adapter is
new, and was seen listed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import msgspec

from benchmarks import pods
from benchmarks.figures import Figures, median
from lora_sidecar.checkpoint.decode import Checkpoint, Format
from lora_sidecar.checkpoint.encode import encode
from lora_sidecar.checkpoint.store import Store
from lora_sidecar.core.model import Adapter, Desired, Incarnation, Origin

COUNTS = (10, 100, 1000, 10_000)
ROUNDS = 41

_PROGRAM = "import sys; from benchmarks.saves import main; main(sys.argv[1])"


async def checkpoint(folder: Path) -> Figures:
    """Run `figures` in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM, str(folder)),
        stdout=asyncio.subprocess.PIPE,
        # As sidecars are started: the scheduler may share the processor out by session.
        start_new_session=True,
    )
    said, _ = await process.communicate()
    return msgspec.json.decode(said, type=Figures)


def figures(folder: Path) -> Figures:
    """A save against the least that is as durable: write, fsync, rename, fsync of the directory, of the same bytes."""
    rows = [_row(folder, count, format_) for format_ in ("json", "yaml") for count in COUNTS]
    columns = (
        "adapters",
        "format",
        "bytes",
        "bare write, ms",
        "encoding, ms",
        "save, ms",
        "ratio",
    )
    return Figures("checkpoint", "Saving a checkpoint in which one adapter is new", columns, tuple(rows))


def _row(folder: Path, count: int, format_: Format) -> tuple[object, ...]:
    wanted = {n: Adapter(n, p, Origin.ADOPTED, base="/m") for n, p in pods.imaginary(count + 2 * ROUNDS).items()}
    later = list(wanted)[count:]
    desired = _without(wanted, later)
    name = f"bench-{count}-{format_}"
    store = Store(str(folder), name, format_)
    store.open()
    store.load()
    ours: list[float] = []
    bare: list[float] = []
    encoding: list[float] = []
    data = b""
    for number in range(ROUNDS):
        desired = _without(wanted, later[2 * number + 1 :])
        began = time.perf_counter()
        store.save(Checkpoint(number + 1, name, desired))
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        data = encode(Checkpoint(number + 1, name, desired), format_)
        encoding.append(time.perf_counter() - began)
        began = time.perf_counter()
        _write_durably(folder, data)
        bare.append(time.perf_counter() - began)
    store.close()
    # The first of all meets what is not in any cache: of the disk, of the processor, of this program.
    whole, save = median(bare), median(ours[1:])
    every = [1e3 * median(times) for times in (bare, encoding, ours[1:])]
    return (count, format_, len(data), *every, save / whole)


def _without(wanted: dict[str, Adapter], left_out: list[str]) -> Desired:
    left = set(left_out)
    adapters = {name: adapter for name, adapter in wanted.items() if name not in left}
    return Desired(adapters, Incarnation(1, 1.5), frozenset(adapters))


def _write_durably(directory: Path, data: bytes) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    file = os.open("bare.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=handle)
    os.write(file, data)
    os.fsync(file)
    os.close(file)
    os.rename("bare.tmp", "bare", src_dir_fd=handle, dst_dir_fd=handle)
    os.fsync(handle)
    os.close(handle)


def main(folder: str) -> None:
    """Print the figures as JSON."""
    sys.stdout.buffer.write(msgspec.json.encode(figures(Path(folder))))
