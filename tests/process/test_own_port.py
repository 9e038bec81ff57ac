"""A server's port that the kernel might give to an outgoing connection: looking for the server must not take it."""

from __future__ import annotations

import sys
from typing import Any

from tests.process.conftest import NewSidecar
from tests.support.programs import run

# Four ports for all outgoing connections, the server's among them; without care, one attempt in two connects to itself.
NARROW = """
import fcntl, os, socket, struct, sys
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
    file.write("40000 40003")
os.execvp(sys.argv[1], sys.argv[1:])
"""
LISTEN = """
import socket, sys
for port in (40000, 40002):
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
"""


async def test_server_away_whose_port_may_be_given_to_us(
    new_sidecar: NewSidecar, declared: list[dict[str, Any]]
) -> None:
    """However often it is looked for, a server that is away is seen as away, and may listen whenever it comes back."""
    servers = [{"name": f"vllm-{port}", "url": f"http://127.0.0.1:{port}"} for port in (40000, 40002)]
    sidecar = new_sidecar(
        "", declared, servers=servers, ops={"bind": "127.0.0.1:20001"}, control={"bind": "127.0.0.1:20002"}
    )
    await sidecar.start(wrap=("unshare", "--net", "--mount-proc", sys.executable, "-c", NARROW))
    await sidecar.event("heartbeat.completed", count=60)

    assert {one["reason"] for one in sidecar.named("probe.failed")} == {"refused"}
    assert sidecar.named("server.down") == []
    listening = await run("nsenter", "--net", f"--target={sidecar.pid}", sys.executable, "-c", LISTEN)
    assert listening == (0, "", "")
