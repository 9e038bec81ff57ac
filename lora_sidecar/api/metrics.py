"""The metrics: gauges derived from one snapshot at each scrape, counters fed by the events.

The traps guarded against: a gauge that stays at 1 while the server is away (nothing unknown is ever shown as 1); names
of adapters that grow without bound into series (the listing is capped, and the cap is said); one label that is no UTF-8
and costs the whole scrape; and a counter that appears with its first event, of which no rate can be taken (every series
that may come is there from the start).
"""

from __future__ import annotations

import platform
import sys
from collections import Counter as Tally
from collections.abc import Iterable
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

from lora_sidecar import __version__
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import Event, EventName
from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.core.text import encodable
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.reconcile.state import Verdict
from lora_sidecar.status.adapters import AdapterState, AdapterStatus
from lora_sidecar.status.board import ServerStatus, Snapshot, not_ready

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

ADAPTER_SERIES: Final = 500
"""Adapters of one server that have series of their own, required ones first; the counts by state cover all."""

SUCCEEDED: Final = "succeeded"

OF_THE_PROCESS: Final = (ConditionType.CONFIG_REJECTED, ConditionType.CONFIG_NEEDS_RESTART)
"""Conditions that are of no server; their series has an empty `server`."""

_STATES: Final = tuple(state for state in AdapterState if state is not AdapterState.WITHDRAWN)
"""Those of desired adapters."""

_COUNTED: Final = {
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

# When a series was made is no series that is documented, and there would be one beside each counter.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """Every metric of the process."""

    def __init__(self, servers: Iterable[str]) -> None:
        """`servers` are the names of all servers."""
        self._registry = CollectorRegistry()
        self._gauges = _Gauges()
        self._registry.register(self._gauges)
        ProcessCollector(registry=self._registry)
        self._beats = self._histogram("heartbeat_duration_seconds", "How long a heartbeat took.", _BEATS)
        self._verdicts = self._counter("heartbeats", "Heartbeats that ended, by what they came to.", "verdict")
        self._counters = {event: self._counter(name, text) for event, (name, text) in _COUNTED.items()}
        self._restores = self._counter(
            "restores", "Loads that ended: listed, or failed in one of these ways.", "result"
        )
        self._loads = self._histogram("restore_duration_seconds", "How long a load took that succeeded.", _LOADS)
        self._away = self._histogram(
            "outage_duration_seconds", "From the last good answer before an outage to the first after it.", _OUTAGES
        )
        self._recovery = self._histogram(
            "recovery_duration_seconds",
            "From the first good answer after an outage to everything restored or known to fail.",
            _OUTAGES,
        )
        self._unrestored = self._counter("recovery_failures", "Adapters that a recovery left unrestored when it ended.")
        self._rejections = Counter(
            "lora_sidecar_config_rejections", "Times that a changed config was found bad.", registry=self._registry
        )
        for server in servers:
            self._begin(server)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"lora_sidecar_{name}", documentation, ("server", *labels), registry=self._registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"lora_sidecar_{name}", documentation, ("server",), buckets=buckets, registry=self._registry)

    def _begin(self, server: str) -> None:
        """Have every series of a server at 0."""
        for metric in (*self._counters.values(), self._unrestored):
            metric.labels(server)
        for histogram in (self._beats, self._loads, self._away, self._recovery):
            histogram.labels(server)
        for verdict in Verdict:
            self._verdicts.labels(server, verdict.value)
        for result in (SUCCEEDED, *FailureKind):
            self._restores.labels(server, str(result))

    def count(self, server: str, events: Iterable[Event]) -> None:
        """Take events of one server into account, or with the name "" those of the process."""
        for event in events:
            self._count(server, event)

    def _count(self, server: str, event: Event) -> None:
        said = event.fields
        match event.event:
            case EventName.HEARTBEAT_COMPLETED:
                self._beats.labels(server).observe(said["seconds"])
                self._verdicts.labels(server, said["verdict"]).inc()
            case EventName.RESTORE_SUCCEEDED:
                self._restores.labels(server, SUCCEEDED).inc()
                self._loads.labels(server).observe(said["seconds"])
            case EventName.RESTORE_FAILED:
                self._restores.labels(server, str(said["kind"])).inc()
            case EventName.RECOVERY_COMPLETED:
                self._away.labels(server).observe(said["outage_seconds"])
                self._recovery.labels(server).observe(said["restore_seconds"])
                self._unrestored.labels(server).inc(said["failed"])
            case EventName.CONFIG_REJECTED:
                self._rejections.inc()
            case _ if event.event in self._counters:
                self._counters[event.event].labels(server).inc()
            case _:
                pass

    def text(self, snapshot: Snapshot) -> bytes:
        """The exposition in Prometheus' text format.

        With hundreds of adapters it takes tens of milliseconds: call it in a thread, one call at a time.
        """
        self._gauges.snapshot = snapshot
        return generate_latest(self._registry)


class _Gauges:
    """A collector of what is made from one snapshot at every scrape."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None

    def collect(self) -> Iterable[GaugeMetricFamily]:
        if self.snapshot is not None:
            yield from _whole(self.snapshot)
            yield from _heartbeats(self.snapshot)
            yield from _adapters(self.snapshot.servers)
            yield _conditions(self.snapshot)


def _whole(snapshot: Snapshot) -> Iterable[GaugeMetricFamily]:
    build = _gauge("build_info", "The version that runs; always 1.", "version", "python_version")
    build.add_metric((__version__, platform.python_version()), 1)
    yield build
    yield _single("ready", "1 while /readyz answers 200: every required adapter is listed.", not not_ready(snapshot))
    yield _single("config_generation", "Configs taken over since the start.", snapshot.config_generation)
    rejected = any(held.type is ConditionType.CONFIG_REJECTED for held in snapshot.config_conditions)
    yield _single(
        "config_last_reload_successful", "0 while the mounted config is bad and an older one is in force.", not rejected
    )


def _heartbeats(snapshot: Snapshot) -> Iterable[GaugeMetricFamily]:
    up = _gauge(
        "server_up", "1 while the server gives good answers; 0 while it is away or cannot be trusted.", "server"
    )
    phase = _gauge("server_phase", "1 for what is known of the server, 0 for the others.", "server", "phase")
    since = _gauge("server_phase_age_seconds", "Since that phase began.", "server")
    incarnation = _gauge(
        "server_incarnation", "The number of the server's incarnation, as the checkpoint counts.", "server"
    )
    age = _gauge("heartbeat_age_seconds", "Since the last heartbeat ended, or since the start.", "server")
    good = _gauge(
        "heartbeat_last_good_age_seconds", "Since the last good answer; no series before the first.", "server"
    )
    saved = _gauge("checkpoint_generation", "The generation of the checkpoint on disk.", "server")
    for status in snapshot.servers:
        server = status.work.server
        name = status.name
        up.add_metric((name,), server.phase is Phase.UP)
        for one in Phase:
            phase.add_metric((name, one.value), server.phase is one)
        since.add_metric((name,), max(0.0, snapshot.at - server.since))
        incarnation.add_metric((name,), _counted(status.desired.incarnation.number))
        age.add_metric((name,), max(0.0, snapshot.at - status.beat_at))
        if server.last_good is not None:
            good.add_metric((name,), max(0.0, snapshot.at - server.last_good))
        saved.add_metric((name,), _counted(status.saved_generation))
    yield from (up, phase, since, incarnation, age, good, saved)


def _counted(number: int) -> float:
    """A number that a checkpoint held, however large, as a float."""
    return float(min(number, sys.maxsize))


def _adapters(servers: Iterable[ServerStatus]) -> Iterable[GaugeMetricFamily]:
    counts = _gauge("adapters", "Adapters by state, desired or withdrawn; all of them.", "server", "state")
    cap = f"the first {ADAPTER_SERIES} of a server, required ones first"
    state = _gauge("adapter_state", f"1 for the state of a desired adapter ({cap}).", "server", "adapter", "state")
    proven = _gauge("adapters_proven", "Listed adapters that answered their last probe by inference.", "server")
    left_out = _gauge("adapter_series_omitted", "Desired adapters without series of their own.", "server")
    for status in servers:
        by_state = Tally(one.state for one in status.adapters)
        by_state[AdapterState.WITHDRAWN] = len(status.desired.withdrawn)
        proven.add_metric((status.name,), sum(one.proven for one in status.adapters))
        for each in AdapterState:
            counts.add_metric((status.name, each.value), by_state[each])
        for one in with_series(status.adapters):
            label = encodable(one.adapter.name)
            for each in _STATES:
                state.add_metric((status.name, label, each.value), one.state is each)
        left_out.add_metric((status.name,), max(0, len(status.adapters) - ADAPTER_SERIES))
    yield from (counts, proven, state, left_out)


def with_series(adapters: tuple[AdapterStatus, ...]) -> tuple[AdapterStatus, ...]:
    """The adapters that have series of their own: a choice that changes only when desired does."""
    if len(adapters) <= ADAPTER_SERIES:
        return adapters
    required = [one for one in adapters if one.adapter.required]
    others = [one for one in adapters if not one.adapter.required]
    return tuple((required + others)[:ADAPTER_SERIES])


def _conditions(snapshot: Snapshot) -> GaugeMetricFamily:
    family = _gauge("condition", "1 for each condition that holds, else 0.", "server", "type")
    for status in snapshot.servers:
        held = {one.type for one in status.conditions}
        for kind in ConditionType:
            if kind not in OF_THE_PROCESS:
                family.add_metric((status.name, kind.value), kind in held)
    held = {one.type for one in snapshot.config_conditions}
    for kind in OF_THE_PROCESS:
        family.add_metric(("", kind.value), kind in held)
    return family


def _single(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"lora_sidecar_{name}", documentation, value=value)


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"lora_sidecar_{name}", documentation, labels=labels)
