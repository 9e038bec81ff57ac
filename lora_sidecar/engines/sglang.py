"""The client of SGLang (0.5.6 and later): probe, list, identify, load, unload.

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
from lora_sidecar.core.observation import EngineActivity, Observation, Observed, Reason
from lora_sidecar.core.outcomes import (
    Accepted,
    Answer,
    Failure,
    FailureKind,
    LoadDeferred,
    ProbeBlocked,
    ProbeFailure,
    SleepState,
)
from lora_sidecar.engines.activity import ActivityMeter, note
from lora_sidecar.engines.base import unlimited
from lora_sidecar.engines.connection import LivenessConnection
from lora_sidecar.engines.failures import absent_base, kept, refusal, unanswered, unknown, unlisted
from lora_sidecar.engines.http import RequestError, Transport, ssl_context
from lora_sidecar.engines.sglang_answers import ServerInfo, classify_load, classify_unload, decode_server_info
from lora_sidecar.engines.vllm_answers import BadListing, Listing, decode_listing
from lora_sidecar.engines.vllm_refusals import is_route_absent
from lora_sidecar.engines.vouch import vouched

_LOAD: Final = "/load_lora_adapter"
_UNLOAD: Final = "/unload_lora_adapter"
_UNLOAD_DEADLINE: Final = 30.0

_GENERATION: Final = 2.0
"""Seconds that `/health` needs beyond a probe: it generates a token, and first looks for it after one second."""


class Sglang:
    """One SGLang server; implements `engines.Engine`."""

    def __init__(self, server: ServerConfig, config: Config, now: Callable[[], float]) -> None:
        """`config` has the deadlines. Raises `SidecarError` where the certificates that `server` names are unusable."""
        self._transport = Transport(server)
        admin_key = server.admin_api_key_file or server.api_key_file
        self._admin = Transport(replace(server, api_key_file=admin_key))
        self._sentinel = LivenessConnection(server.url, ssl_context(server.tls) if server.tls is not None else None)
        self._name = server.name
        self._base_model = server.base_model
        self._now = now
        self._info: ServerInfo | None = None
        self._meter = ActivityMeter(now)
        self.apply(config)

    def apply(self, config: Config) -> None:
        """See `engines.Engine.apply`."""
        self._probe_timeout = config.heartbeat.probe_timeout
        self._list_timeout = config.heartbeat.list_timeout
        self._load_timeout = config.restore.timeout
        for server in config.servers:
            if server.name == self._name:
                self._base_model = server.base_model

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(self._sentinel.close(), self._transport.close(), self._admin.close())

    def alarm(self, ended: Callable[[], None]) -> None:
        """See `engines.Engine.alarm`."""
        self._sentinel.tell(ended)

    @property
    def pulse(self) -> EngineActivity:
        """See `engines.Engine.pulse`."""
        return self._meter.pulse

    async def halted(self) -> bool:
        """See `engines.Engine.halted`. A paused server answers 503 on `/ready`; released memory it does not tell."""
        return self._info is None or self._info.memory_saver

    async def unfit(self, busy_above: int) -> ProbeBlocked | None:
        """See `engines.Engine.unfit`. Always: what SGLang's log-probabilities prove was never tried."""
        del busy_above
        return ProbeBlocked(obstacle="proof by inference is for vLLM alone")

    async def ask(self, model: str, prompt: str, deadline: float | None) -> Answer:
        """See `engines.Engine.ask`."""
        del model, prompt, deadline
        return ProbeFailure("proof by inference is for vLLM alone")

    @property
    def quiet_at(self) -> float:
        """See `engines.Engine.quiet_at`. Never: SGLang serves its metrics only if it was told to."""
        return float("-inf")

    async def look_for_requests(self, oldest: float) -> None:
        """See `engines.Engine.look_for_requests`. There is nowhere to look."""

    async def observe(self, trusted: Observed | None) -> Observation:
        """See `engines.Engine.observe`."""
        return await vouched(self._sentinel, self._look, trusted, self._probe_timeout)

    async def _look(self, trusted: Observed | None) -> Observation:
        at = self._now()
        unready = await self._keys() or await self._probe(thorough=trusted is None)
        if unready is not None:
            return unknown(at, unready)
        listing = await self._list()
        if isinstance(listing, RequestError):
            return unknown(at, listing)
        if trusted is not None and (listing.adapters, listing.bases) == (trusted.adapters, trusted.bases):
            return replace(trusted, at=at)
        info = await self._server_info()
        if isinstance(info, RequestError):
            return unknown(at, info)
        self._info = info
        at = self._now()
        listing = await self._list()
        if isinstance(listing, RequestError):
            return unknown(at, listing)
        # The time of its start that SGLang publishes is none, but identifies the life as well.
        return Observed(
            at,
            listing.bases,
            listing.adapters,
            info.life,
            runtime_loading=True,
            capacity=info.capacity,
            engine=listing.engine,
        )

    async def load(
        self, adapter: Adapter, incarnation: int, room: Callable[[], bool] = unlimited
    ) -> Accepted | Failure | LoadDeferred | None:
        """See `engines.Engine.load`. Nothing is asked before a load, so there is room as there was."""
        del incarnation, room
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
        body = msgspec.json.encode({"lora_name": adapter.name, "lora_path": adapter.path})
        with self._meter.errand() as errand:
            reply = await self._admin.post(_LOAD, body, self._load_timeout)
            note(errand, reply)
        if isinstance(reply, RequestError):
            return unanswered(reply)
        return kept(classify_load(reply.status, reply.body), reply)

    async def unload(self, name: str) -> Accepted | Failure:
        """See `engines.Engine.unload`."""
        reply = await self._admin.post(_UNLOAD, msgspec.json.encode({"lora_name": name}), _UNLOAD_DEADLINE)
        if isinstance(reply, RequestError):
            return unanswered(reply)
        return kept(classify_unload(reply.status, reply.body), reply)

    async def _keys(self) -> RequestError | None:
        """Read both keys again."""
        unready, unready_admin = await asyncio.gather(
            self._transport.refresh_key(self._probe_timeout), self._admin.refresh_key(self._probe_timeout)
        )
        return unready or unready_admin

    async def _probe(self, *, thorough: bool) -> RequestError | None:
        """Whether the server is ready; None if it is.

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

    async def _list(self) -> Listing | RequestError:
        """The listing, its adapters in the order of their names."""
        reply = await self._transport.get("/v1/models", self._list_timeout)
        if isinstance(reply, RequestError):
            return reply
        if not reply.ok:
            return refusal("/v1/models", reply)
        listing = decode_listing(reply.body)
        if isinstance(listing, BadListing):
            return unlisted("/v1/models", reply.body, listing.why)
        absent = absent_base([base.id for base in listing.bases], self._base_model)
        if absent is not None:
            return absent
        return replace(listing, adapters=tuple(sorted(listing.adapters, key=lambda card: card.name)))

    async def _server_info(self) -> ServerInfo | RequestError:
        """The server's settings; the answer comes from the engine, so a hung one gives none."""
        reply = await self._transport.get("/server_info", self._probe_timeout)
        if isinstance(reply, RequestError):
            return reply
        if not reply.ok:
            return refusal("/server_info", reply)
        info = decode_server_info(reply.body)
        return unlisted("/server_info", reply.body, info) if isinstance(info, str) else info
