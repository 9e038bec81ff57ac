"""The client of vLLM (0.7 and later): probe, list, identify, load, unload.

The traps guarded against: a listing of another server, or of none, taken for an empty one; a listing that is put down
to the wrong life of the server; and a load into a sleeping engine, which destroys it (vLLM 0.24 on a GPU: illegal
memory access, every completion hangs, `/health` stays 200).

Routes and answers were seen on vLLM 0.32.0 and read in the source of 0.7 to 0.33.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, assert_never

import msgspec
from msgspec.structs import replace

from lora_sidecar.config.inventory import ServerConfig
from lora_sidecar.config.settings import Config
from lora_sidecar.core.model import Adapter
from lora_sidecar.core.observation import EngineActivity, Observation, Observed, Reason, Unknown
from lora_sidecar.core.outcomes import Accepted, Answer, Failure, LoadDeferred, ProbeBlocked, ProbeFailure, SleepState
from lora_sidecar.engines.activity import ActivityMeter, note
from lora_sidecar.engines.base import unlimited
from lora_sidecar.engines.connection import LivenessConnection
from lora_sidecar.engines.failures import absent_base, kept, refusal, unanswered, unknown, unlisted
from lora_sidecar.engines.http import Reply, RequestError, Transport
from lora_sidecar.engines.stillness import IdleDetector
from lora_sidecar.engines.vllm_answers import (
    BadListing,
    Listing,
    Listings,
    Vitals,
    decode_completion,
    decode_is_paused,
    decode_is_sleeping,
    decode_metrics,
    decode_version,
)
from lora_sidecar.engines.vllm_refusals import classify_load, classify_unload, error_text, is_route_absent, sentence
from lora_sidecar.engines.vouch import vouched

_LOAD: Final = "/v1/load_lora_adapter"
_UNLOAD: Final = "/v1/unload_lora_adapter"
_UNLOAD_DEADLINE: Final = 30.0
_COMPLETIONS: Final = "/v1/completions"
_TOP: Final = 5
"""Likeliest tokens whose log-probabilities are asked for; vLLM allows 20 unless told otherwise."""


class Vllm:
    """One vLLM server; implements `engines.Engine`."""

    def __init__(self, server: ServerConfig, config: Config, now: Callable[[], float]) -> None:
        """`config` has the deadlines. Raises `SidecarError` where the certificates that `server` names are unusable."""
        self._transport = Transport(server)
        self._sentinel = LivenessConnection(server.url, self._transport.context)
        self._name = server.name
        self._base_model = server.base_model
        self._now = now
        self._cannot_sleep_in: int | None = None
        self._meter = ActivityMeter(now)
        self._listings = Listings()
        self._sleepless = False
        self._stillness = IdleDetector()
        self.apply(config)

    def apply(self, config: Config) -> None:
        """See `engines.Engine.apply`."""
        self._probe_timeout = config.heartbeat.probe_timeout
        self._list_timeout = config.heartbeat.list_timeout
        self._load_timeout = config.restore.timeout
        self._hung_after = config.server_health.hung_after
        for server in config.servers:
            if server.name == self._name:
                self._base_model = server.base_model

    async def close(self) -> None:
        """Close the connections."""
        await self._sentinel.close()
        await self._transport.close()

    @property
    def pulse(self) -> EngineActivity:
        """See `engines.Engine.pulse`."""
        return self._meter.pulse

    async def halted(self) -> bool:
        """See `engines.Engine.halted`; a pause shows only on `/is_paused` (0.12 to 0.15, later in developer mode)."""
        _, halted = await self._standing()
        return halted

    async def unfit(self, busy_above: int) -> ProbeBlocked | None:
        """See `engines.Engine.unfit`; `vllm:num_requests_running` and `_waiting` on `/metrics` tell."""
        vitals, halted = await self._standing()
        if halted:
            return ProbeBlocked(halted=True)
        if vitals.requests is None:
            return ProbeBlocked(obstacle="the server's /metrics does not say how many requests it has")
        return ProbeBlocked() if vitals.requests > busy_above else None

    async def ask(self, model: str, prompt: str, deadline: float | None) -> Answer:
        """See `engines.Engine.ask`."""
        body = msgspec.json.encode(
            {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": _TOP}
        )
        if deadline is not None:
            return _answer(await self._transport.post(_COMPLETIONS, body, deadline))
        with self._meter.errand() as errand:
            reply = await self._transport.post(_COMPLETIONS, body, 2 * self._hung_after)
            note(errand, reply)
        return _answer(reply)

    async def _standing(self) -> tuple[Vitals, bool]:
        """What the metrics tell, and whether the engine sleeps or is paused."""
        vitals, sleeping, paused = await asyncio.gather(
            self._vitals(),
            self._transport.get("/is_sleeping", self._probe_timeout),
            self._transport.get("/is_paused", self._probe_timeout),
        )
        asleep = isinstance(sleeping, Reply) and sleeping.ok and decode_is_sleeping(sleeping.body)
        halted = isinstance(paused, Reply) and paused.ok and decode_is_paused(paused.body)
        return vitals, vitals.awake is False or bool(asleep) or bool(halted)

    def alarm(self, ended: Callable[[], None]) -> None:
        """See `engines.Engine.alarm`."""
        self._sentinel.tell(ended)

    async def observe(self, trusted: Observed | None) -> Observation:
        """See `engines.Engine.observe`."""
        seen = await vouched(self._sentinel, self._look, trusted, self._probe_timeout)
        if isinstance(seen, Unknown) and seen.reason is not Reason.TIMEOUT:
            self._sleepless = False
        return seen

    async def _look(self, trusted: Observed | None) -> Observation:
        at, retries = self._now(), self._transport.retries
        unready = await self._transport.refresh_key(self._probe_timeout) or await self._probe()
        if unready is not None:
            return unknown(at, unready)
        if trusted is not None:
            listing = await self._list()
            if isinstance(listing, Unknown):
                return listing
            if _same(listing, trusted) and self._transport.retries == retries:
                return replace(trusted, at=at)
        vitals, runtime_loading, sleepless, version = await asyncio.gather(
            self._vitals(), self._has_load_route(), self._has_no_sleep_route(), self._version()
        )
        self._sleepless = sleepless and vitals.awake is not False
        at = self._now()
        listing = await self._list()
        if isinstance(listing, Unknown):
            return listing
        return Observed(
            at,
            listing.bases,
            listing.adapters,
            vitals.start_time,
            runtime_loading,
            version,
            resolves_paths=listing.rust,
            engine=listing.engine,
        )

    async def load(
        self, adapter: Adapter, incarnation: int, room: Callable[[], bool] = unlimited
    ) -> Accepted | Failure | LoadDeferred | None:
        """See `engines.Engine.load`. `load_inplace` is never sent: before 0.33 it sticks, and re-reads the disk."""
        withheld = await self._withhold(incarnation)
        if withheld is not None:
            return withheld
        if not room():
            return None
        body: dict[str, str | bool] = {"lora_name": adapter.name, "lora_path": adapter.path}
        if adapter.is_3d_lora_weight:
            body["is_3d_lora_weight"] = True
        with self._meter.errand() as errand:
            reply = await self._transport.post(_LOAD, msgspec.json.encode(body), self._load_timeout)
            note(errand, reply)
        if isinstance(reply, RequestError):
            return unanswered(reply)
        return kept(classify_load(reply.status, reply.body), reply)

    @property
    def quiet_at(self) -> float:
        """See `engines.Engine.quiet_at`."""
        return self._stillness.seen_at

    async def look_for_requests(self, oldest: float) -> None:
        """See `engines.Engine.look_for_requests`; on `/metrics` the numbers of requests and of tokens tell."""
        if self._stillness.seen_at < oldest:
            await self._vitals()

    async def unload(self, name: str) -> Accepted | Failure:
        """See `engines.Engine.unload`."""
        body = msgspec.json.encode({"lora_name": name})
        reply = await self._transport.post(_UNLOAD, body, _UNLOAD_DEADLINE)
        if isinstance(reply, RequestError):
            return unanswered(reply)
        return kept(classify_unload(reply.status, reply.body), reply)

    async def _probe(self) -> RequestError | None:
        """Whether the server says that it is well; None if it does. A hung engine does, too."""
        reply = await self._transport.get("/health", self._probe_timeout)
        if isinstance(reply, RequestError):
            return reply
        if reply.ok:
            return None
        text = error_text(reply.body)
        if reply.status in (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE):
            busy = "scaling" in text.lower()
            reason = Reason.STARTING if busy else Reason.ENGINE_DEAD
            return RequestError(reason, f"/health answered {reply.status}{text and ': ' + text}", sent=True)
        return refusal("/health", reply)

    async def _list(self) -> Listing | Unknown:
        at = self._now()
        reply = await self._transport.get("/v1/models", self._list_timeout)
        if isinstance(reply, RequestError):
            return unknown(at, reply)
        if not reply.ok:
            return unknown(at, refusal("/v1/models", reply))
        listing = self._listings.decode(reply.body)
        match listing:
            case BadListing():
                return unknown(at, unlisted("/v1/models", reply.body, listing.why))
            case Listing():
                absent = absent_base([base.id for base in listing.bases], self._base_model)
                return listing if absent is None else unknown(at, absent)
            case _:
                assert_never(listing)

    async def _vitals(self) -> Vitals:
        asked_at = self._now()
        reply = await self._transport.get("/metrics", self._probe_timeout)
        vitals = decode_metrics(reply.body) if isinstance(reply, Reply) and reply.ok else Vitals()
        self._stillness.note(asked_at, vitals.requests, vitals.tokens)
        return vitals

    async def _has_no_sleep_route(self) -> bool:
        """Whether nothing could put the engine to sleep: outside the developer mode there is no `/is_sleeping`."""
        reply = await self._transport.get("/is_sleeping", self._probe_timeout)
        return isinstance(reply, Reply) and is_route_absent(reply.status, reply.body)

    async def _version(self) -> str | None:
        reply = await self._transport.get("/version", self._probe_timeout)
        return decode_version(reply.body) if isinstance(reply, Reply) and reply.ok else None

    async def _has_load_route(self) -> bool | None:
        """Whether adapters can be loaded at run time: asked with a GET, the route of a POST answers 405."""
        reply = await self._transport.get(_LOAD, self._probe_timeout)
        if isinstance(reply, RequestError):
            return None
        if is_route_absent(reply.status, reply.body):
            return False
        return True if reply.status == HTTPStatus.METHOD_NOT_ALLOWED else None

    async def _withhold(self, incarnation: int) -> LoadDeferred | None:
        """Why no load may be sent, None if the engine is known to be awake.

        A server without the route `/is_sleeping` (a 404 outside the developer mode) has no route that could put it to
        sleep either, so one look serves its whole life; any other is asked before every load. That look is part of
        every identity that `observe` reads, so that the first load need not wait for it.
        """
        if self._sleepless or self._cannot_sleep_in == incarnation:
            return None
        # One after the other: what is asked last decides, and must not have become old while the other was waited for.
        vitals = await self._vitals()
        sleeping = await self._transport.get("/is_sleeping", self._probe_timeout)
        says_asleep = decode_is_sleeping(sleeping.body) if isinstance(sleeping, Reply) and sleeping.ok else None
        if says_asleep or vitals.awake is False:
            return LoadDeferred(SleepState.ASLEEP, "the engine sleeps: a load would destroy it")
        if isinstance(sleeping, RequestError):
            return LoadDeferred(SleepState.UNCLEAR, "the server does not say whether its engine is awake")
        route_absent = is_route_absent(sleeping.status, sleeping.body)
        if route_absent:
            self._cannot_sleep_in = incarnation
            return None
        if vitals.awake or says_asleep is False:
            return None
        return LoadDeferred(SleepState.UNCLEAR, "the server does not tell whether its engine is awake")


def _same(listing: Listing, trusted: Observed) -> bool:
    return (listing.adapters is trusted.adapters or listing.adapters == trusted.adapters) and (
        listing.bases == trusted.bases
    )


def _answer(reply: Reply | RequestError) -> Answer:
    if isinstance(reply, RequestError):
        return ProbeFailure(sentence(f"{reply.reason.value}: {reply.detail}"))
    return decode_completion(reply.status, reply.body)
