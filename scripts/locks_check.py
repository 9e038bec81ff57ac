"""Proves that nothing has to be resolved to install from the lock files: `make locks-check`.

An environment that pip completes from the index depends on the day, and on the pip. So two things are looked at:

* whether all that a locked release requires is locked, its extras too, under each supported Python. The locked releases
  say so themselves; nobody is asked for the newest;
* whether pip makes of each lock just what it locks, wheels ready to be unpacked, out of the locked files and without an
  index: the pip that comes with this Python, and the newest. To unpack them proves no more, and to delete the tens of
  thousands of files again takes minutes on some disks; `make test` on a fresh clone does unpack them.

The locks of vLLM, which another script installs, are large: what they lock is asked and no more, and torch is taken for
a build for the CPU that requires nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct
from packaging.dependency_groups import resolve_dependency_groups
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from scripts.locks import LockError, Markers, Pin, Release, lacking, markers_of, pinned, read_left_out, read_pins

HERE = "{}.{}".format(*sys.version_info[:2])
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
VLLM_PYTHONS = ("3.11", "3.12", "3.13")
# A marker may tell the first releases of a Python from the later ones.
PATCHES = ("0", "99")
WORKERS = 2
# What has no wheel is built, with what its author chose and no lock may have. For one that is setuptools, which is
# locked: without isolation it is built with that, and not with the newest.
AS_LOCKED = ("--no-deps", "--only-binary", ":all:", "--no-binary", "forbiddenfruit", "--no-build-isolation")


class Environment(Struct, frozen=True):
    """One that the Makefile makes: its locks, in their order, and the groups in pyproject.toml that they are for."""

    locks: tuple[str, ...]
    groups: tuple[str, ...]


_BASE = ("runtime", "build", "dev")
ENVIRONMENTS = (
    Environment(("runtime",), ()),
    Environment(_BASE, ("build", "dev")),
    Environment((*_BASE, "bench"), ("bench",)),
    Environment((*_BASE, "kubernetes"), ("kubernetes",)),
    Environment((*_BASE, "mutation"), ("mutation",)),
)


class CheckFailedError(Exception):
    """A program that was run failed, or did something else than asked; the message says what, and its words."""


class Pip:
    """A pip, and a folder for what it reads and writes. What runs it raises `CheckFailedError` where it fails."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.environment = environment
        self._folder = folder

    def __call__(self, *arguments: str | Path, **variables: str) -> str:
        """Run it; what it printed."""
        command = (self.environment / "bin/python", "-m", "pip", "--disable-pip-version-check", *arguments)
        return _run(*command, **variables)

    @property
    def version(self) -> str:
        """Its own version."""
        return self("--version").split()[1]

    def releases(self, pins: Iterable[Pin], python: str, *options: str | Path) -> dict[str, Release]:
        """What the pinned releases say of themselves, by name, in their files for that Python. Nothing is installed."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            report = Path(folder) / "report.json"
            dry_run = ("install", "--dry-run", "--ignore-installed", "--report", report)
            # An older pip wants to know where to, though nothing gets there.
            elsewhere = ("--python-version", python, "--target", Path(folder) / "nowhere")
            self(*dry_run, *elsewhere, *AS_LOCKED, *options, "-r", _list(pins, folder))
            told = [item["metadata"] for item in json.loads(report.read_text())["install"]]
        return {canonicalize_name(one["name"]): _release(one) for one in told}

    def download(self, pins: Iterable[Pin], files: Path) -> None:
        """Put the file of each pinned release for this Python into a folder."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            self("download", "--dest", files, *AS_LOCKED, "-r", _list(pins, folder))

    def wheels(self, lock: Path, files: Path) -> dict[str, Version]:
        """What it makes of a lock and a folder of files, and nothing else: the versions, by name."""
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(files), "PIP_CONFIG_FILE": os.devnull}
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            self("wheel", "--wheel-dir", folder, "--require-hashes", *AS_LOCKED, "-r", lock, **offline)
            made = [parse_wheel_filename(file.name) for file in Path(folder).iterdir()]
        return {name: version for name, version, _, _ in made}


def _list(pins: Iterable[Pin], folder: str) -> Path:
    """A file with the pins, without their markers: pip would evaluate them for the Python that it runs on itself."""
    file = Path(folder) / "pins.txt"
    file.write_text("".join(f"{' --hash='.join((f'{pin.name}=={pin.version}', *pin.hashes))}\n" for pin in pins))
    return file


def _release(metadata: Mapping[str, Any]) -> Release:
    requires = tuple(map(Requirement, metadata.get("requires_dist", ())))
    return Release(metadata["name"], metadata["version"], requires, metadata.get("requires_python", ""))


class Project(Struct, frozen=True):
    """The folder that has pyproject.toml, the Makefile and the locks."""

    root: Path

    def lock(self, name: str) -> Path:
        """The file of a lock."""
        return self.root / "locks" / f"{name}.txt"

    def pins(self, lock: str) -> list[Pin]:
        """What a lock pins. Raises `LockError`."""
        return read_pins(self.lock(lock).read_text())

    def wanted(self, environment: Environment) -> list[Requirement]:
        """What pyproject.toml says that an environment is for: each is for the project itself too."""
        groups = resolve_dependency_groups(self._read()["dependency-groups"], *environment.groups)
        return [Requirement(line) for line in (*self._read()["project"]["dependencies"], *groups)]

    def _read(self) -> dict[str, Any]:
        return tomllib.loads((self.root / "pyproject.toml").read_text())


def main() -> int:
    """Check all locks; 0 where each is complete."""
    project = Project(Path(__file__).parents[1])
    try:
        with tempfile.TemporaryDirectory(prefix="locks-check-") as folder:
            found = list(_check(project, Path(folder)))
    except (CheckFailedError, LockError) as error:
        found = [str(error)]
    for line in dict.fromkeys(found):
        print(line)
    print("locks: INCOMPLETE" if found else "locks: complete")
    return 1 if found else 0


def _check(project: Project, folder: Path) -> Iterator[str]:
    with _step("make two environments, for the pip that comes with this Python and for the newest"):
        own, newest = (Pip(folder / name, folder) for name in ("own", "newest"))
        for pip in (own, newest):
            _run(sys.executable, "-m", "venv", pip.environment)
        newest("install", "--upgrade", "pip")
        for pip in (own, newest):
            pip("install", *AS_LOCKED, "-r", project.lock("build"))
    files = folder / "files"
    # The largest first: they are done side by side.
    looks = [
        partial(_requirements_of_vllm, lock, newest) for lock in sorted((project.root / "locks").glob("vllm*.txt"))
    ]
    looks += [partial(requirements, project, newest, files, python) for python in PYTHONS]
    with ThreadPoolExecutor(WORKERS) as pool:
        for found in [pool.submit(look) for look in looks]:
            yield from found.result()
    for pip in (own, newest):
        with _step(f"make the wheels of all locks with pip {pip.version} and no index"):
            yield from _made_otherwise(project, pip, files)


def requirements(project: Project, pip: Pip, files: Path, python: str) -> list[str]:
    """What each environment lacks under a Python, in a sentence each; for this one `files` gets what is locked."""
    pins = {name: project.pins(name) for environment in ENVIRONMENTS for name in environment.locks}
    markers = [markers_of(f"{python}.{patch}") for patch in PATCHES]
    everything = pinned((pin for some in pins.values() for pin in some), markers)
    with _step(f"ask {len(everything)} releases what they require under Python {python}"):
        if python == HERE:
            pip.download(everything, files)
        options = ("--no-index", "--find-links", files) if python == HERE else ()
        releases = pip.releases(everything, python, *options)
    return [
        f"{environment.locks[-1]}, Python {python}: {line}"
        for environment in ENVIRONMENTS
        for values in markers
        for line in lacking(_there(releases, pins, environment, values), project.wanted(environment), values)
    ]


def _there(
    releases: Mapping[str, Release], pins: Mapping[str, Iterable[Pin]], environment: Environment, markers: Markers
) -> dict[str, Release]:
    """Those of the releases that an environment has under these markers."""
    locked = (pin for name in environment.locks for pin in pins[name])
    return {pin.name: releases[pin.name] for pin in pinned(locked, [markers])}


def _requirements_of_vllm(lock: Path, pip: Pip) -> list[str]:
    """What a lock of vLLM lacks, but for what it says that it leaves out."""
    text = lock.read_text()
    pins = {pin.name: pin for pin in pinned(read_pins(text), [markers_of(f"{HERE}.0")])}
    # Its files are the largest by far, and for which processor an index has it differs.
    torch = pins.pop("torch")
    with _step(f"ask {len(pins)} releases of {lock.name} what they require"):
        releases = pip.releases(pins.values(), HERE)
    releases["torch"] = Release("torch", f"{torch.version}+cpu")
    return [
        f"{lock.stem}, Python {python}: {line}"
        for python in VLLM_PYTHONS
        for patch in PATCHES
        for line in lacking(releases, (), markers_of(f"{python}.{patch}"), read_left_out(text))
    ]


def _made_otherwise(project: Project, pip: Pip, files: Path) -> Iterator[str]:
    """What a pip makes of a lock besides what it locks for this Python, or instead."""
    here = [markers_of("{}.{}.{}".format(*sys.version_info[:3]))]
    for name in sorted({name for environment in ENVIRONMENTS for name in environment.locks}):
        locked = {pin.name: Version(pin.version) for pin in pinned(project.pins(name), here)}
        if (made := pip.wheels(project.lock(name), files)) != locked:
            differing = sorted(dict(made.items() ^ locked.items()))
            yield f"{name}: pip {pip.version} makes something else of it than it locks: {', '.join(differing)}"


def _run(*command: str | Path, **variables: str) -> str:
    """Run a program, with these variables besides; what it printed. Raises `CheckFailedError` where it fails."""
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailedError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def _step(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{time.monotonic() - began:5.1f} s  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
