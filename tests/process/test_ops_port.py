from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lora_sidecar.config.process import OpsConfig
from tests.process.conftest import NewSidecar, StartVllm
from tests.support.servers import RunningServer, free_port
from tests.support.sidecar import Sidecar, eventually

STRICT = {
    "heartbeat": {
        "interval": "100ms",
        "away_interval": "50ms",
        "probe_timeout": "200ms",
        "list_timeout": "200ms",
        "liveness": "1s",
    },
    "checkpoint": {"timeout": "200ms"},
}
"""The tightest liveness that a config may ask for."""


class Scrape:
    """One scrape, parsed."""

    def __init__(self, text: str) -> None:
        self._samples = [s for family in text_string_to_metric_families(text) for s in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The value of the one sample of that name whose labels have these values."""
        (value,) = [
            sample.value
            for sample in self._samples
            if sample.name == f"lora_sidecar_{name}" and sample.labels == {"server": "vllm"} | labels
        ]
        return value


async def scrape(sidecar: Sidecar) -> Scrape:
    """Scrape once."""
    return Scrape((await sidecar.get("/metrics")).text)


async def test_readiness_through_an_outage(sidecar: Sidecar, vllm: RunningServer) -> None:
    """Ready while every required adapter is listed, and at no moment of an outage; alive all the time."""
    await sidecar.event("restore.completed")
    assert (await sidecar.answers("/readyz", 200)).text == "ok\n"

    await vllm.sigkill_all()
    await sidecar.event("server.down")
    away = await sidecar.answers("/readyz", 503)
    assert away.text == "not ok\nvllm: adapter two is unknown: the server is down\n"
    assert (await sidecar.get("/livez")).status == 200
    vllm.start()
    await sidecar.event("recovery.completed")
    await sidecar.answers("/readyz", 200)


async def test_readiness_waits_for_required_adapters_only(new_sidecar: NewSidecar, start_vllm: StartVllm) -> None:
    """A broken adapter takes the pod out of service only where it is required, and the answer names it and why."""
    vllm = await start_vllm(check_files=True)
    broken = {"name": "broken", "path": "/does/not/exist"}
    lenient = new_sidecar(vllm.url, [broken])
    strict = new_sidecar(vllm.url, [broken | {"required": True}])
    await asyncio.gather(lenient.start(), strict.start())
    await lenient.event("restore.failed")
    await strict.event("restore.failed")

    assert (await lenient.answers("/readyz", 200)).text == "ok\n"
    waits = await strict.answers("/readyz", 503, "adapter broken is backoff")
    assert "No adapter found for /does/not/exist" in waits.text
    assert "condition AdapterFailing" in (await lenient.answers("/readyz?verbose", 200)).text


async def test_without_a_server(new_sidecar: NewSidecar, declared: list[dict[str, Any]]) -> None:
    """With a server that never came, the sidecar is alive and not ready, and says what it waits for."""
    sidecar = new_sidecar(f"http://127.0.0.1:{free_port()}", declared)
    await sidecar.start()
    await sidecar.beats(3)

    assert (await sidecar.get("/livez")).status == 200
    assert "adapter two is unknown: the server is starting" in (await sidecar.answers("/readyz", 503)).text


async def test_metrics(sidecar: Sidecar, vllm: RunningServer) -> None:
    """The metrics parse, count what happened, and show nothing as 1 that is not known."""
    await sidecar.event("restore.completed")
    await sidecar.beats(2, verdict="steady")
    reply = await sidecar.get("/metrics")
    up = Scrape(reply.text)

    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert up("server_up") == 1
    assert up("server_incarnation") == 1
    assert up("adapters", state="listed") == 3
    assert up("adapter_state", adapter="two", state="listed") == 1
    assert up("restores_total", result="succeeded") == 3
    assert up("checkpoint_generation") >= 1
    assert 0 <= up("heartbeat_age_seconds") < 10

    await vllm.sigkill_all()
    await sidecar.event("server.down")
    await sidecar.beats(2)
    down = await scrape(sidecar)
    assert down("server_up") == 0
    assert {down("adapter_state", adapter=name, state="listed") for name in ("one", "two", "three")} == {0}
    assert (down("adapters", state="listed"), down("adapters", state="unknown")) == (0, 3)
    assert down("outages_total") == 1

    vllm.start()
    await sidecar.event("recovery.completed")
    after = await scrape(sidecar)
    assert after("restarts_total") == 1
    assert after("recovery_duration_seconds_count") == 1


async def test_other_paths(sidecar: Sidecar) -> None:
    """What the ops port does not have is a 404, and it takes no other method."""
    assert (await sidecar.get("/favicon.ico")).status == 404
    async with aiohttp.ClientSession() as session, session.post(await sidecar.ops_url() + "/livez") as reply:
        assert reply.status == 405


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET / HTTP/9.9\r\n\r\n",
        b"G" * 100_000,
        b"\r\n" * 1000,
        b"GET /livez HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_garbage_on_the_port(sidecar: Sidecar, garbage: bytes) -> None:
    """A port scanner or a TLS client gets nowhere, and leaves no trace on stderr."""
    host, _, port = (await sidecar.ops_url()).removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(garbage)

    assert (await sidecar.get("/livez")).status == 200


async def test_process_stands_still(
    new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]
) -> None:
    """While the event loop stalls the liveness probe fails; once it runs again the probe recovers by itself."""
    sidecar = new_sidecar(vllm.url, declared, **STRICT)
    await sidecar.start()
    await sidecar.event("restore.completed")
    assert (await sidecar.get("/livez")).status == 200

    sidecar.send(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        await sidecar.get("/livez", within=1.2)
    sidecar.send(signal.SIGCONT)

    await sidecar.answers("/livez", 200)
    await sidecar.beats(2, verdict="steady")


async def test_heartbeat_that_hangs(
    new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]
) -> None:
    """A heartbeat that never ends fails the liveness probe, though the loop runs; its end mends it."""
    sidecar = new_sidecar(vllm.url, declared, **STRICT)
    await sidecar.start(
        prelude="""
import asyncio, signal
from lora_sidecar.checkpoint.manager import CheckpointManager
keep = CheckpointManager.keep
hung = False
async def hanging(self, desired, **more):
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, toggle)
    while hung:
        await asyncio.sleep(0.05)
    return await keep(self, desired, **more)
def toggle():
    global hung
    hung = not hung
CheckpointManager.keep = hanging
"""
    )
    await sidecar.event("restore.completed")
    sidecar.send(signal.SIGUSR1)

    failing = await sidecar.answers("/livez", 503)
    assert "vllm: the last heartbeat ended 1." in failing.text
    assert "the limit is 1 s" in failing.text
    sidecar.send(signal.SIGUSR1)
    await sidecar.answers("/livez", 200)


async def test_first_heartbeat_that_hangs(new_sidecar: NewSidecar, vllm: RunningServer) -> None:
    """A start that gets stuck fails the liveness probe as well."""
    sidecar = new_sidecar(vllm.url, **STRICT)
    await sidecar.start(
        prelude="""
import asyncio
from lora_sidecar.checkpoint.manager import CheckpointManager
async def hanging(self, desired, **more):
    await asyncio.Event().wait()
CheckpointManager.keep = hanging
"""
    )
    assert (await sidecar.get("/livez")).status == 200

    assert "no heartbeat has ended within" in (await sidecar.answers("/livez", 503)).text


async def test_many_scrapes_at_once(sidecar: Sidecar) -> None:
    """A hundred readers at once are all answered, and the heartbeat goes on."""
    await sidecar.answers("/readyz", 200)

    replies = await asyncio.gather(*(sidecar.get(path) for path in ("/metrics", "/readyz?verbose") * 50))

    assert {reply.status for reply in replies} == {200}
    await sidecar.beats(2, verdict="steady")


async def test_ipv6(new_sidecar: NewSidecar, vllm: RunningServer) -> None:
    """The ops port can be an IPv6 address."""
    sidecar = new_sidecar(vllm.url, ops={"bind": "[::1]:0"})
    await sidecar.start()
    loaded = await sidecar.event("config.loaded")
    port = loaded["ops"][0].rpartition(":")[2]

    async def look() -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"http://[::1]:{port}/livez") as reply:
            return reply.status == 200

    await eventually(look, "/livez answers on ::1")
    assert loaded["ops"] == [f"[::1]:{port}"]


@pytest.mark.parametrize("bind", [OpsConfig().bind.replace("9400", "0"), "0.0.0.0:0", "[::]:0"])
async def test_every_address_is_of_both_families(new_sidecar: NewSidecar, vllm: RunningServer, bind: str) -> None:
    """The pod's probes ask whichever address it has: IPv4 in one cluster, IPv6 in another."""
    sidecar = new_sidecar(vllm.url, ops={"bind": bind})
    await sidecar.start()
    loaded = await sidecar.event("config.loaded")
    port = loaded["ops"][0].rpartition(":")[2]
    async with aiohttp.ClientSession() as session:
        for host in ("127.0.0.1", "[::1]"):
            async with session.get(f"http://{host}:{port}/livez") as reply:
                assert reply.status == 200
