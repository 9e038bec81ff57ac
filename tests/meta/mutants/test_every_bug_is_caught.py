"""Every checker is checked: with a bug planted in the program, the test that is there to catch it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.meta.mutants.bugs import BUGS
from tests.meta.mutants.plant import VARIABLE, planted

HUNT = (
    "import sys, tests.meta.mutants.plant; from tests.simulation.hunt import main;"
    "sys.exit(main(['--seeds', '150', '--workers', '1', '--until-broken']))"
)


def run(bug: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a bug planted."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST"))}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**environment, VARIABLE: bug},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BUGS)
def test_the_test_that_is_there_for_it_fails(name: str) -> None:
    """The named test fails with the bug, by its own judgement and not for want of something to run."""
    options = ("-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "tests.meta.mutants.plant")
    done = run(name, "-m", "pytest", *options, BUGS[name].caught_by)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert " error" not in done.stdout.splitlines()[-1]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name, bug in BUGS.items() if bug.worlds])
def test_the_simulation_finds_it(name: str) -> None:
    """A promise is broken in one of the first worlds that are lived through with the bug."""
    done = run(name, "-c", HUNT)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ViolationError" in done.stdout, done.stdout + done.stderr


def test_a_bug_without_a_place_is_an_error() -> None:
    """A text that is gone from the source, or is there twice, plants nothing unnoticed."""
    edit = BUGS["no-backoff"].edits[0]
    with pytest.raises(LookupError):
        planted("nothing of it", [edit])
    with pytest.raises(LookupError):
        planted(edit.old * 2, [edit])
