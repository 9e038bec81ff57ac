from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.process.conftest import NewSidecar, StartVllm
from tests.support.http_client import Api
from tests.support.paths import ROOT
from tests.support.sidecar import Sidecar

ADAPTERS = 200
BEATS = 30
INTERVAL_SECONDS = 5.0
"""The default heartbeat, for which the request of CPU is meant."""

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
async def full(new_sidecar: NewSidecar, start_vllm: StartVllm) -> Sidecar:
    """A sidecar without a coverage measurement that has learned 200 adapters and restored them once."""
    vllm = await start_vllm("--load-delay", "0.005", max_cpu_loras=ADAPTERS)
    sidecar = new_sidecar(vllm.url)
    await sidecar.start(environment={name: "" for name in os.environ if name.startswith("COV")})
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
    """With 200 adapters that were all lost and restored, its memory and its idle CPU fit what the manifests ask for."""
    peak, now = _megabytes(full, "VmHWM"), _megabytes(full, "VmRSS")
    before = _cpu_seconds(full)
    await full.beats(BEATS)
    beat = (_cpu_seconds(full) - before) / BEATS
    idle = beat / INTERVAL_SECONDS

    with capsys.disabled():
        sys.stdout.write(f"\n{ADAPTERS} adapters: {now:.1f} MiB, at most {peak:.1f} MiB; ")
        sys.stdout.write(f"{beat * 1000:.1f} ms of CPU a heartbeat\n")
    assert now < granted["memory"]
    assert peak < granted["most"] * 0.75
    assert idle < granted["cpu"]


NOT_LOADED = frozenset(
    {
        "http.server",
        "lora_sidecar.cli.checkpoint",
        "lora_sidecar.cli.check",
        "lora_sidecar.cli.client",
        "lora_sidecar.demo",
        "lora_sidecar.cli.healthcheck",
        "prometheus_client",
        "tenacity",
        "xml",
    }
)
"""What a daemon has no use for as long as nothing goes wrong."""

OPENSSL = re.compile("libcrypto|libssl|/_hashlib|/_ssl")


def _maps(sidecar: Sidecar) -> str:
    return Path(f"/proc/{sidecar.pid}/maps").read_text()


async def _loaded(sidecar: Sidecar) -> tuple[set[str], str]:
    """Every module that a sidecar asks for over a restore and a look at each of its faces, and every file it maps."""
    sidecar.quiet = False
    measured = {name: "" for name in os.environ if name.startswith("COV")}
    await sidecar.start(environment={**measured, "PYTHONPROFILEIMPORTTIME": "1"})
    await sidecar.event("restore.completed")
    await sidecar.beats(2)
    for path in ("/livez", "/metrics", "/", "/status"):
        assert (await sidecar.get(path)).status == 200
    maps = _maps(sidecar)
    await sidecar.terminate()
    told = [line.rpartition("|")[2].strip() for line in sidecar.stderr.splitlines() if line.startswith("import time:")]
    return set(told), maps


async def test_a_daemon_loads_what_it_needs(
    new_sidecar: NewSidecar, start_vllm: StartVllm, declared: list[dict[str, Any]]
) -> None:
    """Each of these is up to 7 MB in every pod: OpenSSL without https, and what only commands and faults need."""
    vllm = await start_vllm()

    loaded, maps = await _loaded(new_sidecar(vllm.url, declared))

    assert {"asyncio", "aiohttp", "hashlib", "lora_sidecar.daemon"} <= loaded
    assert loaded & (NOT_LOADED | {"_ssl"}) == set()
    assert not OPENSSL.search(maps)


async def test_openssl_is_loaded_where_a_server_is_asked_over_tls(
    new_sidecar: NewSidecar, start_vllm: StartVllm, declared: list[dict[str, Any]]
) -> None:
    """One https url among the servers is enough, though nobody listens there."""
    vllm = await start_vllm()
    servers = [{"name": "vllm", "url": vllm.url}, {"name": "other", "url": "https://127.0.0.1:1"}]

    loaded, _ = await _loaded(new_sidecar("", declared, servers=servers))

    assert "_ssl" in loaded
