"""The metrics: gauges derived from the newest snapshots when they are asked for, counters fed by the facts.

The traps guarded against: a gauge that stays at 1 while the server is away (nothing unknown is ever shown as 1), and
names of adapters that grow without bound into series (the listing is capped, and the cap is said).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as Total
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lora_sidecar import __version__
from lora_sidecar.events import Event, Fact
from lora_sidecar.status import AdapterState, Board, ServerStatus, adapters_of
from lora_sidecar.work import Phase

ADAPTER_SERIES: Final = 1000
"""Adapters of one server that have a series of their own; the counts by state cover all."""

_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Every metric of the process, in a registry of its own."""

    def __init__(self, board: Board, now: Callable[[], float]) -> None:
        """`now` is the loop's clock."""
        self._registry = CollectorRegistry()
        self._registry.register(_Snapshots(board, now))
        self._outages = self._total("outages", "Outages of the server that began.")
        self._restarts = self._total("restarts", "New incarnations of the server that were noticed.")
        self._restored = self._total("restores", "Adapters that were loaded and then listed.")
        self._failed = self._total("restore_failures", "Loads that failed.")
        self._recovery = Histogram(
            "lora_sidecar_recovery_seconds",
            "From the server's first good answer after an outage to everything restored or known to fail.",
            ["server"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def _total(self, name: str, documentation: str) -> Total:
        return Total(f"lora_sidecar_{name}", documentation, ["server"], registry=self._registry)

    def count(self, server: str, facts: Iterable[Fact]) -> None:
        """Take facts of one server into account."""
        for fact in facts:
            match fact.event:
                case Event.SERVER_DOWN:
                    self._outages.labels(server).inc()
                case Event.SERVER_RESTARTED:
                    self._restarts.labels(server).inc()
                case Event.RESTORE_SUCCEEDED:
                    self._restored.labels(server).inc()
                case Event.RESTORE_FAILED:
                    self._failed.labels(server).inc()
                case Event.RECOVERY_COMPLETED:
                    self._recovery.labels(server).observe(fact.fields["restore_seconds"])
                case _:
                    pass

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self._registry)


class _Snapshots(Collector):
    """The gauges, made from the newest snapshots at every scrape."""

    def __init__(self, board: Board, now: Callable[[], float]) -> None:
        self._board = board
        self._now = now

    def collect(self) -> Iterable[Metric]:
        statuses = self._board.statuses()
        build = _gauge("build_info", "The version that runs; always 1.", "version")
        build.add_metric([__version__], 1)
        up = _gauge("server_up", "1 while the server gives good answers, else 0.", "server")
        known = _gauge("server_known", "0 while the server answers and cannot be trusted, else 1.", "server")
        life = _gauge("server_incarnation", "The number of the server's life, as the checkpoint counts.", "server")
        age = _gauge("heartbeat_age_seconds", "Since the last heartbeat ended.", "server")
        took = _gauge("heartbeat_duration_seconds", "How long the last heartbeat took.", "server")
        saved = _gauge("checkpoint_generation", "The generation of the checkpoint on disk.", "server")
        adapters = _gauge("adapters", "Desired adapters by state.", "server", "state")
        listed = _gauge(
            "adapter_listed",
            f"1 if the desired adapter is known to be listed (first {ADAPTER_SERIES}).",
            "server",
            "adapter",
        )
        condition = _gauge("condition", "1 for each condition that holds.", "server", "type")
        for status in statuses:
            name = status.name
            up.add_metric([name], status.work.server.phase is Phase.UP)
            known.add_metric([name], status.work.server.phase is not Phase.UNKNOWN)
            life.add_metric([name], status.desired.incarnation.number)
            age.add_metric([name], max(0.0, self._now() - status.beat_at))
            took.add_metric([name], status.beat_seconds)
            saved.add_metric([name], status.saved_generation)
            self._adapters(status, adapters, listed)
            for held in status.conditions:
                condition.add_metric([name, held.type.value], 1)
        for held in self._board.config_conditions:
            condition.add_metric(["", held.type.value], 1)
        return [build, up, known, life, age, took, saved, adapters, listed, condition]

    def _adapters(self, status: ServerStatus, by_state: GaugeMetricFamily, listed: GaugeMetricFamily) -> None:
        found = adapters_of(status)
        counts = Counter(one.state for one in found)
        for state in AdapterState:
            by_state.add_metric([status.name, state.value], counts[state])
        for one in found[:ADAPTER_SERIES]:
            listed.add_metric([status.name, one.adapter.name], one.state is AdapterState.LISTED)


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"lora_sidecar_{name}", documentation, labels=labels)
