"""The events that the log carries, by name, and the value in which the pure core hands them to the shell.

The core decides what happened and cannot log; the shell logs and must not decide. A `Event` is what passes between
them, so a test can say what a person will read without capturing any output. Names are a promise to whoever tails the
log: one meaning each, `lowercase.dotted.past`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct


class EventName(StrEnum):
    """Every event name that the log may carry."""

    DAEMON_STARTED = "daemon.started"
    DAEMON_STOPPING = "daemon.stopping"
    DAEMON_STOPPED = "daemon.stopped"
    DAEMON_FAILED = "daemon.failed"
    CONFIG_LOADED = "config.loaded"
    CONFIG_REJECTED = "config.rejected"
    CONFIG_RELOADED = "config.reloaded"
    SERVER_IDENTIFIED = "server.identified"
    SERVER_UP = "server.up"
    SERVER_DOWN = "server.down"
    SERVER_RESTARTED = "server.restarted"
    PROBE_FAILED = "probe.failed"
    PROBE_RECOVERED = "probe.recovered"
    HEARTBEAT_COMPLETED = "heartbeat.completed"
    HEARTBEAT_OVERRUN = "heartbeat.overrun"
    DRIFT_DETECTED = "drift.detected"
    ADAPTER_ADOPTED = "adapter.adopted"
    ADAPTER_FORGOTTEN = "adapter.forgotten"
    ADAPTER_REPLACED = "adapter.replaced"
    ADAPTER_DECLARED = "adapter.declared"
    ADAPTER_DEFUSED = "adapter.defused"
    ADAPTER_ORPHANED = "adapter.orphaned"
    ADAPTER_RETIRED = "adapter.retired"
    ADAPTER_REQUESTED = "adapter.requested"
    ADAPTER_REFUSED = "adapter.refused"
    ADAPTER_WITHDRAWN = "adapter.withdrawn"
    ADAPTER_UNLOADED = "adapter.unloaded"
    ADAPTER_REINSTATED = "adapter.reinstated"
    UNLOAD_FAILED = "unload.failed"
    CONTROL_PAUSED = "control.paused"
    CONTROL_RESUMED = "control.resumed"
    RESTORE_STARTED = "restore.started"
    RESTORE_SUCCEEDED = "restore.succeeded"
    RESTORE_FAILED = "restore.failed"
    RESTORE_SUSPECTED = "restore.suspected"
    RESTORE_QUARANTINED = "restore.quarantined"
    RESTORE_COMPLETED = "restore.completed"
    RECOVERY_COMPLETED = "recovery.completed"
    VERIFICATION_COMPLETED = "verification.completed"
    CONDITION_RAISED = "condition.raised"
    CONDITION_CLEARED = "condition.cleared"
    CHECKPOINT_LOADED = "checkpoint.loaded"
    CHECKPOINT_WRITTEN = "checkpoint.written"
    CHECKPOINT_WRITE_FAILED = "checkpoint.write_failed"
    CHECKPOINT_QUARANTINED = "checkpoint.quarantined"
    CHECKPOINT_RECOVERED = "checkpoint.recovered"
    LOG_DROPPED = "log.dropped"


class Level(StrEnum):
    """How loud an event is."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Event(Struct, frozen=True):
    """Something that happened, fit to be logged as it is.

    `repeats` names what the fact repeats where it may come again and again; such facts are thinned out by the log.
    A field whose name ends in `_at` is a time of the loop's clock; the log writes it as a date.
    """

    event: EventName
    level: Level
    fields: Mapping[str, Any]
    repeats: str = ""


def info(event: EventName, /, **fields: Any) -> Event:  # noqa: ANN401 - whatever JSON can carry
    """A transition that a person wants to see."""
    return Event(event, Level.INFO, fields)


def warning(event: EventName, /, *, repeats: str = "", **fields: Any) -> Event:  # noqa: ANN401 - as above
    """Something that a person may have to act on."""
    return Event(event, Level.WARNING, fields, repeats)
