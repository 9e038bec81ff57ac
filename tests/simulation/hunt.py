"""The long hunt: many worlds on all processors, with a progress bar, and a summary that says what was lived through.

python -m tests.simulation.hunt --seeds 20000
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.simulation.calm import live
from tests.simulation.world import Report

_MEMORY = Path("/dev/shm")
_BAR = 30
_TOLD = {
    "heartbeats": "heartbeat.completed",
    "outages seen": "server.down",
    "restarts told": "server.restarted",
    "recoveries": "recovery.completed",
    "adapters restored": "restore.succeeded",
    "loads failed": "restore.failed",
    "adopted": "adapter.adopted",
    "forgotten": "adapter.forgotten",
    "retired": "adapter.retired",
    "suspected": "restore.suspected",
    "saves failed": "checkpoint.write_failed",
    "checkpoints moved aside": "checkpoint.quarantined",
}


def report_of(seed: int) -> Report:
    """Live through one world; what is raised becomes the report's error."""
    shelf = str(_MEMORY) if os.access(_MEMORY, os.W_OK) else None
    try:
        return live(seed, shelf)
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed is what matters
        return Report(seed, 0.0, f"{type(error).__name__}: {error}", traceback.format_exc(), {})


def hunt(seeds: Iterable[int], workers: int) -> Iterable[Report]:
    """The reports of all worlds, as they come."""
    if workers == 1:
        yield from map(report_of, seeds)
        return
    with concurrent.futures.ProcessPoolExecutor(workers) as pool:
        yield from pool.map(report_of, seeds, chunksize=8)


def summary(reports: Sequence[Report], seconds: float) -> str:
    """What was lived through, and what went wrong."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report.counts)
    virtual = sum(report.seconds for report in reports)
    broken = [report for report in reports if report.error]
    faults = sorted((kind, number) for kind, number in counts.items() if kind.startswith("fault "))
    lines = [
        f"{len(reports)} worlds, {virtual / 3600:.1f} virtual hours in {seconds:.0f} s",
        "; ".join(f"{what}: {counts[event]}" for what, event in _TOLD.items()),
        "what happened, how often:",
        *(f"  {number:8}  {kind.removeprefix('fault ')}" for kind, number in faults),
        f"promises broken: {len(broken)}" + (f", seeds {[report.seed for report in broken][:50]}" if broken else ""),
    ]
    return "\n".join(lines)


def _bar(done: int, total: int, broken: int, began: float) -> None:
    took = time.monotonic() - began
    left = took / done * (total - done)
    filled = _BAR * done // total
    bar = "#" * filled + "." * (_BAR - filled)
    sys.stderr.write(f"\r[{bar}] {done}/{total} worlds, {broken} broken, {took:.0f} s, {left:.0f} s left ")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Hunt; the exit status is 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description="Live through simulated worlds and look for a broken promise.")
    parser.add_argument("--seeds", type=int, default=2000, help="how many worlds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--history", type=int, help="live through this one seed and print its whole history")
    parser.add_argument("--until-broken", action="store_true", help="end at the first broken promise")
    asked = parser.parse_args(arguments)
    if asked.history is not None:
        report = live(asked.history, tell=True)
        sys.stdout.write(f"{report.history}\n{report.error or 'every promise was kept'}\n")
        return 1 if report.error else 0
    began = time.monotonic()
    reports: list[Report] = []
    broken = 0
    shown = sys.stderr.isatty()
    for report in hunt(range(asked.first, asked.first + asked.seeds), asked.workers):
        reports.append(report)
        if report.error:
            broken += 1
            sys.stdout.write(f"\nseed {report.seed}: {report.error}\n{report.history}\n")
            sys.stdout.flush()
            if asked.until_broken:
                break
        if shown or len(reports) % 1000 == 0:
            _bar(len(reports), asked.seeds, broken, began)
    sys.stdout.write("\n" + summary(reports, time.monotonic() - began) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
