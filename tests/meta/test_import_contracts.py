from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run the import contracts on a copy of the project."""
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package and its contracts, to be spoiled."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "lora_sidecar", tmp_path / "lora_sidecar", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_contracts_hold_as_it_is(tree: Path) -> None:
    """The tree keeps its contracts: without this, the tests of a broken one would prove nothing."""
    result = lint_imports(tree)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "spoiled_by", "contract"),
    [
        pytest.param("reconcile.reconcile", "import asyncio", "The pure core", id="the core imports a loop"),
        pytest.param("reconcile.backoff", "import time", "The pure core", id="the core imports a clock"),
        pytest.param("checkpoint.decode", "from pathlib import Path", "The pure core", id="the core imports files"),
        pytest.param(
            "core.model", "import lora_sidecar.reconcile.reconcile", "Dependencies point down", id="the bottom looks up"
        ),
        pytest.param("controller", "import aiohttp", "Only the engines talk", id="another HTTP client"),
        pytest.param("api.ops", "import lora_sidecar.api.control", "Neither port knows", id="one port uses the other"),
        pytest.param("controller", "import tests.fakes.vllm", "none of the tests' fakes", id="the demo is needed"),
    ],
)
def test_a_contract_that_is_broken_fails(tree: Path, module: str, spoiled_by: str, contract: str) -> None:
    """Each contract catches the import that it forbids, and names the module."""
    path = tree / "lora_sidecar" / f"{module.replace('.', '/')}.py"
    path.write_text(path.read_text() + f"\n{spoiled_by}\n")
    result = lint_imports(tree)
    assert result.returncode != 0
    broken = [line for line in result.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(contract in line for line in broken), result.stdout
    assert f"lora_sidecar.{module}" in result.stdout
