"""Asks the sidecar on this host whether it is alive, for Docker's HEALTHCHECK: an image without a shell has no curl.

The trap guarded against is a check that asks somebody else: the address is the one that the config gives to the ops
port, asked on loopback where that is any address, and through no proxy.
"""

from __future__ import annotations

import http.client
from typing import Final

from msgspec import Struct

from lora_sidecar.config.values import Fault, reachable, split_bind

TIMEOUT_SECONDS: Final = 4.0
"""Docker waits 5 s in the image's HEALTHCHECK: the reason must be told before that."""

_LONGEST: Final = 4096


class Health(Struct, frozen=True):
    """The answer. `text` is one line or more for people, without a newline at the end."""

    alive: bool
    text: str


def ask(bind: str) -> Health:
    """Ask `/livez` of the ops port that listens on `bind`, which is host:port. Blocks for up to 4 s."""
    match split_bind(bind):
        case Fault() as fault:
            return Health(alive=False, text=f"ops.bind {bind} {fault.rule}")
        case (_, 0):
            return Health(alive=False, text=f"ops.bind {bind}: the kernel chooses the port, which is not known here")
        case (host, port):
            return _ask(reachable(host), port)


def _ask(host: str, port: int) -> Health:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/livez")
        reply = connection.getresponse()
        text = reply.read(_LONGEST).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return Health(alive=False, text=f"ask http://{host}:{port}/livez: {error!r}")
    finally:
        connection.close()
    return Health(alive=reply.status == http.client.OK, text=text)
