"""The `process_*` metrics that every Prometheus client has, read from Linux's /proc at each scrape.

The trap guarded against is a scrape that fails with them: where there is no /proc, or not all of it, what cannot be
read is left out.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lora_sidecar.api.exposition import Family, Kind

_PROC: Final = Path("/proc")

# Numbers of the fields of /proc/self/stat after the program's name, of which the first is the state (proc(5)).
_UTIME, _STIME, _STARTTIME, _VSIZE, _RSS = 11, 12, 19, 20, 21


def process(proc: Path = _PROC) -> Iterator[Family]:
    """Memory, processor time, start time and open files of this process."""
    try:
        # The name is the one field that may hold anything.
        fields = (proc / "self" / "stat").read_text(errors="replace").rpartition(")")[2].split()
        booted_at = _booted_at(proc)
    except (OSError, LookupError):
        pass
    else:
        tick = 1 / os.sysconf("SC_CLK_TCK")
        yield _one("gauge", "virtual_memory_bytes", "Virtual memory size in bytes.", int(fields[_VSIZE]))
        resident = int(fields[_RSS]) * resource.getpagesize()
        yield _one("gauge", "resident_memory_bytes", "Resident memory size in bytes.", resident)
        started_at = booted_at + int(fields[_STARTTIME]) * tick
        since = "Start time of the process since unix epoch in seconds."
        yield _one("gauge", "start_time_seconds", since, started_at)
        spent = (int(fields[_UTIME]) + int(fields[_STIME])) * tick
        yield _one("counter", "cpu_seconds_total", "Total user and system CPU time spent in seconds.", spent)
    try:
        # Less the one that lists them.
        is_open = len(os.listdir(proc / "self" / "fd")) - 1  # noqa: PTH208 - names suffice
    except OSError:
        return
    yield _one("gauge", "open_fds", "Number of open file descriptors.", is_open)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    bound = float("inf") if most == resource.RLIM_INFINITY else most
    yield _one("gauge", "max_fds", "Maximum number of open file descriptors.", bound)


def _booted_at(proc: Path) -> int:
    """Unix seconds. Raises `LookupError` where it does not say."""
    for line in (proc / "stat").read_text(errors="replace").splitlines():
        if line.startswith("btime "):
            return int(line.split()[1])
    raise LookupError("btime")


def _one(kind: Kind, name: str, documentation: str, value: float) -> Family:
    family = Family(kind, f"process_{name}", documentation)
    family.add((), value)
    return family
