"""What the heartbeat publishes and everybody else reads: one frozen snapshot, replaced as a whole.

The trap guarded against is a health answer put together from parts of different moments, or from state that its owner
is changing. Probes, metrics, `/status` and the page read the same `Snapshot`, and derive what they show from it. A
second trap is a snapshot that is old: when a heartbeat has not ended within the liveness limit, what it once said is
unknown now, and is given out as unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.core.conditions import Condition
from lora_sidecar.core.events import Event
from lora_sidecar.core.model import Desired, Incarnation
from lora_sidecar.core.observation import Reason
from lora_sidecar.core.text import TEXT_LENGTH_SHOWN, printable
from lora_sidecar.reconcile.outage import Phase, ServerState
from lora_sidecar.reconcile.state import State, Verdict
from lora_sidecar.reconcile.verification import Trials
from lora_sidecar.status.adapters import SERVED, AdapterStatus, same_states, states_of
from lora_sidecar.status.history import Entry, History, Recovered, Span


class ServerStatus(Struct, frozen=True):
    """A server as of its last completed heartbeat, which ended at `beat_at`.

    `saved_generation` is the checkpoint's generation on disk. `failing` is why the server's own container should be
    ended, empty if it should not be. `trials` are what probes by inference came to, empty where nothing is probed. What
    follows is the board's: `beats` counts the heartbeats that ended, 0 before the first (`beat_at` is then when the
    server was announced), `adapters` are in the order of their names.
    """

    name: str
    desired: Desired
    work: State
    verdict: Verdict
    beat_at: float
    beat_seconds: float
    saved_generation: int
    conditions: tuple[Condition, ...]
    failing: str = ""
    trials: Trials = {}
    beats: int = 0
    adapters: tuple[AdapterStatus, ...] = ()
    spans: tuple[Span, ...] = ()
    recoveries: tuple[Recovered, ...] = ()


class Snapshot(Struct, frozen=True):
    """Everything that may be told about the process at the moment `at`.

    `revision` is another number whenever anything in it was published anew. `servers` are all of the config, in its
    order. `events` are the last of all servers and of the process, oldest first. `liveness` is the limit in seconds.
    """

    at: float
    started_at: float
    revision: int
    liveness: float
    servers: tuple[ServerStatus, ...]
    config_generation: int
    config_conditions: tuple[Condition, ...]
    events: tuple[Entry, ...]


def adapters_of(status: ServerStatus, before: Iterable[AdapterStatus] = ()) -> tuple[AdapterStatus, ...]:
    """Every desired adapter with its state, by name; `before` is what the last call gave, so that `since` goes on."""
    return states_of(status.desired, status.work, status.trials, before)


def unready(status: ServerStatus) -> tuple[str, ...]:
    """Why this server is not ready, a line each; empty if every required adapter is served."""
    if not status.beats:
        return (f"{status.name}: no heartbeat has ended yet",)
    required = [s for s in status.adapters if s.adapter.required]
    kept_back = [s for s in required if s.state not in SERVED]
    return tuple(
        f"{status.name}: adapter {s.adapter.name} is {s.state.value}{s.reason and ': ' + s.reason}" for s in kept_back
    )


def not_ready(snapshot: Snapshot) -> tuple[str, ...]:
    """Why the process is not ready, a line each; empty if it is."""
    return tuple(line for status in snapshot.servers for line in unready(status))


def not_live(snapshot: Snapshot) -> tuple[str, ...]:
    """The servers whose heartbeats do not come to their end, a line each; empty if all do."""
    lines: list[str] = []
    for status in snapshot.servers:
        age = snapshot.at - status.beat_at
        if age <= snapshot.liveness:
            continue
        if status.beats:
            limit = f"the limit is {snapshot.liveness:g} s"
            lines.append(f"{status.name}: the last heartbeat ended {age:.1f} s ago, {limit}")
        else:
            lines.append(f"{status.name}: no heartbeat has ended within {age:.1f} s")
    return tuple(lines)


class Board:
    """Where the newest snapshot is found, and what is needed to make it."""

    def __init__(self, servers: tuple[str, ...], started_at: float = 0.0) -> None:
        """`servers` are the names of all servers, published or not; `started_at` is now, in the loop's time."""
        self._servers = servers
        self._started_at = started_at
        self._statuses = {name: _announced(name, _NOTHING, started_at) for name in servers}
        self._histories = {name: History(name) for name in servers}
        self._process = History()
        self._pending: dict[str, list[tuple[float, Event]]] = {name: [] for name in servers}
        self._revision = 0
        self._config_generation = 0
        self._config_conditions: tuple[Condition, ...] = ()
        for name in servers:
            self._histories[name].mark(Phase.STARTING, 0, started_at, "")

    @property
    def config_generation(self) -> int:
        """How many configs were taken over since the start."""
        return self._config_generation

    @config_generation.setter
    def config_generation(self, value: int) -> None:
        self._config_generation = value
        self._revision += 1

    @property
    def config_conditions(self) -> tuple[Condition, ...]:
        """The conditions of the process itself."""
        return self._config_conditions

    @config_conditions.setter
    def config_conditions(self, value: tuple[Condition, ...]) -> None:
        if value != self._config_conditions:
            self._config_conditions = value
            self._revision += 1

    def announce(self, server: str, desired: Desired) -> None:
        """Say what will be desired of a server, before its first heartbeat: its adapters are then shown as unknown."""
        if not self._statuses[server].beats:
            self._statuses[server] = _announced(server, desired, self._started_at)
            self._revision += 1

    def note(self, server: str, at: float, events: Iterable[Event]) -> None:
        """Remember what was told at `at` of a server, or of the process where `server` is "".

        A server's events show together with the snapshot of the heartbeat that told them, and not before it.
        """
        if server in self._pending:
            self._pending[server] += [(at, event) for event in events]
        else:
            self._process.take(at, events)
            self._revision += 1

    def publish(self, status: ServerStatus) -> None:
        """Replace the snapshot of one server."""
        before = self._statuses[status.name]
        history = self._histories[status.name]
        for at, event in self._pending[status.name]:
            history.take(at, (event,))
        self._pending[status.name].clear()
        server, work = status.work.server, status.work
        began = server.since
        if server.phase is Phase.UP and before.work.server.phase is Phase.UP and work.last is not None:
            began = work.last.at
        history.mark(
            server.phase, status.desired.incarnation.number, began, printable(server.detail, TEXT_LENGTH_SHOWN)
        )
        same = same_states(_parts(before), _parts(status))
        self._statuses[status.name] = replace(
            status,
            beats=before.beats + 1,
            adapters=before.adapters if same else adapters_of(status, before.adapters),
            spans=history.spans,
            recoveries=history.recoveries,
        )
        self._revision += 1

    def snapshot(self, now: float, liveness: float) -> Snapshot:
        """Everything as of `now`; a server without a heartbeat for longer than `liveness` seconds is unknown."""
        rings = [self._process.entries, *(history.entries for history in self._histories.values())]
        return Snapshot(
            at=now,
            started_at=self._started_at,
            revision=self._revision,
            liveness=liveness,
            servers=tuple(_fresh(status, now, liveness) for status in self.statuses()),
            config_generation=self._config_generation,
            config_conditions=self._config_conditions,
            events=tuple(sorted((entry for ring in rings for entry in ring), key=_at)),
        )

    def statuses(self) -> tuple[ServerStatus, ...]:
        """The newest status of every server, in the order of the config."""
        return tuple(self._statuses[name] for name in self._servers)


_NOTHING: Final = Desired(adapters={}, incarnation=Incarnation(0))


def _announced(name: str, desired: Desired, at: float) -> ServerStatus:
    work = State(server=ServerState(since=at))
    status = ServerStatus(name, desired, work, Verdict.UNKNOWN, at, 0.0, 0, ())
    span = Span(Phase.STARTING, desired.incarnation.number, at)
    return replace(status, adapters=adapters_of(status), spans=(span,))


def _parts(status: ServerStatus) -> tuple[Desired, State, Trials]:
    return status.desired, status.work, status.trials


def _fresh(status: ServerStatus, now: float, liveness: float) -> ServerStatus:
    """The status itself, or what is left of it when no heartbeat has ended for longer than `liveness` seconds."""
    age = now - status.beat_at
    if age <= liveness or not status.beats:
        return status
    detail = f"no heartbeat has ended for {age:.1f} s"
    since = status.beat_at
    server = replace(status.work.server, phase=Phase.UNKNOWN, since=since, reason=Reason.LOCAL, detail=detail, hint="")
    stalled = replace(status, work=replace(status.work, server=server), verdict=Verdict.UNKNOWN)
    closed = tuple(replace(span, ended=since) if span.ended is None else span for span in status.spans)
    span = Span(Phase.UNKNOWN, status.desired.incarnation.number, since, reason=detail)
    return replace(stalled, adapters=adapters_of(stalled, status.adapters), spans=(*closed, span))


def _at(entry: Entry) -> float:
    return entry.at
