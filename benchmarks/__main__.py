"""Runs the benchmarks, prints their tables, and writes JSON and plots.

python -m benchmarks [--real] [--only NAME ...] [--out FOLDER]
python -m benchmarks --only hour [--minutes 60]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import cost, fleet, memory, outages, pods, saves, scrapes, traffic
from benchmarks.figures import Figures
from tests.support.servers import Kind

Case = Callable[[Path], Awaitable[Figures]]


def cases(kind: Kind) -> dict[str, Case]:
    """The benchmarks by name; with a real vLLM those that it makes a difference to."""
    real = kind is Kind.REAL

    async def storm(folder: Path) -> Figures:
        del folder
        return fleet.figures()

    served: dict[str, Case] = {
        "detection": lambda folder: outages.detection(kind, folder, 3 if real else 9),
        "first_load": lambda folder: outages.first_load(kind, folder, 3 if real else 9),
        "restore": lambda folder: outages.restore(kind, folder, (1, 10, 50, 200), 5),
    }
    if real:
        return served | {
            "restore_large": lambda folder: traffic.large(kind, folder, 7),
            "traffic": lambda folder: traffic.traffic(kind, folder, 3),
        }
    return served | {
        "outage": lambda folder: outages.outage(kind, folder, (1, 10, 50, 200), 3),
        "heartbeat": lambda folder: cost.heartbeat(folder, (10, 100, 1000, 10_000), 21),
        "checkpoint": saves.checkpoint,
        "scrape": scrapes.scrape,
        "footprint": lambda folder: cost.footprint(folder, (1, 8), 1000),
        "startup": lambda folder: cost.startup(folder, (10, 1000), 9),
        "fleet": storm,
    }


async def run(kind: Kind, names: list[str], out: Path, minutes: int) -> None:
    """Run the named benchmarks, or all but the hour, each in a folder of its own."""
    chosen = {name: case for name, case in cases(kind).items() if not names or name in names}
    if "hour" in names:
        chosen["hour"] = lambda folder: memory.hour(folder, minutes)
    out.mkdir(parents=True, exist_ok=True)
    for name, case in chosen.items():
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            figures = await case(Path(folder))
        print(figures.table(), flush=True)
        suffix = "-vllm" if kind is Kind.REAL else ""
        said: dict[str, Any] = {"server": kind.value, "python": platform.python_version(), "cores": os.cpu_count()}
        said |= msgspec.to_builtins(figures)
        (out / f"{name}{suffix}.json").write_bytes(msgspec.json.format(msgspec.json.encode(said)) + b"\n")


def main() -> None:
    """Read the command line and run."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    flags.add_argument("--real", action="store_true", help="with a real vLLM (LORA_SIDECAR_VLLM_PYTHON)")
    flags.add_argument("--only", nargs="+", default=[])
    flags.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    flags.add_argument("--minutes", type=int, default=60, help="how long --only hour takes (default: %(default)s)")
    options = flags.parse_args()
    asyncio.run(run(pods.kind_of(real=options.real), options.only, options.out, options.minutes))


if __name__ == "__main__":
    main()
