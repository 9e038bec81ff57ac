"""Sockets towards a server that never take the place at which it listens.

The trap guarded against is the watchdog that keeps its server down. Where a server's port lies in the range from which
the kernel gives ports to outgoing connections, an attempt while nobody listens may be given that very port, and is
then connected to itself. For a minute after its end nobody can listen there ("Address already in use", Linux 6.18), so
the server that comes back dies at its start; and while it is away we look ten times a second.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

from aiohttp import AddrInfoType

_TRIES: Final = 8
_ANY: Final = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}


def outgoing(to: AddrInfoType) -> socket.socket:
    """A socket to be connected to a TCP address, which has a port of its own. Raises `OSError` without descriptors."""
    made = _bound(to)
    for _ in range(_TRIES):
        if made.getsockname()[1] != to[4][1]:
            break
        made.close()
        made = _bound(to)
    # What is left of it after its end, no server that comes to listen on its port is kept from.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


def _bound(to: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = to
    made = socket.socket(family, kind, protocol)
    # Where every port is in use towards somebody, the kernel may still find one that is free towards the server.
    with suppress(OSError):
        made.bind((_ANY[socket.AddressFamily(family)], 0))
    return made
