from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.timeout(120)
def test_the_demo_shows_what_it_says() -> None:
    """The command of `make demo` kills a server, and ends well only if that server lists every adapter again."""
    command = [sys.executable, "-m", "tests.fakes.demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "somebody kills the server" in done.stdout
    assert "every adapter is back, and nobody did anything" in done.stdout
