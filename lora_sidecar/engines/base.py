"""The engines: what the daemon needs of an inference server, whichever it is.

The only code that talks to a server is below this package, behind one protocol, so that the rest of the program never
learns a route, a status or a message of any engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lora_sidecar.config.settings import Config
from lora_sidecar.core.model import Adapter
from lora_sidecar.core.observation import EngineActivity, Observation, Observed
from lora_sidecar.core.outcomes import Accepted, Answer, Failure, LoadDeferred, ProbeBlocked


def unlimited() -> bool:
    """There is always room for another load."""
    return True


class Engine(Protocol):
    """One server. No method raises for anything that a server or a network may do; each ends by its deadline."""

    def apply(self, config: Config) -> None:
        """Go by the deadlines of another config from the next request on."""
        ...

    @property
    def pulse(self) -> EngineActivity:
        """What the requests that went through the engine tell of it."""
        ...

    async def halted(self) -> bool:
        """Whether the engine says that it sleeps or is paused: it then answers no completion, and is not hung."""
        ...

    def alarm(self, ended: Callable[[], None]) -> None:
        """Have `ended` called when the server may have died: a hint to look now, never a verdict."""
        ...

    async def observe(self, trusted: Observed | None) -> Observation:
        """Probe the server and list its adapters.

        `trusted` is the last good listing if nothing has happened since that casts doubt on whose it was. A listing
        equal to it is returned with its identity carried over, and its very collections; otherwise the server's
        identity is read anew, before the listing that is returned: a restart between the two then makes adapters look
        lost, never unloaded.
        """
        ...

    async def load(
        self, adapter: Adapter, incarnation: int, room: Callable[[], bool] = unlimited
    ) -> Accepted | Failure | LoadDeferred | None:
        """Load one adapter, unless the engine is not known to be awake; never in place.

        `incarnation` is the life of the server for which the load was decided. `room` is whether it may still be in
        flight: to ask whether the engine is awake takes seconds where the server hangs. None where there was none any
        more: nothing was sent.
        """
        ...

    async def unfit(self, busy_above: int) -> ProbeBlocked | None:
        """Why no probe by inference may be sent now: with more requests than `busy_above` under way, none may."""
        ...

    async def ask(self, model: str, prompt: str, deadline: float | None) -> Answer:
        """Ask a model for one token and its log-probabilities, at temperature 0.

        Without a `deadline` (seconds) the model must be the base model: the answer then counts for the engine's pulse,
        and is waited for until a missing one is a hang, and twice as long.
        """
        ...

    @property
    def quiet_at(self) -> float:
        """When the server was seen to have no request to answer; minus infinity once it has some, or will not say."""
        ...

    async def look_for_requests(self, oldest: float) -> None:
        """Find out whether the server has requests, unless it was seen to have none at `oldest` or later."""
        ...

    async def unload(self, name: str) -> Accepted | Failure:
        """Unload one adapter; accepted also if it was not loaded (`already`)."""
        ...

    async def close(self) -> None:
        """Release the connections."""
        ...
