from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest
import yaml

from lora_sidecar.cli import healthcheck
from tests.process.conftest import NewSidecar
from tests.support.programs import run
from tests.support.servers import RunningServer, free_port


async def _ask(config: Path, proxy: str = "") -> tuple[int, str]:
    command = (sys.executable, "-m", "lora_sidecar", "healthcheck", "--config", config)
    status, out, err = await run(*command, environment=os.environ | {"http_proxy": proxy})
    return status, (out + err).strip()


def _config(folder: Path, bind: str) -> Path:
    file = folder / "sidecar.yaml"
    file.write_text(
        yaml.safe_dump({"servers": [{"name": "vllm", "url": "http://127.0.0.1:8000"}], "ops": {"bind": bind}})
    )
    return file


@pytest.mark.parametrize("host", ["", "0.0.0.0", "127.0.0.1", "localhost", "[::]"])
async def test_alive(new_sidecar: NewSidecar, vllm: RunningServer, host: str) -> None:
    """A sidecar that lives is found wherever its ops port listens, and through no proxy."""
    sidecar = new_sidecar(vllm.url, ops={"bind": f"{host}:{free_port()}"})
    await sidecar.start()
    await sidecar.beats()

    assert await _ask(sidecar.config_file, proxy="http://127.0.0.1:1") == (0, "ok")


async def test_not_alive(new_sidecar: NewSidecar, vllm: RunningServer) -> None:
    """A sidecar whose heartbeats have come to a stop is not alive, and the answer has its reason."""
    sidecar = new_sidecar(vllm.url, ops={"bind": f"127.0.0.1:{free_port()}"})
    await sidecar.start(
        prelude="""
from lora_sidecar.status.board import Board
snapshot = Board.snapshot
Board.publish = lambda self, status: None
Board.snapshot = lambda self, now, liveness: snapshot(self, now, 0.0)
"""
    )
    await sidecar.event("config.loaded")

    status, told = await _ask(sidecar.config_file)

    assert status == 1
    assert "vllm: no heartbeat has ended within" in told


async def test_nobody_listens(tmp_path: Path) -> None:
    """Where nobody listens, it says whom it asked."""
    port = free_port()

    status, told = await _ask(_config(tmp_path, f"127.0.0.1:{port}"))

    assert status == 1
    assert f"http://127.0.0.1:{port}/livez" in told
    assert "refused" in told


async def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that takes the connection and says nothing costs the deadline and no more."""
    monkeypatch.setattr(healthcheck, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        health = await asyncio.to_thread(healthcheck.ask, f"127.0.0.1:{silent.getsockname()[1]}")

    assert not health.alive
    assert "timed out" in health.text


async def test_a_port_of_the_kernels_choice(tmp_path: Path) -> None:
    """A port that only the running process knows is said to be unknown, and nobody else is asked."""
    status, told = await _ask(_config(tmp_path, "127.0.0.1:0"))

    assert status == 1
    assert "the kernel chooses the port" in told


async def test_a_bad_config(tmp_path: Path) -> None:
    """With a config that was broken since the start it asks the default port, the likeliest one."""
    file = tmp_path / "sidecar.yaml"
    file.write_text("servers: [")

    status, told = await _ask(file)

    assert status == 1
    assert "http://127.0.0.1:9400/livez" in told
