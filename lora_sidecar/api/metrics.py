"""The metrics: gauges derived from one snapshot when they are asked for, counters fed by the facts.

The traps guarded against: a gauge that stays at 1 while the server is away (nothing unknown is ever shown as 1); names
of adapters that grow without bound into series (the listing is capped, and the cap is said); one label that is no UTF-8
and costs the whole scrape; and a counter that appears with its first event, of which no rate can be taken (every series
that may come is there from the start).
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from lora_sidecar import __version__
from lora_sidecar.api.exposition import Family, Histogram, Total, exposition
from lora_sidecar.api.process import process
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import Event, EventName
from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.reconcile.state import Verdict
from lora_sidecar.status.adapters import AdapterState, AdapterStatus
from lora_sidecar.status.board import Board, ServerStatus, Snapshot, not_ready

T = TypeVar("T", Total, Histogram)

ADAPTER_SERIES: Final = 500
"""Adapters of one server that have series of their own, required ones first; the counts by state cover all."""

_STATES: Final = tuple(state for state in AdapterState if state is not AdapterState.WITHDRAWN)
"""Those of desired adapters."""

SUCCEEDED: Final = "succeeded"

OF_THE_PROCESS: Final = (ConditionType.CONFIG_REJECTED, ConditionType.CONFIG_NEEDS_RESTART)
"""Conditions that are of no server; their series has an empty `server`."""

_TOTALS: Final = {
    EventName.SERVER_DOWN: ("outages", "Outages of the server that began."),
    EventName.SERVER_RESTARTED: ("restarts", "New incarnations of the server that were noticed."),
    EventName.ADAPTER_ADOPTED: ("adapters_adopted", "Adapters that others loaded and that are desired since."),
    EventName.ADAPTER_FORGOTTEN: ("adapters_forgotten", "Adapters that were unloaded on purpose."),
    EventName.CHECKPOINT_WRITTEN: ("checkpoint_writes", "Checkpoints that were written."),
    EventName.CHECKPOINT_WRITE_FAILED: (
        "checkpoint_write_failures",
        "Tries to read or write a checkpoint that failed.",
    ),
    EventName.CHECKPOINT_QUARANTINED: ("checkpoint_quarantined", "Damaged checkpoints that were moved aside."),
}
"""Events of a server of which only the number matters."""

_BEATS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LOADS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OUTAGES: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """Every metric of the process."""

    def __init__(self, board: Board, now: Callable[[], float], liveness: Callable[[], float]) -> None:
        """`now` is the loop's clock, `liveness` the longest age in seconds that the last heartbeat may have."""
        self._look: Callable[[], Snapshot] = lambda: board.snapshot(now(), liveness())
        self._counted: list[Total | Histogram] = []
        self._beats = self._histogram("heartbeat_duration_seconds", "How long a heartbeat took.", _BEATS)
        self._verdicts = self._total("heartbeats", "Heartbeats that ended, by what they came to.", "verdict")
        self._totals = {event: self._total(name, text) for event, (name, text) in _TOTALS.items()}
        self._restores = self._total("restores", "Loads that ended: listed, or failed in one of these ways.", "result")
        self._loads = self._histogram("restore_duration_seconds", "How long a load took that succeeded.", _LOADS)
        self._away = self._histogram(
            "outage_duration_seconds", "From the last good answer before an outage to the first after it.", _OUTAGES
        )
        self._recovery = self._histogram(
            "recovery_duration_seconds",
            "From the first good answer after an outage to everything restored or known to fail.",
            _OUTAGES,
        )
        self._unrestored = self._total("recovery_failures", "Adapters that a recovery left unrestored when it ended.")
        self._rejections = self._counting(
            Total("lora_sidecar_config_rejections", "Times that a changed config was found bad.")
        )
        self._rejections.begin()
        for status in board.statuses():
            self._begin(status.name)

    def _total(self, name: str, documentation: str, *labels: str) -> Total:
        return self._counting(Total(f"lora_sidecar_{name}", documentation, "server", *labels))

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return self._counting(Histogram(f"lora_sidecar_{name}", documentation, buckets, "server"))

    def _counting(self, counted: T) -> T:
        self._counted.append(counted)
        return counted

    def _begin(self, server: str) -> None:
        """Have every series of a server at 0."""
        for family in (*self._totals.values(), self._unrestored):
            family.begin(server)
        for histogram in (self._beats, self._loads, self._away, self._recovery):
            histogram.begin(server)
        for verdict in Verdict:
            self._verdicts.begin(server, verdict.value)
        for result in (SUCCEEDED, *FailureKind):
            self._restores.begin(server, str(result))

    def count(self, server: str, facts: Iterable[Event]) -> None:
        """Take facts of one server into account, or with the name "" those of the process."""
        for fact in facts:
            self._count(server, fact)

    def _count(self, server: str, fact: Event) -> None:
        said = fact.fields
        match fact.event:
            case EventName.HEARTBEAT_COMPLETED:
                self._beats.observe(server, seconds=said["seconds"])
                self._verdicts.add(server, said["verdict"])
            case EventName.RESTORE_SUCCEEDED:
                self._restores.add(server, SUCCEEDED)
                self._loads.observe(server, seconds=said["seconds"])
            case EventName.RESTORE_FAILED:
                self._restores.add(server, said["kind"])
            case EventName.RECOVERY_COMPLETED:
                self._away.observe(server, seconds=said["outage_seconds"])
                self._recovery.observe(server, seconds=said["restore_seconds"])
                self._unrestored.add(server, by=said["failed"])
            case EventName.CONFIG_REJECTED:
                self._rejections.add()
            case _ if fact.event in self._totals:
                self._totals[fact.event].add(server)
            case _:
                pass

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        counted = (each.family() for each in self._counted)
        return exposition((*_gauges(self._look()), *process(), *counted))


def _gauges(snapshot: Snapshot) -> Iterable[Family]:
    """What is made from one snapshot at every scrape."""
    yield from _whole(snapshot)
    yield from _heartbeats(snapshot)
    yield from _adapters(snapshot.servers)
    yield _conditions(snapshot)


def _whole(snapshot: Snapshot) -> Iterable[Family]:
    build = _gauge("build_info", "The version that runs; always 1.", "version", "python_version")
    build.add((__version__, platform.python_version()), 1)
    yield build
    yield _single("ready", "1 while /readyz answers 200: every required adapter is listed.", not not_ready(snapshot))
    yield _single("config_generation", "Configs taken over since the start.", snapshot.config_generation)
    rejected = any(held.type is ConditionType.CONFIG_REJECTED for held in snapshot.config_conditions)
    yield _single(
        "config_last_reload_successful", "0 while the mounted config is bad and an older one is in force.", not rejected
    )


def _heartbeats(snapshot: Snapshot) -> Iterable[Family]:
    up = _gauge(
        "server_up", "1 while the server gives good answers; 0 while it is away or cannot be trusted.", "server"
    )
    phase = _gauge("server_phase", "1 for what is known of the server, 0 for the others.", "server", "phase")
    since = _gauge("server_phase_age_seconds", "Since that phase began.", "server")
    life = _gauge("server_incarnation", "The number of the server's life, as the checkpoint counts.", "server")
    age = _gauge("heartbeat_age_seconds", "Since the last heartbeat ended, or since the start.", "server")
    good = _gauge(
        "heartbeat_last_good_age_seconds", "Since the last good answer; no series before the first.", "server"
    )
    saved = _gauge("checkpoint_generation", "The generation of the checkpoint on disk.", "server")
    for status in snapshot.servers:
        server = status.work.server
        name = status.name
        up.add((name,), server.phase is Phase.UP)
        for one in Phase:
            phase.add((name, one.value), server.phase is one)
        since.add((name,), max(0.0, snapshot.at - server.since))
        life.add((name,), status.desired.incarnation.number)
        age.add((name,), max(0.0, snapshot.at - status.beat_at))
        if server.last_good is not None:
            good.add((name,), max(0.0, snapshot.at - server.last_good))
        saved.add((name,), status.saved_generation)
    yield from (up, phase, since, life, age, good, saved)


def _adapters(servers: Iterable[ServerStatus]) -> Iterable[Family]:
    counts = _gauge("adapters", "Adapters by state, desired or withdrawn; all of them.", "server", "state")
    cap = f"the first {ADAPTER_SERIES} of a server, required ones first"
    state = _gauge("adapter_state", f"1 for the state of a desired adapter ({cap}).", "server", "adapter", "state")
    proven = _gauge("adapters_proven", "Listed adapters that answered their last probe by inference.", "server")
    left_out = _gauge("adapter_series_omitted", "Desired adapters without series of their own.", "server")
    for status in servers:
        by_state = Counter(one.state for one in status.adapters)
        by_state[AdapterState.WITHDRAWN] = len(status.desired.withdrawn)
        proven.add((status.name,), sum(one.proven for one in status.adapters))
        for each in AdapterState:
            counts.add((status.name, each.value), by_state[each])
        for one in with_series(status.adapters):
            label = one.adapter.name.encode("utf-8", "backslashreplace").decode()
            for each in _STATES:
                state.add((status.name, label, each.value), one.state is each)
        left_out.add((status.name,), max(0, len(status.adapters) - ADAPTER_SERIES))
    yield from (counts, proven, state, left_out)


def with_series(adapters: tuple[AdapterStatus, ...]) -> tuple[AdapterStatus, ...]:
    """The adapters that have series of their own: a choice that changes only when desired does."""
    if len(adapters) <= ADAPTER_SERIES:
        return adapters
    required = [one for one in adapters if one.adapter.required]
    others = [one for one in adapters if not one.adapter.required]
    return tuple((required + others)[:ADAPTER_SERIES])


def _conditions(snapshot: Snapshot) -> Family:
    family = _gauge("condition", "1 for each condition that holds, else 0.", "server", "type")
    for status in snapshot.servers:
        held = {one.type for one in status.conditions}
        for kind in ConditionType:
            if kind not in OF_THE_PROCESS:
                family.add((status.name, kind.value), kind in held)
    held = {one.type for one in snapshot.config_conditions}
    for kind in OF_THE_PROCESS:
        family.add(("", kind.value), kind in held)
    return family


def _single(name: str, documentation: str, value: float) -> Family:
    family = _gauge(name, documentation)
    family.add((), value)
    return family


def _gauge(name: str, documentation: str, *labels: str) -> Family:
    return Family("gauge", f"lora_sidecar_{name}", documentation, *labels)
