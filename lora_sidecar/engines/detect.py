"""The engine that the config names, or the one that is found to serve there.

Two traps are guarded against. A load sent on the strength of a default to a server that is something else; so with
`engine: auto` nothing is sent but GETs until the server has said what it is, and while it does not say, nothing is
known and nothing is loaded. And an answer that outlives the server that gave it: another image may be started in the
container; so the question is asked again after everything that may have been a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from lora_sidecar.config.inventory import ServerConfig
from lora_sidecar.config.settings import Config
from lora_sidecar.core.events import Event, EventName, info
from lora_sidecar.core.model import Adapter
from lora_sidecar.core.observation import EngineActivity, Observation, Observed, Reason
from lora_sidecar.core.outcomes import Accepted, Answer, Failure, FailureKind, LoadDeferred, ProbeBlocked, ProbeFailure
from lora_sidecar.engines.base import Engine, unlimited
from lora_sidecar.engines.failures import refusal, unknown, unlisted
from lora_sidecar.engines.http import Reply, RequestError, Transport
from lora_sidecar.engines.identity import Identity, Kind, by_model_info, by_owner, by_version
from lora_sidecar.engines.sglang import Sglang
from lora_sidecar.engines.vllm import Vllm
from lora_sidecar.engines.vllm_answers import BadListing, decode_listing

Make = Callable[[ServerConfig, Config, Callable[[], float]], Engine]

_CLIENTS: Final[dict[Kind, Make]] = {Kind.VLLM: Vllm, Kind.SGLANG: Sglang}


def make(server: ServerConfig, config: Config, now: Callable[[], float], report: Callable[[Event], None]) -> Engine:
    """The client of the engine that `server` names. Raises `SidecarError` where its certificates are unusable."""
    if server.engine == "auto":
        return Auto(server, config, now, report)
    return _CLIENTS[Kind(server.engine)](server, config, now)


class Auto:
    """A server that is asked what it is; implements `engines.Engine`."""

    def __init__(
        self, server: ServerConfig, config: Config, now: Callable[[], float], report: Callable[[Event], None]
    ) -> None:
        """`report` takes the fact of an engine that was found. Raises as `make` does."""
        self._server = server
        self._now = now
        self._report = report
        self._transport = Transport(server)
        self._clients: dict[Kind, Engine] = {}
        self._current: Engine | None = None
        self._found: Kind | None = None
        self._ended: Callable[[], None] | None = None
        self.apply(config)

    def apply(self, config: Config) -> None:
        """See `engines.Engine.apply`."""
        self._config = config
        for client in self._clients.values():
            client.apply(config)

    async def close(self) -> None:
        """Close the connections of every client that was ever needed."""
        await asyncio.gather(self._transport.close(), *(client.close() for client in self._clients.values()))

    def alarm(self, ended: Callable[[], None]) -> None:
        """See `engines.Engine.alarm`."""
        self._ended = ended
        for client in self._clients.values():
            client.alarm(ended)

    @property
    def pulse(self) -> EngineActivity:
        """See `engines.Engine.pulse`."""
        return EngineActivity() if self._current is None else self._current.pulse

    async def halted(self) -> bool:
        """See `engines.Engine.halted`."""
        return self._current is not None and await self._current.halted()

    async def unfit(self, busy_above: int) -> ProbeBlocked | None:
        """See `engines.Engine.unfit`."""
        return ProbeBlocked() if self._current is None else await self._current.unfit(busy_above)

    async def ask(self, model: str, prompt: str, deadline: float | None) -> Answer:
        """See `engines.Engine.ask`."""
        return _SILENT if self._current is None else await self._current.ask(model, prompt, deadline)

    @property
    def quiet_at(self) -> float:
        """See `engines.Engine.quiet_at`."""
        return float("-inf") if self._current is None else self._current.quiet_at

    async def look_for_requests(self, oldest: float) -> None:
        """See `engines.Engine.look_for_requests`."""
        if self._current is not None:
            await self._current.look_for_requests(oldest)

    async def observe(self, trusted: Observed | None) -> Observation:
        """See `engines.Engine.observe`. Unless the listing is the trusted one, the server is asked again what it is."""
        at = self._now()
        seen: Observation | None = None
        if trusted is not None and self._current is not None:
            seen = await self._current.observe(trusted)
            if not isinstance(seen, Observed) or seen.adapters is trusted.adapters:
                return seen
        former = self._found
        identity = await self._identify()
        if isinstance(identity, RequestError):
            return unknown(at, identity)
        engine = self._become(identity)
        return await engine.observe(None) if seen is None or identity.kind is not former else seen

    async def load(
        self, adapter: Adapter, incarnation: int, room: Callable[[], bool] = unlimited
    ) -> Accepted | Failure | LoadDeferred | None:
        """See `engines.Engine.load`."""
        return _NOBODY if self._current is None else await self._current.load(adapter, incarnation, room)

    async def unload(self, name: str) -> Accepted | Failure:
        """See `engines.Engine.unload`."""
        return _NOBODY if self._current is None else await self._current.unload(name)

    def _become(self, identity: Identity) -> Engine:
        # A client is kept once it was made: a load that it was asked for may still be under way.
        if identity.kind not in self._clients:
            client = _CLIENTS[identity.kind](self._server, self._config, self._now)
            if self._ended is not None:
                client.alarm(self._ended)
            self._clients[identity.kind] = client
        self._current = self._clients[identity.kind]
        if identity.kind is not self._found:
            self._found = identity.kind
            self._report(info(EventName.SERVER_IDENTIFIED, engine=identity.kind.value, evidence=identity.evidence))
        return self._current

    async def _identify(self) -> Identity | RequestError:
        """What serves there, or why that is not known; GETs alone, all within one probe's time."""
        timeout = self._config.heartbeat.probe_timeout
        unready = await self._transport.refresh_key(timeout)
        if unready is not None:
            return unready
        try:
            async with asyncio.timeout(timeout):
                return await self._ask(timeout)
        except TimeoutError:
            return RequestError(
                Reason.TIMEOUT, f"it was not found out within {timeout:g} s what serves there", sent=True
            )

    async def _ask(self, timeout: float) -> Identity | RequestError:  # noqa: ASYNC109 - for each request, within the whole
        listing = await self._transport.get("/v1/models", timeout)
        if isinstance(listing, RequestError):
            return listing
        if not listing.ok:
            return refusal("/v1/models", listing)
        found = by_owner(listing.body)
        if found is not None:
            return found
        decoded = decode_listing(listing.body)
        if isinstance(decoded, BadListing):
            return unlisted("/v1/models", listing.body, decoded.why)
        version, model_info = await asyncio.gather(
            self._transport.get("/version", timeout), self._transport.get("/model_info", timeout)
        )
        # Both at once would be a proxy in front of several servers: then it is neither.
        marks = [mark for mark in (_read(version, by_version), _read(model_info, by_model_info)) if mark is not None]
        if len(marks) == 1:
            return marks[0]
        why = "the server does not say which engine it is: name it in servers[].engine"
        return RequestError(Reason.WRONG_SERVER, why, sent=True)


_UNKNOWN: Final = "it is not known which engine serves there"
_NOBODY: Final = Failure(FailureKind.ENGINE, _UNKNOWN)
_SILENT: Final = ProbeFailure(_UNKNOWN)


def _read(answer: Reply | RequestError, reader: Callable[[bytes], Identity | None]) -> Identity | None:
    return reader(answer.body) if isinstance(answer, Reply) and answer.ok else None
