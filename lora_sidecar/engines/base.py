"""One server, whichever engine it is: what the rest of the program asks of it, and what all clients do alike.

The only code that talks to a server is in this package, so that the rest of the program never learns a route, a status
or a message of any engine. No method raises for anything that a server or a network may do, and each ends by its
deadline. Two traps are guarded against:

* A listing that is put down to the wrong incarnation of the server. Its identity is read before the listing, so that a
  restart between the two makes adapters look lost and never unloaded.
* An ability that one engine has and another is taken to have. What is optional has a default here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.config.inventory import ServerConfig
from lora_sidecar.config.settings import Config
from lora_sidecar.core.model import Adapter
from lora_sidecar.core.observation import EngineActivity, Observation, Observed
from lora_sidecar.core.outcomes import Accepted, Answer, Failure, LoadDeferred, ProbeBlocked, ProbeFailure
from lora_sidecar.engines.activity import ActivityMeter
from lora_sidecar.engines.connection import LivenessConnection
from lora_sidecar.engines.failures import absent_base, refusal, unknown, unlisted
from lora_sidecar.engines.http import RequestError, Transport
from lora_sidecar.engines.listing import BadListing, Listing

UNLOAD_DEADLINE: Final = 30.0
_NO_PROBES: Final = "proof by inference is for vLLM alone"


class ServerIdentity(Struct, frozen=True):
    """What a server says of itself beside its listing; the fields are those of `Observed`."""

    start_time: float | None = None
    runtime_loading: bool | None = None
    version: str | None = None
    capacity: int | None = None


class Engine(ABC):
    """The client of one server. To be used in a running loop; `close` it in the end."""

    def __init__(self, server: ServerConfig, config: Config, now: Callable[[], float]) -> None:
        """`config` has the deadlines. Raises `SidecarError` where the certificates that `server` names are unusable."""
        self._transport = Transport(server)
        self._connection = LivenessConnection(server.url, self._transport.context)
        self._meter = ActivityMeter(now)
        self._name = server.name
        self._base_model = server.base_model
        self._now = now
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Go by the deadlines and the base model of another config from the next request on."""
        self._probe_timeout = config.heartbeat.probe_timeout
        self._list_timeout = config.heartbeat.list_timeout
        self._load_timeout = config.restore.timeout
        self._hung_after = config.server_health.hung_after
        for server in config.servers:
            if server.name == self._name:
                self._base_model = server.base_model

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()
        await self._transport.close()

    def on_disconnect(self, ended: Callable[[], None]) -> None:
        """Have `ended` called when the server may have died: a hint to look now, never a verdict."""
        self._connection.tell(ended)

    @property
    def in_doubt(self) -> bool:
        """Whether the server may have restarted since it last answered, as far as the connection to it tells."""
        return self._connection.unexplained

    @property
    def activity(self) -> EngineActivity:
        """What the requests that went through the engine tell of it."""
        return self._meter.activity

    async def observe(self, trusted: Observed | None) -> Observation:
        """Probe the server and list its adapters.

        `trusted` is the last good listing if nothing has happened since that casts doubt on whose it was. Where the
        server lists the same again, that one is returned with another time. Otherwise its identity is read anew.
        """
        line = self._connection.line
        return self.note(await self._poll(None if self.in_doubt else trusted), line)

    def note(self, seen: Observation, line: int | None = None) -> Observation:
        """Take in what was seen of the server, here or by whoever asked what serves there, and vouch for it.

        `line` is the number of the connection that was open before it was looked at.
        """
        return self._connection.vouch(seen, line, self._probe_timeout)

    async def _poll(self, trusted: Observed | None) -> Observation:
        at, retries = self._now(), self._transport.retries
        unready = await self._read_keys() or await self._check_health(thorough=trusted is None)
        if unready is not None:
            return unknown(at, unready)
        if trusted is not None:
            listing = await self._list()
            if isinstance(listing, RequestError):
                return unknown(at, listing)
            same = (listing.adapters, listing.bases) == (trusted.adapters, trusted.bases)
            if same and self._transport.retries == retries:
                return replace(trusted, at=at)
        identity = await self._identify()
        if isinstance(identity, RequestError):
            return unknown(at, identity)
        at = self._now()
        listing = await self._list()
        if isinstance(listing, RequestError):
            return unknown(at, listing)
        return Observed(
            at,
            listing.bases,
            listing.adapters,
            start_time=identity.start_time,
            runtime_loading=identity.runtime_loading,
            version=identity.version,
            capacity=identity.capacity,
            resolves_paths=listing.resolves_paths,
            engine=listing.engine,
        )

    async def _read_keys(self) -> RequestError | None:
        """Read again what may have rotated; why that failed, None if it did not."""
        return await self._transport.refresh_key(self._probe_timeout)

    @abstractmethod
    async def _check_health(self, *, thorough: bool) -> RequestError | None:
        """Whether the server says that it is well; None if it does. `thorough` is after whatever casts doubt on it."""

    async def _list(self) -> Listing | RequestError:
        reply = await self._transport.get("/v1/models", self._list_timeout)
        if isinstance(reply, RequestError):
            return reply
        if not reply.ok:
            return refusal("/v1/models", reply)
        listing = self._decode_listing(reply.body)
        if isinstance(listing, BadListing):
            return unlisted("/v1/models", reply.body, listing.why)
        return absent_base([base.id for base in listing.bases], self._base_model) or listing

    @abstractmethod
    def _decode_listing(self, body: bytes) -> Listing | BadListing:
        """Read `/v1/models` as this engine answers it."""

    @abstractmethod
    async def _identify(self) -> ServerIdentity | RequestError:
        """Read what the server is and which incarnation of it this is."""

    async def load_blocked(self, incarnation: int) -> LoadDeferred | Failure | None:
        """Why no load may be sent now; None where one may, at once: the answer is soon out of date.

        `incarnation` is the one for which the load was decided.
        """
        del incarnation
        return None

    @abstractmethod
    async def load(self, adapter: Adapter) -> Accepted | Failure:
        """Load one adapter, never in place. Only to be sent where `load_blocked` has just said that it may be."""

    @property
    def loads_at_once(self) -> int:
        """How many loads may be in flight without harm to the server's requests, as far as was heard of them lately."""
        return 1

    async def poll_requests(self) -> None:  # noqa: B027 - an engine that has nothing to say is asked nothing
        """Ask the server whether it has requests, unless what was heard of them still counts."""

    @abstractmethod
    async def unload(self, name: str) -> Accepted | Failure:
        """Unload one adapter; accepted also if it was not loaded (`already`)."""

    async def is_paused(self) -> bool:
        """Whether the engine says that it sleeps or is paused: it then answers no completion, and is not hung."""
        return False

    async def probe_blocked(self, busy_above: int) -> ProbeBlocked | None:
        """Why no probe by inference may be sent now: with more requests than `busy_above` under way, none may."""
        del busy_above
        return ProbeBlocked(obstacle=_NO_PROBES)

    async def probe(self, model: str, prompt: str, deadline: float | None) -> Answer:
        """Ask a model for one token and its log-probabilities, at temperature 0.

        Without a `deadline` (seconds) the model must be the base model: the answer then counts as the engine's
        activity, and is waited for until a missing one is a hang, and twice as long.
        """
        del model, prompt, deadline
        return ProbeFailure(_NO_PROBES)
