from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from lora_sidecar.config.load import parse
from lora_sidecar.controller import ServerController
from lora_sidecar.core.model import Adapter, Origin
from lora_sidecar.core.observation import Observed, Reason, Unknown
from lora_sidecar.core.outcomes import Accepted
from lora_sidecar.engines.vllm import Vllm
from tests.faults.rude import RudeServer, Writer, http, listing

SQL = Adapter("sql", "/adapters/sql", Origin.DECLARED)
SETTINGS = "heartbeat: {probe_timeout: 500ms, list_timeout: 500ms}\nrestore: {timeout: 1s}\n"


def client(url: str) -> Vllm:
    """A client of a server at this url."""
    config = parse(f"servers: [{{name: vllm, url: '{url}'}}]\n{SETTINGS}".encode(), "sidecar.yaml")
    return Vllm(config.servers[0], config, asyncio.get_running_loop().time)


async def test_no_connection_is_used_twice(rude: RudeServer, engine: Vllm) -> None:
    """A server may close an idle connection just as a load is written to it; so each of 1,000 loads has its own."""
    await engine.observe(None)
    rude.requests.clear()
    for _ in range(1000):
        assert await engine.load(SQL) == Accepted()
    assert len(rude.requests) == 1000
    assert rude.kept == 0


async def test_an_answer_after_the_deadline_is_left_unread(rude: RudeServer, watch: ServerController) -> None:
    """What comes after the deadline is nobody's: the next heartbeat goes by an answer of its own."""
    before = (await watch.heartbeat()).desired

    async def late(writer: Writer) -> None:
        await asyncio.sleep(0.9)
        writer.write(http(200, listing("sql", "other")))

    rude.misbehave("/v1/models", late)
    plan = await watch.heartbeat()
    assert plan.state.server.reason is Reason.TIMEOUT
    await asyncio.sleep(0.5)
    rude.behave("/v1/models")
    plan = await watch.heartbeat()
    assert plan.state.server.reason is None
    assert plan.desired.adapters == before.adapters


async def test_a_name_that_does_not_resolve_and_then_does(rude: RudeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is unreachable as long as its name is unknown, and found within seconds of the record."""
    port = rude.url.rsplit(":", 1)[1]
    known = False
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "vllm.pod.test":
            if not known:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            host = "127.0.0.1"
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    engine = client(f"http://vllm.pod.test:{port}")
    try:
        seen = await engine.observe(None)
        assert isinstance(seen, Unknown)
        assert seen.reason is Reason.UNREACHABLE
        known = True
        seen = await engine.observe(None)
        if isinstance(seen, Unknown):
            # An answer of the resolver may be kept for so long, a failure of it too.
            await asyncio.sleep(10.5)
            seen = await engine.observe(None)
        assert isinstance(seen, Observed)
    finally:
        await engine.close()


async def test_localhost_that_is_looked_for_on_ipv6_first(rude: RudeServer) -> None:
    """A server that listens on 127.0.0.1 alone is found under localhost, whichever address the resolver gives first."""
    engine = client(f"http://localhost:{rude.url.rsplit(':', 1)[1]}")
    try:
        assert isinstance(await engine.observe(None), Observed)
    finally:
        await engine.close()


async def test_a_peer_that_accepts_and_vanishes(watch: ServerController, rude: RudeServer, tmp_path: Path) -> None:
    """A half-open connection ends at the deadline, and the next heartbeat has one of its own."""
    del tmp_path
    before = (await watch.heartbeat()).desired

    async def vanish(writer: Writer) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport has it
        await asyncio.sleep(30)

    rude.misbehave("/health", vanish)
    plan = await watch.heartbeat()
    assert (plan.state.server.reason, plan.desired) == (Reason.TIMEOUT, before)
    rude.behave("/health")
    assert (await watch.heartbeat()).state.server.reason is None
