"""Lock files, checked with a real pip and an index that is a folder."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.locks_check import HERE, Pip, Project, requirements

ROOT = Path(__file__).parents[2]
PYPROJECT = """
[project]
name = "tiny"
version = "1.0"
dependencies = ["alpha"]

[dependency-groups]
build = []
dev = ["delta"]
bench = []
kubernetes = []
mutation = []
"""


class Index:
    """A folder of wheels, and a project that is locked to some of them."""

    def __init__(self, folder: Path) -> None:
        self.wheels = folder / "wheels"
        self.root = folder / "project"
        self._scratch = folder / "scratch"
        for one in (self.wheels, self.root / "locks", self._scratch):
            one.mkdir(parents=True)
        (self.root / "pyproject.toml").write_text(PYPROJECT)
        for name in ("runtime", "build", "dev", "bench", "kubernetes", "mutation"):
            (self.root / "locks" / f"{name}.txt").touch()

    def offer(self, name: str, version: str, *metadata: str) -> str:
        """Add a release with these lines of metadata; the line that pins it."""
        info = f"{name}-{version}.dist-info"
        file = self.wheels / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as wheel:
            lines = ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata)
            wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
        return f"{name}=={version} --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"

    def lock(self, name: str, *pins: str) -> None:
        """Write a lock file."""
        (self.root / "locks" / f"{name}.txt").write_text("\n".join(pins) + "\n")

    def pins(self, name: str) -> list[str]:
        """The lines of a lock file."""
        return (self.root / "locks" / f"{name}.txt").read_text().splitlines()

    def lacking(self) -> list[str]:
        """What the check finds, with the pip of these tests and on this Python."""
        files = self._scratch / "files"
        return requirements(Project(self.root), Pip(Path(sys.prefix), self._scratch), files, HERE)

    def made(self) -> list[str]:
        """What the pip of these tests makes of the runtime's lock and the index."""
        made = Pip(Path(sys.prefix), self._scratch).wheels(Project(self.root).lock("runtime"), self.wheels)
        return sorted(f"{name}-{version}" for name, version in made.items())

    def downloaded(self) -> list[str]:
        """What the check laid ready to be installed."""
        return sorted(file.name.removesuffix("-py3-none-any.whl") for file in (self._scratch / "files").iterdir())

    def installed(self) -> list[str]:
        """What is there after the Makefile's own command for the runtime's lock, run by the pip of these tests."""
        environment = self.root / "environment"
        make = ("make", "-n", "-f", ROOT / "Makefile", f"VENV={environment}", environment / ".runtime")
        planned = subprocess.run(make, cwd=self.root, capture_output=True, text=True, check=True).stdout
        (command,) = (line for line in planned.splitlines() if " -m pip " in line)
        target = self.root / "target"
        _, *arguments = shlex.split(command)
        subprocess.run([sys.executable, *arguments, "--target", target], cwd=self.root, check=True)
        return sorted(info.stem for info in target.glob("*.dist-info"))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """Of alpha, which requires an extra of beta, which then requires gamma: all locked."""
    index = Index(tmp_path)
    for name in [name for name in os.environ if name.startswith(("PIP_", "MAKE", "MFLAGS"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.wheels))
    alpha = index.offer("alpha", "1.0", "Requires-Dist: beta[more]>=1")
    beta = index.offer("beta", "1.0", "Provides-Extra: more", 'Requires-Dist: gamma; extra == "more"')
    index.lock("runtime", alpha, beta, index.offer("gamma", "1.0"))
    index.lock("dev", index.offer("delta", "1.0"))
    return index


def test_pin_taken_out_of_a_lock(index: Index) -> None:
    """It is missed in each environment that has the package which requires it, though the index still offers it."""
    index.lock("runtime", *(line for line in index.pins("runtime") if not line.startswith("gamma")))
    lack = 'beta[more] requires gamma; extra == "more", and gamma is not locked'
    names = ("runtime", "dev", "bench", "kubernetes", "mutation")
    assert sorted(set(index.lacking())) == sorted(f"{name}, Python {HERE}: {lack}" for name in names)


def test_index_a_month_later(index: Index) -> None:
    """Newer releases of everything, which require what is not locked, change neither the check nor an install."""
    index.offer("alpha", "2.0", "Requires-Dist: omega")
    index.offer("beta", "2.0", "Requires-Dist: omega", "Provides-Extra: more", 'Requires-Dist: gamma; extra == "more"')
    for name in ("gamma", "delta", "omega"):
        index.offer(name, "2.0")
    assert index.lacking() == []
    assert index.downloaded() == ["alpha-1.0", "beta-1.0", "delta-1.0", "gamma-1.0"]
    assert index.made() == ["alpha-1.0", "beta-1.0", "gamma-1.0"]
    assert index.installed() == ["alpha-1.0", "beta-1.0", "gamma-1.0"]
