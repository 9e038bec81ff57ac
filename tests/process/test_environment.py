from __future__ import annotations

import asyncio
import os
import resource
import signal
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from lora_sidecar.threads import IDLE
from tests.process.conftest import NewSidecar, StartVllm
from tests.support.http_client import Api, Reply
from tests.support.servers import RunningServer, free_port
from tests.support.sidecar import TELL_TASKS, Sidecar, eventually

REQUIRED = [{"name": "one", "path": "/adapters/one", "required": True}]


async def test_proxy_variables(new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]) -> None:
    """Proxy variables of the pod's environment are ignored: nothing goes anywhere but to the server."""
    callers: list[asyncio.StreamWriter] = []
    proxy = await asyncio.start_server(lambda _, writer: callers.append(writer), "127.0.0.1", 0)
    address = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    names = ("http_proxy", "https_proxy", "all_proxy")
    async with proxy:
        sidecar = new_sidecar(vllm.url, declared)
        await sidecar.start(environment=dict.fromkeys((*names, *map(str.upper, names)), address) | {"no_proxy": ""})
        await sidecar.event("restore.completed")
        await sidecar.beats(2)

    assert callers == []


async def test_stdout_not_open(new_sidecar: NewSidecar, vllm: RunningServer, api: Api) -> None:
    """Started without a standard output, it does its work all the same."""
    port = free_port()
    sidecar = new_sidecar(vllm.url, REQUIRED, ops={"bind": f"127.0.0.1:{port}"})
    await sidecar.start(wrap=("sh", "-c", 'exec "$@" >&-', "sh"), stdout=asyncio.subprocess.DEVNULL)

    await eventually(lambda: _ready(port), "ready")

    assert "one" in await api.listed()
    assert (await sidecar.terminate()).status == 0


async def test_reader_of_the_log_dies(
    new_sidecar: NewSidecar, vllm: RunningServer, session: aiohttp.ClientSession
) -> None:
    """A pipe whose reader has gone ends neither the process nor its heartbeat."""
    port = free_port()
    sidecar = new_sidecar(vllm.url, REQUIRED, ops={"bind": f"127.0.0.1:{port}"})
    reader, writer = os.pipe()
    await sidecar.start(stdout=writer)
    os.close(writer)
    os.close(reader)

    await eventually(lambda: _ready(port), "ready")
    await vllm.restart()
    await eventually(lambda: _lists(Api(session, vllm.url), "one"), "the adapter is restored")

    assert (await sidecar.terminate()).status == 0


class FullPipe:
    """A pipe as a hung log collector leaves it: open, full, and read by nobody until it is drained."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.writer = os.open(path, os.O_WRONLY)
        filler = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            while True:
                os.write(filler, b"#" * 4095 + b"\n")
        except BlockingIOError:
            os.close(filler)

    def read(self) -> bytes:
        """What can be read at once, nothing if there is nothing."""
        try:
            return os.read(self._reader, 1 << 20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self.writer)


async def test_log_is_not_read(
    new_sidecar: NewSidecar, vllm: RunningServer, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A full pipe stops neither the heartbeat nor a recovery; what was queued is written once the pipe is read."""
    port = free_port()
    sidecar = new_sidecar(vllm.url, REQUIRED, ops={"bind": f"127.0.0.1:{port}"})
    pipe = FullPipe(tmp_path / "pipe")
    await sidecar.start(stdout=pipe.writer)

    await eventually(lambda: _ready(port), "ready")
    await vllm.restart()
    await eventually(lambda: _lists(Api(session, vllm.url), "one"), "the adapter is restored")
    async with aiohttp.ClientSession() as client:
        assert (await Api(client, f"http://127.0.0.1:{port}").get("/livez")).status == 200

    said = bytearray()

    async def look() -> bool:
        said.extend(pipe.read())
        return b'"recovery.completed"' in said

    await eventually(look, "the recovery is in the log")
    assert b'"daemon.started"' in said
    assert (await sidecar.terminate()).status == 0
    pipe.close()


async def test_log_is_not_read_at_the_end(new_sidecar: NewSidecar, vllm: RunningServer, tmp_path: Path) -> None:
    """A full pipe does not keep the process from ending."""
    port = free_port()
    sidecar = new_sidecar(vllm.url, ops={"bind": f"127.0.0.1:{port}"})
    pipe = FullPipe(tmp_path / "pipe")
    await sidecar.start(stdout=pipe.writer)
    await eventually(lambda: _ready(port), "ready")

    ending = await sidecar.terminate()

    assert (ending.status, ending.seconds < 5) == (0, True)
    pipe.close()


async def _ready(port: int) -> bool:
    async with aiohttp.ClientSession() as session:
        reply: Reply = await Api(session, f"http://127.0.0.1:{port}").get("/readyz")
        return reply.status == 200


async def _lists(api: Api, *names: str) -> bool:
    return set(names) <= (await api.listed()).keys()


async def test_out_of_file_descriptors(sidecar: Sidecar, vllm: RunningServer, api: Api) -> None:
    """Without a descriptor left nothing is known and nothing is forgotten; with new ones it goes on as before."""
    await sidecar.event("restore.completed")
    await sidecar.beats(2)
    _, hard = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{sidecar.pid}/fd"))  # noqa: PTH208 - names suffice

    resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (used, hard))
    failed = await sidecar.event("probe.failed", reason="local")
    await sidecar.beats(3, verdict="unknown")
    await vllm.restart()
    resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (hard, hard))
    await sidecar.event("recovery.completed", lost=3, restored=3)

    assert "descriptors" in failed["hint"]
    assert sorted(await api.listed()) == ["one", "three", "two"]
    await sidecar.answers("/readyz", 200)
    assert sidecar.named("adapter.forgotten") == []


async def test_few_file_descriptors_from_the_start(
    new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]
) -> None:
    """A small limit of descriptors is enough for a working sidecar."""
    sidecar = new_sidecar(vllm.url, declared)
    await sidecar.start(wrap=("prlimit", "--nofile=24"))
    await sidecar.event("restore.completed")
    await sidecar.answers("/readyz", 200)


async def test_nothing_leaks(new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]) -> None:
    """Over a hundred heartbeats with outages, reloads and scrapes, descriptors, threads and tasks stay as they were."""
    sidecar = new_sidecar(vllm.url, declared, heartbeat={"interval": "100ms", "away_interval": "10ms"})
    await sidecar.start(prelude=TELL_TASKS + "\nfrom lora_sidecar import reload\nreload.POLL_SECONDS = 0.01\n")
    await sidecar.event("restore.completed")
    await sidecar.beats(5)
    before = await _held(sidecar)
    assert min(before) > 0

    for _ in range(3):
        await vllm.sigkill_all()
        await sidecar.beats(30, verdict="unknown")
        vllm.start()
        mark = sidecar.mark()
        await sidecar.event("recovery.completed", since=mark)
        await asyncio.gather(*(sidecar.get("/metrics") for _ in range(10)))
    await sidecar.beats(5, verdict="steady")

    async def look() -> bool:
        return await _held(sidecar) == before

    await eventually(look, f"as many descriptors, threads and tasks as before: {before}")


async def _held(sidecar: Sidecar) -> tuple[int, int, int]:
    """The least of several counts of descriptors, threads and tasks: what is there for good, and not just passing."""
    process = Path(f"/proc/{sidecar.pid}")
    counts: list[tuple[int, int, int]] = []
    for _ in range(10):
        tasks = int((await sidecar.get("/metrics")).text.split()[1])
        # The thread that wrote them stays a moment, for it may be needed again.
        await asyncio.sleep(2 * IDLE)
        counts.append((_entries(process / "fd"), _entries(process / "task"), tasks))
    files, threads, running = zip(*counts, strict=True)
    return min(files), min(threads), min(running)


def _entries(folder: Path) -> int:
    return len(os.listdir(folder))  # noqa: PTH208 - names suffice


async def test_api_key_rotates(
    new_sidecar: NewSidecar, start_vllm: StartVllm, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A key that is replaced in its mounted file is used from the next heartbeat on; a wrong one changes nothing."""
    vllm = await start_vllm("--api-key", "former-key", "--api-key", "later-key")
    key = tmp_path / "key"
    key.write_text("former-key\n")
    servers = [{"name": "vllm", "url": vllm.url, "api_key_file": str(key)}]
    sidecar = new_sidecar("", [{"name": "one", "path": "/adapters/one"}], servers=servers)
    await sidecar.start()
    await sidecar.event("restore.completed")

    key.write_text("wrong-key")
    failed = await sidecar.event("probe.failed", reason="unauthorized")
    assert "api_key_file" in failed["hint"]
    key.unlink()
    await sidecar.event("probe.failed", reason="key_unreadable")
    key.write_text("later-key")
    mark = sidecar.mark()
    await sidecar.event("server.up", since=mark)
    await sidecar.beats(2, verdict="steady")

    assert await Api(session, vllm.url, "later-key").listed() == {"one": "/adapters/one"}
    assert sidecar.named("restore.started", since=mark) == []
    assert not any(secret in sidecar.log for secret in ("former-key", "later-key", "wrong-key"))


async def test_unix_socket(
    new_sidecar: NewSidecar, start_vllm: StartVllm, tmp_path: Path, declared: list[dict[str, Any]]
) -> None:
    """A server behind a unix socket is guarded as any other, also where the socket's file is gone meanwhile."""
    vllm = await start_vllm(uds=tmp_path / "vllm.sock")
    sidecar = new_sidecar(vllm.url, declared)
    await sidecar.start()
    await sidecar.event("restore.completed")

    await vllm.restart()
    recovery = await sidecar.event("recovery.completed")

    assert (recovery["lost"], recovery["restored"]) == (3, 3)


class Certificates:
    """A certificate authority of the test's own, with a server's and a client's certificate."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.authority = trustme.CA()
        self.ca, self.server, self.client, self.client_key = (
            folder / name for name in ("ca.pem", "server.pem", "client.pem", "client.key")
        )
        self.authority.cert_pem.write_to_path(self.ca)
        self.authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self.server)
        client = self.authority.issue_cert("sidecar.example")
        client.cert_chain_pems[0].write_to_path(self.client)
        client.private_key_pem.write_to_path(self.client_key)

    @property
    def flags(self) -> tuple[str, ...]:
        """How a server is started with them, asking clients for one."""
        return ("--ssl-certfile", str(self.server), "--ssl-keyfile", str(self.server), "--ssl-ca-certs", str(self.ca))

    def context(self) -> ssl.SSLContext:
        """What a client of such a server needs."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.client, self.client_key)
        return context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """Certificates that nothing else trusts."""
    return Certificates(tmp_path / "certificates")


@pytest.fixture
async def secured(start_vllm: StartVllm, certificates: Certificates) -> RunningServer:
    """A server behind TLS that asks its clients for a certificate."""
    return await start_vllm(flags=certificates.flags)


async def test_own_authority_and_mutual_tls(
    new_sidecar: NewSidecar, secured: RunningServer, certificates: Certificates, declared: list[dict[str, Any]]
) -> None:
    """With the pod's own authority and a client's certificate, a server behind TLS is guarded as any other."""
    tls = {
        "ca_file": str(certificates.ca),
        "cert_file": str(certificates.client),
        "key_file": str(certificates.client_key),
    }
    sidecar = new_sidecar("", declared, servers=[{"name": "vllm", "url": secured.url, "tls": tls}])
    await sidecar.start()
    await sidecar.event("restore.completed")

    await secured.restart()
    recovery = await sidecar.event("recovery.completed")

    assert (recovery["lost"], recovery["restored"]) == (3, 3)
    ending = await sidecar.terminate(signal.SIGTERM)
    assert (ending.status, ending.seconds < 1) == (0, True)


async def test_unknown_authority(new_sidecar: NewSidecar, secured: RunningServer) -> None:
    """A server whose certificate nobody vouches for is not trusted, and the log says which setting to look at."""
    sidecar = new_sidecar(secured.url, [{"name": "one", "path": "/adapters/one", "required": True}])
    await sidecar.start()
    failed = await sidecar.event("probe.failed", reason="tls")
    await sidecar.beats(3, verdict="unknown")

    assert "servers[].tls" in failed["hint"]
    assert sidecar.named("restore.started") == []
    await sidecar.answers("/readyz", 503)


async def test_certificate_of_ours_missing(
    new_sidecar: NewSidecar, secured: RunningServer, certificates: Certificates
) -> None:
    """A server that asks for a certificate and gets none is never taken for one without adapters."""
    servers = [{"name": "vllm", "url": secured.url, "tls": {"ca_file": str(certificates.ca)}}]
    sidecar = new_sidecar("", [{"name": "one", "path": "/adapters/one", "required": True}], servers=servers)
    await sidecar.start()

    failed = await sidecar.event("probe.failed")
    await sidecar.beats(3, verdict="unknown")

    # With TLS 1.3 the refusal may come as an alert or as the end of the connection.
    assert failed["reason"] in {"tls", "reset"}
    assert sidecar.named("restore.started") == []
    await sidecar.answers("/readyz", 503)
