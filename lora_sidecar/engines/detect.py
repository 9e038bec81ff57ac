"""Finds out which engine serves at an address, and returns its client.

Two traps are guarded against. A load sent on the strength of a default to a server that is something else; so with
`engine: auto` nothing is sent but GETs until the server has said what it is, and while it does not say, nothing is
known and nothing is loaded. And an answer that outlives the server that gave it: another image may be started in the
container; so the question is asked again after everything that may have been a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from lora_sidecar.config.inventory import ServerConfig
from lora_sidecar.config.settings import Config
from lora_sidecar.core.events import Event, EventName, info
from lora_sidecar.core.observation import Reason, Unknown
from lora_sidecar.engines.base import Engine
from lora_sidecar.engines.failures import refusal, unknown, unlisted
from lora_sidecar.engines.http import Reply, RequestError, Transport
from lora_sidecar.engines.identity import Identity, Kind, by_model_info, by_owner, by_version
from lora_sidecar.engines.listing import BadListing, decode_listing
from lora_sidecar.engines.sglang import Sglang
from lora_sidecar.engines.vllm import Vllm

Make = Callable[[ServerConfig, Config, Callable[[], float]], Engine]

CLIENTS: Final[Mapping[Kind, Make]] = MappingProxyType({Kind.VLLM: Vllm, Kind.SGLANG: Sglang})


class Detector:
    """What serves at one server's address. To be used in a running loop; `close` it in the end."""

    def __init__(
        self,
        server: ServerConfig,
        config: Config,
        now: Callable[[], float],
        report: Callable[[Event], None],
        makers: Mapping[Kind, Make] = CLIENTS,
    ) -> None:
        """`report` takes the event of an engine that was found; `makers` make the clients.

        Raises `SidecarError` where the certificates that `server` names are unusable.
        """
        self._server = server
        self._config = config
        self._now = now
        self._report = report
        self._makers = makers
        self._clients: dict[Kind, Engine] = {}
        self._found: Kind | None = None
        self._transport: Transport | None = None
        if server.engine == "auto":
            self._transport = Transport(server)
        else:
            self._client(Kind(server.engine))

    def apply(self, config: Config) -> None:
        """Have every client go by another config."""
        self._config = config
        for client in self._clients.values():
            client.apply(config)

    async def close(self) -> None:
        """Close the connections of every client that was ever needed."""
        if self._transport is not None:
            await self._transport.close()
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def find(self) -> Engine | Unknown:
        """The client of what serves there now, or why that is not known. It is asked unless the config names it."""
        if self._transport is None:
            return self._client(Kind(self._server.engine))
        at = self._now()
        identity = await _identify(self._transport, self._config.heartbeat.probe_timeout)
        if isinstance(identity, RequestError):
            seen = unknown(at, identity)
            for client in self._clients.values():
                client.note(seen)
            return seen
        if identity.kind is not self._found:
            self._found = identity.kind
            self._report(info(EventName.SERVER_IDENTIFIED, engine=identity.kind.value, evidence=identity.evidence))
        return self._client(identity.kind)

    def _client(self, kind: Kind) -> Engine:
        # A client is kept once it was made: a load that it was asked for may still be under way.
        if kind not in self._clients:
            self._clients[kind] = self._makers[kind](self._server, self._config, self._now)
        return self._clients[kind]


async def _identify(transport: Transport, deadline: float) -> Identity | RequestError:
    """What serves there, or why that is not known; GETs alone, all within one probe's time."""
    unready = await transport.refresh_key(deadline)
    if unready is not None:
        return unready
    try:
        async with asyncio.timeout(deadline):
            return await _ask(transport, deadline)
    except TimeoutError:
        return RequestError(Reason.TIMEOUT, f"it was not found out within {deadline:g} s what serves there", sent=True)


async def _ask(transport: Transport, deadline: float) -> Identity | RequestError:
    reply = await transport.get("/v1/models", deadline)
    if isinstance(reply, RequestError):
        return reply
    if not reply.ok:
        return refusal("/v1/models", reply)
    listing = decode_listing(reply.body)
    if isinstance(listing, BadListing):
        return unlisted("/v1/models", reply.body, listing.why)
    found = by_owner(listing)
    if found is not None:
        return found
    version, model_info = await asyncio.gather(
        transport.get("/version", deadline), transport.get("/model_info", deadline)
    )
    # Both at once would be a proxy in front of several servers: then it is neither.
    marks = [mark for mark in (_read(version, by_version), _read(model_info, by_model_info)) if mark is not None]
    if len(marks) == 1:
        return marks[0]
    why = "the server does not say which engine it is: name it in servers[].engine"
    return RequestError(Reason.WRONG_SERVER, why, sent=True)


def _read(answer: Reply | RequestError, reader: Callable[[bytes], Identity | None]) -> Identity | None:
    return reader(answer.body) if isinstance(answer, Reply) and answer.ok else None
