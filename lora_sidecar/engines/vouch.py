"""One look at a server with a silent connection held beside it, which vouches for what the look saw.

The trap guarded against is a client of another engine that holds the connection by rules of its own: when it is given
up, and when a look must not be shortened, decides whether an adapter is forgotten.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import assert_never

from msgspec.structs import replace

from lora_sidecar.core.observation import Observation, Observed, Reason, Unknown
from lora_sidecar.engines.connection import LivenessConnection


async def vouched(
    sentinel: LivenessConnection,
    look: Callable[[Observed | None], Awaitable[Observation]],
    trusted: Observed | None,
    deadline: float,
) -> Observation:
    """What `look` sees, with the connection that was open before it and after it; `deadline` is for opening another."""
    line = sentinel.line
    seen = await look(None if sentinel.unexplained else trusted)
    match seen:
        case Observed():
            if sentinel.unexplained:
                sentinel.explain(seen.start_time)
            seen = replace(seen, line=line if line == sentinel.line else None)
            sentinel.hold(seen.start_time, deadline)
        case Unknown():
            # A timeout leaves open who did not answer, and the connection may still tell; any other failure may be
            # another server on the port.
            if seen.reason is not Reason.TIMEOUT:
                sentinel.drop()
        case _:
            assert_never(seen)
    return seen
