"""Builds the image once, on a base made here and without a network, and runs it with podman in a store of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from msgspec import Struct

from tests.platform.image.local_base import write_root
from tests.support.paths import ROOT
from tests.support.servers import Kind, RunningServer, ServerSpec
from tests.support.sidecar import DEADLINE, eventually, settings

NAME = "localhost/lora-sidecar"
BASE = "localhost/python"
_BUILD_BASE = "localhost/python-with-pip"
_NEEDED = "these tests need root, podman and runc: make image-tools installs both on Debian"
_BASE_FILE = "FROM scratch\nCOPY . /\nENV PATH=/usr/local/bin\n"

StartVllm = Callable[..., Awaitable[RunningServer]]


class Podman(Struct, frozen=True):
    """podman with images and containers of its own below `folder`."""

    folder: Path

    def command(self, *arguments: str) -> list[str]:
        """The command line of one call."""
        places = ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")]
        return ["podman", *places, "--runtime", "runc", "--cgroup-manager", "cgroupfs", *arguments]

    def run(
        self, *arguments: str, wrap: Sequence[str] = (), check: bool = True, within: float = 240.0, **more: Any
    ) -> str:
        """Call it; returns what it printed. Fails the test with podman's own words where it fails and `check`."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [*wrap, *self.command(*arguments)], capture_output=True, text=True, check=False, timeout=within, **more
        )
        if check and done.returncode:
            pytest.fail(f"podman {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()


class Container:
    """One container of the image beside the servers of the host, as restricted as config/kubernetes asks."""

    def __init__(self, podman: Podman, name: str, folder: Path) -> None:
        """`folder` gets the config and the checkpoints, which are those of the next container with this folder too."""
        self._podman = podman
        self.name = name
        self._config = folder / "config"
        self._state = folder / "state"
        for place in (self._config, self._state):
            place.mkdir(exist_ok=True)
        self._state.chmod(0o777)  # as the kubelet makes an emptyDir

    def start(self, config: dict[str, Any]) -> None:
        """Run the image's own command, in the background."""
        checkpoint = config["checkpoint"] | {"directory": "/var/lib/lora-sidecar"}
        (self._config / "sidecar.yaml").write_text(yaml.safe_dump(config | {"checkpoint": checkpoint}))
        self._podman.run(
            *("run", "--detach", "--name", self.name, "--pull", "never", "--log-driver", "k8s-file"),
            *("--network", "host", "--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--no-healthcheck"),
            *("--security-opt", "no-new-privileges", "--memory", "128m", "--memory-swap", "128m"),
            # podman asks for more than some hosts give to root.
            *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"),
            *("--volume", f"{self._config}:/etc/lora-sidecar:ro", "--volume", f"{self._state}:/var/lib/lora-sidecar"),
            NAME,
        )

    def inspect(self, template: str) -> str:
        """One value of `podman inspect`."""
        return self._podman.run("inspect", "--format", template, self.name)

    @property
    def pid(self) -> int:
        """The number of its first process on the host."""
        return int(self.inspect("{{.State.Pid}}"))

    @property
    def log(self) -> str:
        """All that it printed."""
        return self._podman.run("logs", self.name)

    def signal(self, name: str) -> None:
        """Send a signal to its first process."""
        self._podman.run("kill", "--signal", name, self.name)

    def execute(self, *command: str) -> str:
        """Run a command in it, which must succeed; what it printed."""
        return self._podman.run("exec", self.name, *command)

    def exit_status(self) -> int:
        """Wait until it has ended; its exit status. Fails the test where it does not end."""
        try:
            return int(self._podman.run("wait", "--interval", "50ms", self.name, within=DEADLINE))
        except subprocess.TimeoutExpired:
            pytest.fail(f"the container did not end within {DEADLINE} s\n{self.log}")

    def remove(self) -> None:
        """End it in whatever state, and forget it. The folder stays."""
        self._podman.run("rm", "--force", "--time", "0", "--ignore", self.name)


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Podman with a store of its own that is gone afterwards."""
    if os.geteuid() != 0 or not (shutil.which("podman") and shutil.which("runc")):
        pytest.fail(_NEEDED)
    podman = Podman(tmp_path_factory.mktemp("podman"))
    yield podman
    podman.run("rm", "--all", "--force", "--time", "0", check=False)
    podman.run("rmi", "--all", "--force", check=False)
    # Its store is mounted onto itself.
    subprocess.run(["umount", podman.folder / "store" / "overlay"], check=False, capture_output=True)
    shutil.rmtree(podman.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def image(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image's name, built from the Dockerfile without a network."""
    folder = tmp_path_factory.mktemp("image")
    for base, with_pip in ((_BUILD_BASE, True), (BASE, False)):
        root = write_root(folder / base.rpartition("/")[2], with_pip=with_pip)
        podman.run("build", "--tag", base, "--file", "-", str(root), input=_BASE_FILE)
    wheels = folder / "wheels"
    download = ("-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:")
    lock = ROOT / "locks/runtime.txt"
    subprocess.run([sys.executable, *download, "--dest", wheels, "--requirement", lock], check=True, cwd=folder)
    settings = folder / "pip.conf"
    settings.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    podman.run(
        *("build", "--isolation", "chroot", "--format", "docker", "--pull-never", "--tag", NAME),
        *("--build-arg", f"BUILD_BASE={_BUILD_BASE}", "--build-arg", f"BASE={BASE}"),
        *("--build-arg", "REVISION=0123456789abcdef"),
        *("--volume", f"{wheels}:/wheels:ro", "--volume", f"{settings}:/etc/pip.conf:ro", str(ROOT)),
        wrap=("unshare", "--net"),
    )
    return NAME


@pytest.fixture
def container(request: pytest.FixtureRequest, podman: Podman, image: str, tmp_path: Path) -> Iterator[Container]:
    """A container of the image, not started yet."""
    assert image == NAME
    container = Container(podman, request.node.name.replace("[", "-").replace("]", ""), tmp_path)
    yield container
    container.remove()


@pytest.fixture
async def vllm(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A fake server on the host's loopback, which the container shares with it as the containers of a pod do."""
    flags = ("--no-check-files",)
    server = RunningServer(
        ServerSpec(kind=Kind.FAKE, model=Path("/models/tiny"), fake_flags=flags), tmp_path / "vllm.log"
    )
    server.start()
    await server.until_ready()
    yield server
    await server.sigkill_all()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that keeps no connection."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


__all__ = ["BASE", "DEADLINE", "NAME", "ROOT", "Container", "Podman", "eventually", "settings"]
