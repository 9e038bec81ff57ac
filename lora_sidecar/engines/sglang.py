"""The client of SGLang (0.5.6 and later).

The traps guarded against: a health check that costs a generated token and a second each time; a listing in the order of
use, which differs after every request and is the same listing still; and an adapter that the server's own cache took
out of the listing, taken for lost or for unloaded. Before 0.5.6 `/v1/models` lists no adapters.

Routes and answers were read in the source of 0.5.6, 0.5.10 and 0.5.23.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import msgspec
from msgspec.structs import replace

from lora_sidecar.config.inventory import ServerConfig
from lora_sidecar.config.settings import Config
from lora_sidecar.core.model import Adapter
from lora_sidecar.core.observation import Reason
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, LoadDeferred, SleepState
from lora_sidecar.engines.base import UNLOAD_DEADLINE, Engine, ServerIdentity
from lora_sidecar.engines.failures import refusal, settled, unlisted
from lora_sidecar.engines.http import RequestError, Transport
from lora_sidecar.engines.listing import BadListing, Listing, decode_listing
from lora_sidecar.engines.sglang_answers import ServerInfo, classify_load, classify_unload, decode_server_info
from lora_sidecar.engines.text import is_route_absent

_LOAD: Final = "/load_lora_adapter"
_UNLOAD: Final = "/unload_lora_adapter"

_GENERATION: Final = 2.0
"""Seconds that `/health` needs beyond a probe: it generates a token, and first looks for it after one second."""


class Sglang(Engine):
    """One SGLang server."""

    def __init__(self, server: ServerConfig, config: Config, now: Callable[[], float]) -> None:
        """See `Engine`."""
        super().__init__(server, config, now)
        admin_key = server.admin_api_key_file or server.api_key_file
        self._admin = Transport(replace(server, api_key_file=admin_key))
        self._info: ServerInfo | None = None

    async def close(self) -> None:
        """See `Engine.close`."""
        await asyncio.gather(super().close(), self._admin.close())

    async def _read_keys(self) -> RequestError | None:
        """See `Engine._read_keys`."""
        unready, unready_admin = await asyncio.gather(
            super()._read_keys(), self._admin.refresh_key(self._probe_timeout)
        )
        return unready or unready_admin

    async def _check_health(self, *, thorough: bool) -> RequestError | None:
        """See `Engine._check_health`.

        `/ready` (in 0.5.23, not in 0.5.10) answers at once from what is known. Without it `/health` has to do, which
        makes the engine generate a token: it is asked only for a `thorough` probe, after everything that casts doubt.
        """
        ready = await self._transport.get("/ready", self._probe_timeout)
        if isinstance(ready, RequestError):
            return ready
        if ready.ok:
            return None
        if ready.status == HTTPStatus.SERVICE_UNAVAILABLE:
            return RequestError(
                Reason.STARTING, "/ready answered 503: it starts, is paused, unhealthy or stops", sent=True
            )
        if not is_route_absent(ready.status, ready.body):
            return refusal("/ready", ready)
        if not thorough:
            return None
        health = await self._transport.get("/health", self._probe_timeout + _GENERATION)
        if isinstance(health, RequestError):
            return health
        if health.ok:
            return None
        if health.status == HTTPStatus.SERVICE_UNAVAILABLE:
            return RequestError(Reason.STARTING, "/health answered 503: it starts, is unhealthy or stops", sent=True)
        return refusal("/health", health)

    def _decode_listing(self, body: bytes) -> Listing | BadListing:
        """See `Engine._decode_listing`; the adapters are put in the order of their names."""
        listing = decode_listing(body)
        if isinstance(listing, BadListing):
            return listing
        return replace(listing, adapters=tuple(sorted(listing.adapters, key=lambda card: card.name)))

    async def _identify(self) -> ServerIdentity | RequestError:
        """See `Engine._identify`. The answer comes from the engine, so a hung one gives none.

        The time of its start that SGLang publishes is none, but identifies the incarnation as well.
        """
        reply = await self._transport.get("/server_info", self._probe_timeout)
        if isinstance(reply, RequestError):
            return reply
        if not reply.ok:
            return refusal("/server_info", reply)
        info = decode_server_info(reply.body)
        if isinstance(info, str):
            return unlisted("/server_info", reply.body, info)
        self._info = info
        return ServerIdentity(info.start_id, runtime_loading=True, capacity=info.capacity)

    async def load_blocked(self, incarnation: int) -> LoadDeferred | Failure | None:
        """See `Engine.load_blocked`. Nothing is asked: the settings hold for one incarnation."""
        del incarnation
        info = self._info
        if info is None:
            return LoadDeferred(SleepState.UNCLEAR, "the server's settings are not known yet")
        if info.memory_saver:
            return LoadDeferred(
                SleepState.UNCLEAR,
                "the server was started with --enable-memory-saver and does not tell whether its memory is released",
            )
        if info.replicas > 1:
            return Failure(
                FailureKind.SERVER_SETUP,
                f"SGLang with {info.replicas} data-parallel replicas loads no adapter at run time:"
                " start one server for each replica",
            )
        return None

    async def load(self, adapter: Adapter) -> Accepted | Failure:
        """See `Engine.load`."""
        body = msgspec.json.encode({"lora_name": adapter.name, "lora_path": adapter.path})
        posted = self._admin.post(_LOAD, body, self._load_timeout)
        return settled(await self._meter.measure(posted), classify_load)

    async def unload(self, name: str) -> Accepted | Failure:
        """See `Engine.unload`."""
        body = msgspec.json.encode({"lora_name": name})
        return settled(await self._admin.post(_UNLOAD, body, UNLOAD_DEADLINE), classify_unload)

    async def is_paused(self) -> bool:
        """See `Engine.is_paused`. A paused server answers 503 on `/ready`; released memory it does not tell."""
        return self._info is None or self._info.memory_saver
