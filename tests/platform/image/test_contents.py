from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_sidecar import __version__
from tests.platform.image.conftest import BASE, ROOT, Podman

LARGEST_MB = 30.0


@pytest.fixture
def root(podman: Podman, image: str) -> Iterator[Path]:
    """The image's file system."""
    mounted = podman.run("image", "mount", image)
    yield Path(mounted)
    podman.run("image", "unmount", image)


def _told(podman: Podman, image: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(podman.run("image", "inspect", image))[0]
    return told


def test_how_it_runs(podman: Podman, image: str) -> None:
    """The image says who it runs as, what it runs, and that it is asked without a shell whether it is alive."""
    told = _told(podman, image)
    config = told["Config"]

    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["lora-sidecar"]
    assert config["Cmd"] == ["run", "--config", "/etc/lora-sidecar/sidecar.yaml"]
    assert list(config["ExposedPorts"]) == ["9400/tcp"]
    assert told["Healthcheck"]["Test"] == ["CMD", "lora-sidecar", "healthcheck"]


def test_labels(podman: Podman, image: str) -> None:
    """The labels name the program, its version and the commit that it was built from."""
    labels = _told(podman, image)["Labels"]

    assert labels["org.opencontainers.image.title"] == "lora-sidecar"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == "0123456789abcdef"


def test_size(podman: Podman, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It adds little to its base: every node pulls it before a server that is paid by the second can start."""
    whole, base = (_told(podman, name)["Size"] / 1e6 for name in (image, BASE))

    with capsys.disabled():
        sys.stdout.write(f"\nimage {whole:.1f} MB, of which {whole - base:.1f} MB on top of the base\n")
    assert whole - base < LARGEST_MB


def test_only_the_product(root: Path) -> None:
    """No tool that built it, no test, no document and no cache is in it."""
    names = {path.relative_to(root).as_posix() for path in (root / "packages").iterdir()}
    names |= {path.relative_to(root).as_posix() for path in root.iterdir()}

    unwanted = re.compile(r"(^|/)(pip|setuptools|wheel|tests|docs|build|\.git)$")
    assert [name for name in names if unwanted.search(name)] == []
    assert not list(root.rglob("ensurepip"))
    assert _sources(root / "packages/lora_sidecar") == _sources(ROOT / "lora_sidecar")


def _sources(package: Path) -> set[str]:
    """The files of a package, without what Python made of them."""
    return {
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_compiled(root: Path) -> None:
    """Every module is compiled: where it runs nothing can be written, and each start would compile it again."""
    modules = [path for path in (root / "packages").rglob("*.py") if "__pycache__" not in path.parts]

    missing = [
        path for path in modules if not list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.opt-2.pyc"))
    ]

    assert modules
    assert missing == []


def test_what_its_user_may_write(root: Path) -> None:
    """Its user owns the folder of the checkpoint and nothing else, and can change nothing else but /tmp."""
    owned: list[str] = []
    writable: list[str] = []
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                continue
            if status.st_uid == 65532 or status.st_gid == 65532:
                owned.append(path.relative_to(root).as_posix())
            if status.st_mode & stat.S_IWOTH:
                writable.append(path.relative_to(root).as_posix())

    assert owned == ["var/lib/lora-sidecar"]
    assert writable == ["tmp"]
