"""The client of vLLM (0.7 and later).

The traps guarded against: a health check that is taken for more than it is, and a load into a sleeping engine, which
destroys it (vLLM 0.24 on a GPU: illegal memory access, every completion hangs, `/health` stays 200).

Routes and answers were seen on vLLM 0.32.0 and read in the source of 0.7 to 0.33.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import msgspec

from lora_sidecar.config.inventory import ServerConfig
from lora_sidecar.config.settings import Config
from lora_sidecar.core.model import Adapter
from lora_sidecar.core.observation import Observation, Reason, Unknown
from lora_sidecar.core.outcomes import Accepted, Answer, Failure, LoadDeferred, ProbeBlocked, ProbeFailure, SleepState
from lora_sidecar.engines.activity import IdleDetector
from lora_sidecar.engines.base import UNLOAD_DEADLINE, Engine, ServerIdentity
from lora_sidecar.engines.failures import refusal, settled
from lora_sidecar.engines.http import Reply, RequestError
from lora_sidecar.engines.listing import BadListing, Listing
from lora_sidecar.engines.text import error_text, is_route_absent, sentence
from lora_sidecar.engines.vllm_answers import (
    Vitals,
    decode_completion,
    decode_is_paused,
    decode_is_sleeping,
    decode_listing,
    decode_metrics,
    decode_version,
)
from lora_sidecar.engines.vllm_refusals import classify_load, classify_unload

_LOAD: Final = "/v1/load_lora_adapter"
_UNLOAD: Final = "/v1/unload_lora_adapter"
_COMPLETIONS: Final = "/v1/completions"
_TOP: Final = 5
"""Likeliest tokens whose log-probabilities are asked for; vLLM allows 20 unless told otherwise."""

_AT_ONCE: Final = 4
"""Loads in flight at a server without requests: on an H100 four took 0.56 of the time of one, eight took longer.

On two cores (vLLM 0.32.0) two to eight took 0.3 to 0.5 of it. Beside one stream, 20 loads of 18 MB made a gap of 27 ms
one at a time, and one of 270 ms with two or more in flight.
"""


class Vllm(Engine):
    """One vLLM server."""

    def __init__(self, server: ServerConfig, config: Config, now: Callable[[], float]) -> None:
        """See `Engine`."""
        super().__init__(server, config, now)
        self._cannot_sleep_in: int | None = None
        self._sleepless = False
        self._idle = IdleDetector()

    def note(self, seen: Observation, line: int | None = None) -> Observation:
        """See `Engine.note`; whether the next incarnation can sleep is not known."""
        if isinstance(seen, Unknown) and seen.reason is not Reason.TIMEOUT:
            self._sleepless = False
        return super().note(seen, line)

    async def _check_health(self, *, thorough: bool) -> RequestError | None:
        """See `Engine._check_health`. A hung engine says that it is well, too."""
        del thorough
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

    def _decode_listing(self, body: bytes) -> Listing | BadListing:
        return decode_listing(body)

    async def _identify(self) -> ServerIdentity:
        """See `Engine._identify`. What one of these routes does not tell is unknown, and no error."""
        vitals, runtime_loading, sleepless, version = await asyncio.gather(
            self._vitals(), self._has_load_route(), self._has_no_sleep_route(), self._version()
        )
        self._sleepless = sleepless and vitals.awake is not False
        return ServerIdentity(vitals.start_time, runtime_loading, version)

    async def load_blocked(self, incarnation: int) -> LoadDeferred | None:
        """See `Engine.load_blocked`.

        A server without the route `/is_sleeping` (a 404 outside the developer mode) has no route that could put it to
        sleep either, so one answer serves a whole incarnation; any other is asked before every load. It is part of
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
        if is_route_absent(sleeping.status, sleeping.body):
            self._cannot_sleep_in = incarnation
            return None
        if vitals.awake or says_asleep is False:
            return None
        return LoadDeferred(SleepState.UNCLEAR, "the server does not tell whether its engine is awake")

    async def load(self, adapter: Adapter) -> Accepted | Failure:
        """See `Engine.load`. `load_inplace` is never sent: before 0.33 it sticks, and re-reads the disk."""
        body: dict[str, str | bool] = {"lora_name": adapter.name, "lora_path": adapter.path}
        if adapter.is_3d_lora_weight:
            body["is_3d_lora_weight"] = True
        posted = self._transport.post(_LOAD, msgspec.json.encode(body), self._load_timeout)
        return settled(await self._meter.measure(posted), classify_load)

    @property
    def loads_at_once(self) -> int:
        """See `Engine.loads_at_once`."""
        return _AT_ONCE if self._idle.is_idle(self._now()) else 1

    async def poll_requests(self) -> None:
        """See `Engine.poll_requests`; on `/metrics` the numbers of requests and of tokens tell."""
        if self._idle.is_due(self._now()):
            self._idle.ask(self._now())
            await self._vitals()

    async def unload(self, name: str) -> Accepted | Failure:
        """See `Engine.unload`."""
        body = msgspec.json.encode({"lora_name": name})
        return settled(await self._transport.post(_UNLOAD, body, UNLOAD_DEADLINE), classify_unload)

    async def is_paused(self) -> bool:
        """See `Engine.is_paused`; a pause shows only on `/is_paused` (0.12 to 0.15, later in developer mode)."""
        _, paused = await self._standing()
        return paused

    async def probe_blocked(self, busy_above: int) -> ProbeBlocked | None:
        """See `Engine.probe_blocked`; `vllm:num_requests_running` and `_waiting` on `/metrics` tell."""
        vitals, paused = await self._standing()
        if paused:
            return ProbeBlocked(halted=True)
        if vitals.requests is None:
            return ProbeBlocked(obstacle="the server's /metrics does not say how many requests it has")
        return ProbeBlocked() if vitals.requests > busy_above else None

    async def probe(self, model: str, prompt: str, deadline: float | None) -> Answer:
        """See `Engine.probe`."""
        body = msgspec.json.encode(
            {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": _TOP}
        )
        if deadline is None:
            reply = await self._meter.measure(self._transport.post(_COMPLETIONS, body, 2 * self._hung_after))
        else:
            reply = await self._transport.post(_COMPLETIONS, body, deadline)
        if isinstance(reply, RequestError):
            return ProbeFailure(sentence(f"{reply.reason.value}: {reply.detail}"))
        return decode_completion(reply.status, reply.body)

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

    async def _vitals(self) -> Vitals:
        asked_at = self._now()
        reply = await self._transport.get("/metrics", self._probe_timeout)
        vitals = decode_metrics(reply.body) if isinstance(reply, Reply) and reply.ok else Vitals()
        self._idle.note(asked_at, vitals.requests, vitals.tokens)
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
