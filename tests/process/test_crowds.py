"""Whoever reaches a port of the sidecar can be rude to it: what is restored, and who asks properly, does not suffer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.process.conftest import NewSidecar
from tests.support.servers import RunningServer
from tests.support.sidecar import Sidecar

DESCRIPTORS = 256
GROWTH_MB = 48


@asynccontextmanager
async def crowd(url: str, idle: int, unfinished: int) -> AsyncIterator[None]:
    """Clients that connect and say nothing, and clients whose head does not end, as long as they are let."""
    host, _, port = url.removeprefix("http://").rpartition(":")

    async def say(what: bytes) -> None:
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection(host, int(port))
                try:
                    writer.write(b"GET /livez HTTP/1.1\r\n" if what else b"")
                    while not writer.transport.is_closing():
                        writer.write(what)
                        await writer.drain()
                        await asyncio.sleep(0.02 if what else 1)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.2)

    line = b"X-More: " + b"m" * 8000 + b"\r\n"
    talkers = [asyncio.create_task(say(what)) for what in [b""] * idle + [line] * unfinished]
    await asyncio.sleep(1)
    try:
        yield
    finally:
        for talker in talkers:
            talker.cancel()
        await asyncio.gather(*talkers, return_exceptions=True)


def _peak_megabytes(sidecar: Sidecar) -> float:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{sidecar.pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


@pytest.mark.parametrize("port", ["ops", "control"])
async def test_a_crowd_on_a_port_holds_up_nothing(
    new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]], port: str
) -> None:
    """With more idle sockets than descriptors and heads without end, probes are answered and a restart is made good."""
    sidecar = new_sidecar(vllm.url, declared)
    sidecar.quiet = False
    await sidecar.start(wrap=("prlimit", f"--nofile={DESCRIPTORS}"))
    await sidecar.answers("/readyz", 200)
    assert (await sidecar.get("/")).status == 200
    before = _peak_megabytes(sidecar)
    url = await sidecar.ops_url() if port == "ops" else await sidecar.control_url()

    async with crowd(url, idle=2 * DESCRIPTORS, unfinished=80):
        mark = sidecar.mark()
        await vllm.restart()
        await sidecar.event("recovery.completed", since=mark)
        await sidecar.answers("/readyz", 200)
        for path in ("/livez", "/metrics", "/status"):
            assert (await sidecar.get(path, within=5)).status == 200

    assert sidecar.stderr.count("out of system resource") <= 1
    assert not [one for one in sidecar.named("probe.failed", since=mark) if one["reason"] == "local"]
    assert _peak_megabytes(sidecar) - before < GROWTH_MB
