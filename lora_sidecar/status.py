"""What the heartbeat publishes and everybody else reads: one frozen snapshot a server, replaced as a whole.

The trap guarded against is a health answer put together from parts of different moments, or from state that its owner
is changing. Readers get the last complete snapshot and derive what they show from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from lora_sidecar.desired import same_path
from lora_sidecar.model import Adapter, Desired, FailureKind
from lora_sidecar.work import Attempt, Condition, Phase, Verdict, Work


class AdapterState(StrEnum):
    """What is known of one desired adapter."""

    LISTED = "listed"
    REPLACED = "replaced"
    """Listed, with another path than desired."""
    MISSING = "missing"
    """Not listed, and about to be restored or found to have been unloaded."""
    BACKOFF = "backoff"
    PARKED = "parked"
    HELD = "held"
    """Not listed, and nothing is loaded for a reason of the whole server."""
    UNKNOWN = "unknown"
    """The server is not up, so nothing can be said."""


class ServerStatus(Struct, frozen=True):
    """A server as of its last completed heartbeat, which ended at `beat_at`.

    `saved_generation` is the checkpoint's generation on disk. `failing` is why the server's own container should be
    ended, empty if it should not be.
    """

    name: str
    desired: Desired
    work: Work
    verdict: Verdict
    beat_at: float
    beat_seconds: float
    saved_generation: int
    conditions: tuple[Condition, ...]
    failing: str = ""


class AdapterStatus(Struct, frozen=True):
    """One desired adapter, its state, and the reason where the state has one."""

    adapter: Adapter
    state: AdapterState
    reason: str = ""


def adapters_of(status: ServerStatus) -> tuple[AdapterStatus, ...]:
    """Every desired adapter with its state, by name."""
    work = status.work
    listed = {} if work.last is None else {card.name: card.path for card in work.last.adapters}
    up = work.server.phase is Phase.UP
    return tuple(_status(a, listed, work, up=up) for _, a in sorted(status.desired.adapters.items()))


def _status(adapter: Adapter, listed: Mapping[str, str], work: Work, *, up: bool) -> AdapterStatus:
    if not up:
        return AdapterStatus(adapter, AdapterState.UNKNOWN, f"the server is {work.server.phase.value}")
    path = listed.get(adapter.name)
    if path is not None:
        if same_path(path, adapter.path):
            return AdapterStatus(adapter, AdapterState.LISTED)
        return AdapterStatus(adapter, AdapterState.REPLACED, f"listed with the path {path}")
    attempt = work.attempts.get(adapter.name, Attempt())
    if attempt.failures and attempt.failure is not None:
        parked = attempt.failure.kind is FailureKind.ADAPTER
        return AdapterStatus(adapter, AdapterState.PARKED if parked else AdapterState.BACKOFF, attempt.failure.message)
    if work.hold is not None:
        return AdapterStatus(adapter, AdapterState.HELD, work.hold.failure.message)
    if work.withheld is not None:
        return AdapterStatus(adapter, AdapterState.HELD, work.withheld.detail)
    if work.last is not None and work.last.runtime_loading is False:
        return AdapterStatus(adapter, AdapterState.HELD, "the server cannot load adapters at run time")
    return AdapterStatus(adapter, AdapterState.MISSING)


def unready(status: ServerStatus) -> tuple[str, ...]:
    """Why this server is not ready, a line each; empty if every required adapter is listed."""
    required = [s for s in adapters_of(status) if s.adapter.required]
    kept_back = [s for s in required if s.state not in (AdapterState.LISTED, AdapterState.REPLACED)]
    return tuple(
        f"{status.name}: adapter {s.adapter.name} is {s.state.value}{s.reason and ': ' + s.reason}" for s in kept_back
    )


class Board:
    """Where the newest snapshot of every server and the process's own conditions are found."""

    def __init__(self, servers: tuple[str, ...]) -> None:
        """`servers` are the names of all servers, published or not."""
        self._servers = servers
        self._statuses: dict[str, ServerStatus] = {}
        self.config_generation = 0
        self.config_conditions: tuple[Condition, ...] = ()

    def publish(self, status: ServerStatus) -> None:
        """Replace the snapshot of one server."""
        self._statuses[status.name] = status

    def statuses(self) -> tuple[ServerStatus, ...]:
        """The newest snapshots, in the order of the config; none of a server before its first heartbeat."""
        return tuple(self._statuses[name] for name in self._servers if name in self._statuses)

    def awaited(self) -> tuple[str, ...]:
        """The servers that have not completed a heartbeat yet."""
        return tuple(name for name in self._servers if name not in self._statuses)
