"""The tests themselves, run by somebody who ignores SIGINT: `nohup`, or a job in a script's background."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import programs

ROOT = Path(__file__).parents[2]
STATE = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
IGNORING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def _python(*arguments: str) -> str:
    """What Python printed that was started as any test may start it; fails the test where Python failed."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_a_test_starts_can_be_interrupted() -> None:
    """SIGINT ends it, whoever started the tests."""
    assert _python("-c", STATE) == "True\n"


def test_whoever_starts_the_tests_may_ignore_interrupts() -> None:
    """The test above passes in a run in which SIGINT is ignored."""
    this = f"{Path(__file__).relative_to(ROOT)}::{test_what_a_test_starts_can_be_interrupted.__name__}"
    assert "1 passed" in _python("-c", IGNORING, "-m", "pytest", "-q", "-p", "no:cacheprovider", this)


def test_the_tests_go_on_ignoring_it() -> None:
    """An interrupt that is not meant for the tests does not end them, and afterwards it is ignored as before."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with programs.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


async def test_program_that_outlives_its_test() -> None:
    """A test that fails leaves nothing running behind, and nothing open for the next test to be blamed for."""
    with pytest.raises(AssertionError):
        async with programs.started(sys.executable, "-c", "input()") as process:
            raise AssertionError
    assert process.returncode == -signal.SIGKILL
