from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from tests.simulation.calm import live
from tests.simulation.hunt import report_of, summary
from tests.support.paths import ROOT

FOUND = [int(line) for line in (ROOT / "tests/simulation/seeds.txt").read_text().splitlines() if line[:1].isdigit()]
SLICES = 8
A_SLICE = 25


def test_a_world_of_restarts() -> None:
    """One world alone, for a first look."""
    report = report_of(1_000_001)
    assert not report.error, report.history


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(SLICES))
def test_every_promise_is_kept_in_200_worlds(number: int) -> None:
    """Whatever happens in them: nothing is lost, nothing is harmed, and all is back when the trouble ends."""
    reports = [report_of(seed) for seed in range(1_000_000 + number * A_SLICE, 1_000_000 + (number + 1) * A_SLICE)]
    broken = [f"seed {report.seed}: {report.error}\n{report.history}" for report in reports if report.error]
    assert not broken, "\n\n".join(broken)
    counts = summary(reports, 1.0)
    assert "promises broken: 0" in counts


@pytest.mark.timeout(300)
def test_worlds_in_which_something_was_found() -> None:
    """A world that once broke a promise is lived through at every run from then on."""
    broken = [f"seed {seed}: {report.error}\n{report.history}" for seed in FOUND if (report := report_of(seed)).error]
    assert not broken, "\n\n".join(broken)


def test_a_seed_tells_the_same_history_in_every_process() -> None:
    """What a failure printed can be looked at again: no hash, address or time of day has a part in it."""
    digests = set()
    script = "import sys;from tests.simulation.test_many_lives import digest;print(digest(int(sys.argv[1])))"
    for hash_seed, memory in (("1", "pymalloc"), ("2", "malloc")):
        done = subprocess.run(
            [sys.executable, "-c", script, str(FOUND[0])],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONMALLOC": memory},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def digest(seed: int) -> str:
    """A number for the whole history of a world; names of temporary files are no part of it."""
    history = live(seed, tell=True).history
    lines = [line for line in history.splitlines() if "checkpoint." not in line]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
