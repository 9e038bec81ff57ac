from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import trustme

from lora_sidecar.core.events import EventName
from lora_sidecar.reconcile.outage import Phase
from tests.fakes.vllm import FakeConfig, canned, hang
from tests.simulation.conftest import Pod, PodMaker

pytestmark = pytest.mark.looptime

SLOW = "heartbeat: {interval: 60s, liveness: 10m}"
METRICS = ("GET", "/metrics")
NO_METRICS = canned(404, {"detail": "Not Found"})


def over_tcp(folder: Path) -> dict[str, Any]:
    """A server on a port."""
    del folder
    return {}


def over_unix(folder: Path) -> dict[str, Any]:
    """A server on a unix socket."""
    return {"server": FakeConfig(check_files=False, uds=str(folder / "vllm.sock"))}


def over_tls(folder: Path) -> dict[str, Any]:
    """A server on a port, with a certificate."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    server = FakeConfig(check_files=False, ssl_certfile=str(folder / "cert.pem"), ssl_keyfile=str(folder / "key.pem"))
    return {"server": server, "ca": str(folder / "ca.pem")}


async def settled(pod: Pod, *names: str) -> None:
    """Load adapters as somebody else, and let them be seen while the silent connection is held."""
    for name in names:
        await pod.somebody_loads(name)
    pod.watch.trigger()
    await pod.until(lambda: len(pod.of(EventName.ADAPTER_ADOPTED)) == len(names), 6)
    for _ in range(2):
        pod.watch.trigger()
        await asyncio.sleep(0.5)


@pytest.mark.parametrize("over", [over_tcp, over_unix, over_tls])
async def test_a_death_is_known_at_once(make_pod: PodMaker, tmp_path: Path, over: Any) -> None:
    """With a heartbeat a minute, a killed server is known to be down within 20 ms."""
    async with make_pod(settings=SLOW, **over(tmp_path)) as pod:
        await settled(pod, "chat")
        died = pod.now
        await pod.server.kill()
        await pod.until(lambda: bool(pod.of(EventName.SERVER_DOWN)), 1)
        assert pod.of(EventName.SERVER_DOWN)[0].at - died <= 0.02


async def test_every_death_is_known_at_once_where_no_start_time_is_published(make_pod: PodMaker) -> None:
    """A connection that ended with the server was not closed by a server that closes silent ones."""
    async with make_pod(settings=SLOW) as pod:
        pod.server.override(*METRICS, NO_METRICS, times=None)
        await settled(pod, "chat")
        for deaths in range(4):
            died = pod.now
            await pod.server.kill()
            await pod.until(lambda deaths=deaths: len(pod.of(EventName.SERVER_DOWN)) > deaths, 1)
            assert pod.of(EventName.SERVER_DOWN)[-1].at - died <= 0.02
            await asyncio.sleep(1)
            await pod.server.start()
            pod.server.override(*METRICS, NO_METRICS, times=None)
            await pod.until_listed("chat", within=5)
            pod.watch.trigger()
            await asyncio.sleep(0.5)


async def test_a_server_that_answers_a_little_longer_is_looked_at_again(make_pod: PodMaker) -> None:
    """A server that is told to stop closes the silent connection first: the look that finds it well is not the last."""
    async with make_pod(settings=SLOW, patience=30) as pod:
        await settled(pod, "chat")
        await pod.until(lambda: pod.proxy.silent == 1, 60)
        await asyncio.sleep(0.05)
        await pod.server.kill()
        await pod.until(lambda: bool(pod.of(EventName.SERVER_DOWN)), 1)


async def test_unloading_everything_in_one_life_is_deliberate(make_pod: PodMaker) -> None:
    """Where the server publishes no start time, the connection proves the same life: nothing is loaded again."""
    async with make_pod(settings="policy: {on_external_unload: forget}") as pod:
        pod.server.override(*METRICS, NO_METRICS, times=None)
        await settled(pod, "a", "b", "c")
        for name in ("a", "b", "c"):
            pod.somebody_unloads(name)
        await pod.until(lambda: len(pod.of(EventName.ADAPTER_FORGOTTEN)) == 3, 12)
        await asyncio.sleep(60)
        assert {one.fields["evidence"] for one in pod.of(EventName.ADAPTER_FORGOTTEN)} == {"silent_connection"}
        assert pod.loads() == []


async def test_a_restart_without_a_start_time_is_a_restart(make_pod: PodMaker) -> None:
    """A restart that no heartbeat saw ends the connection, and everything comes back."""
    async with make_pod(settings=SLOW) as pod:
        pod.server.override(*METRICS, NO_METRICS, times=None)
        await settled(pod, "a", "b")
        await pod.server.restart()
        pod.server.override(*METRICS, NO_METRICS, times=None)
        await pod.until_listed("a", "b", within=3)
        assert pod.of(EventName.ADAPTER_FORGOTTEN) == []


async def test_an_unload_while_the_server_was_too_busy_to_answer(make_pod: PodMaker) -> None:
    """Timeouts without an end of the connection are no outage: what was unloaded meanwhile stays unloaded."""
    settings = "heartbeat: {probe_timeout: 500ms, down_after_timeouts: 2}"
    async with make_pod(settings=settings) as pod:
        pod.server.override(*METRICS, NO_METRICS, times=None)
        await settled(pod, "a", "b")
        pod.server.override("GET", "/health", hang, times=4)
        await pod.until(lambda: pod.status.work.server.phase is Phase.DOWN, 20)
        pod.somebody_unloads("a")
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_FORGOTTEN)), 30)
        await asyncio.sleep(30)
        assert pod.of(EventName.SERVER_RESTARTED) == []
        assert pod.loads() == []


async def test_a_server_that_closes_silent_connections_is_left_alone(make_pod: PodMaker) -> None:
    """Two that a living server closed by itself are enough: no more are opened, and nothing is said."""
    async with make_pod(patience=7) as pod:
        await settled(pod, "chat")
        told = len(pod.happened)
        await asyncio.sleep(120)
        assert pod.proxy.silent == 2
        assert [one.event for one in pod.happened[told:] if one.event is not EventName.HEARTBEAT_COMPLETED] == []
        await pod.server.restart()
        await pod.until_listed("chat", within=6)
        await asyncio.sleep(120)
        assert pod.proxy.silent == 2


async def test_a_connection_that_outlives_the_server_proves_nothing(make_pod: PodMaker) -> None:
    """A proxy keeps it open across a restart: the start time decides, and the connection is believed no more."""
    async with make_pod(patience=None) as pod:
        await settled(pod, "a", "b")
        await pod.server.restart()
        await pod.until_listed("a", "b", within=6)
        await asyncio.sleep(12)
        pod.server.override(*METRICS, NO_METRICS, times=None)
        for name in ("a", "b"):
            pod.somebody_unloads(name)
        await pod.until_listed("a", "b", within=12)
        assert pod.of(EventName.ADAPTER_FORGOTTEN) == []
