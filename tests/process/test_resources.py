from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.process.conftest import NewSidecar, StartVllm
from tests.support.http_client import Api
from tests.support.paths import ROOT
from tests.support.sidecar import Sidecar

ADAPTERS = 100
RSS_MOST = 50.0
"""MiB of memory that the sidecar may keep with so many adapters: beside a server with a GPU more would go unnoticed."""
BEATS = 30
INTERVAL_SECONDS = 5.0
"""The default heartbeat, for which the request of CPU is meant."""

_WITHOUT_RICH = "import sys; sys.modules['rich'] = None"
"""structlog loads it wherever it is installed: beside the tools of the tests, and not in the image."""

_TEMPLATE = ROOT / "config/kubernetes/parts/pod-template.yaml"


@pytest.fixture
def granted() -> dict[str, float]:
    """What the component for Kubernetes asks for: MB of memory requested and at most, and CPU seconds a second."""
    (sidecar,) = yaml.safe_load(_TEMPLATE.read_text())["template"]["spec"]["containers"]
    resources = sidecar["resources"]
    return {
        "memory": int(resources["requests"]["memory"].removesuffix("Mi")),
        "most": int(resources["limits"]["memory"].removesuffix("Mi")),
        "cpu": int(resources["requests"]["cpu"].removesuffix("m")) / 1000,
    }


@pytest.fixture
async def full(new_sidecar: NewSidecar, start_vllm: StartVllm, tmp_path: Path) -> Sidecar:
    """A sidecar as in the image that has adopted 100 adapters and restored them once."""
    vllm = await start_vllm("--load-delay", "0.005", max_cpu_loras=ADAPTERS)
    sidecar = new_sidecar(vllm.url)
    as_in_the_image = {"PYTHONOPTIMIZE": "2", "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled")}
    as_in_the_image |= {name: "" for name in os.environ if name.startswith("COV")}
    # A process that compiles its modules itself is larger for good.
    await sidecar.start(prelude=_WITHOUT_RICH, environment=as_in_the_image | {"PYTHONDONTWRITEBYTECODE": ""})
    await sidecar.event("server.up")
    await sidecar.get("/metrics")
    await sidecar.terminate()
    await sidecar.start(prelude=_WITHOUT_RICH, environment=as_in_the_image)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        api = Api(session, vllm.url)
        for number in range(ADAPTERS):
            assert (await api.load(f"adapter-{number:03}", f"/adapters/adapter-{number:03}")).status == 200
    await sidecar.event("adapter.adopted", adapter=f"adapter-{ADAPTERS - 1:03}")
    await vllm.restart()
    recovery = await sidecar.event("recovery.completed")
    assert recovery["restored"] == ADAPTERS
    return sidecar


def _megabytes(sidecar: Sidecar, field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{sidecar.pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def _cpu_seconds(sidecar: Sidecar) -> float:
    fields = Path(f"/proc/{sidecar.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_what_the_manifests_ask_for(
    full: Sidecar, granted: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    """With 100 adapters that were all lost and restored, its memory and its idle CPU fit what the manifests ask for."""
    peak, now = _megabytes(full, "VmHWM"), _megabytes(full, "VmRSS")
    before = _cpu_seconds(full)
    await full.beats(BEATS)
    beat = (_cpu_seconds(full) - before) / BEATS
    idle = beat / INTERVAL_SECONDS

    with capsys.disabled():
        sys.stdout.write(f"\n{ADAPTERS} adapters: {now:.1f} MiB, at most {peak:.1f} MiB; ")
        sys.stdout.write(f"{beat * 1000:.1f} ms of CPU a heartbeat\n")
    assert now <= RSS_MOST < granted["memory"]
    assert peak < granted["most"] * 0.75
    assert idle < granted["cpu"]
