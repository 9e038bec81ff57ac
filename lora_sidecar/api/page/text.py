"""What the page says in words: durations, times and the one sentence that a person reads first.

The trap guarded against is a page that looks green while something is wrong: the headline is chosen by what is worst,
in a fixed order, from the same document that programs read.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Final

from msgspec import Struct

from lora_sidecar.api.document import Document
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.status.adapters import AdapterState


class Mood(StrEnum):
    """How good or bad something is; each has a colour and a sign of its own."""

    GOOD = "good"
    BUSY = "busy"
    WARN = "warn"
    BAD = "bad"
    IDLE = "idle"


PHASES: Final = {
    Phase.UP.value: (Mood.GOOD, "up"),
    Phase.DOWN.value: (Mood.BAD, "down"),
    Phase.UNKNOWN.value: (Mood.WARN, "unknown"),
    Phase.STARTING.value: (Mood.IDLE, "starting"),
}

STATES: Final = {
    AdapterState.LISTED.value: Mood.GOOD,
    AdapterState.DEAD.value: Mood.BAD,
    AdapterState.NOT_APPLIED.value: Mood.WARN,
    AdapterState.REPLACED.value: Mood.WARN,
    AdapterState.EVICTED.value: Mood.IDLE,
    AdapterState.MISSING.value: Mood.BUSY,
    AdapterState.BACKOFF.value: Mood.WARN,
    AdapterState.PARKED.value: Mood.BAD,
    AdapterState.QUARANTINED.value: Mood.BAD,
    AdapterState.HELD.value: Mood.WARN,
    AdapterState.WITHDRAWN.value: Mood.IDLE,
    AdapterState.UNKNOWN.value: Mood.IDLE,
}

NAMES: Final = {state.value: state.value.replace("_", " ") for state in AdapterState}
"""The states in words."""

CONDITIONS: Final = {
    ConditionType.SERVER_WEDGED.value: Mood.BAD,
    ConditionType.SERVER_HUNG.value: Mood.BAD,
    ConditionType.ADAPTER_DEAD.value: Mood.BAD,
    ConditionType.PAUSED.value: Mood.IDLE,
    ConditionType.ENGINE_ASLEEP.value: Mood.IDLE,
}
"""How bad a condition is, where it is not a warning."""

LEVELS: Final = {"debug": Mood.IDLE, "info": Mood.IDLE, "warning": Mood.WARN, "error": Mood.BAD}

EVENTS: Final = {
    EventName.SERVER_DOWN.value: Mood.BAD,
    EventName.SERVER_UP.value: Mood.GOOD,
    EventName.PROBE_RECOVERED.value: Mood.GOOD,
    EventName.RESTORE_SUCCEEDED.value: Mood.GOOD,
    EventName.RECOVERY_COMPLETED.value: Mood.GOOD,
    EventName.RESTORE_COMPLETED.value: Mood.GOOD,
    EventName.CHECKPOINT_RECOVERED.value: Mood.GOOD,
    EventName.CONDITION_CLEARED.value: Mood.GOOD,
}
"""What an event means to a person, where that is not its level."""


_NOT_UP: Final = (
    (Phase.DOWN, "is down", "are down"),
    (Phase.UNKNOWN, "gives no answer that can be trusted", "give no answers that can be trusted"),
    (Phase.STARTING, "has not answered yet", "have not answered yet"),
)


_AILING: Final = (
    (ConditionType.SERVER_WEDGED, "is wedged: its container should be ended"),
    (ConditionType.SERVER_HUNG, "hangs: its container should be ended"),
)


def event_mood(event: str, level: str) -> Mood:
    """What an event means; good news that is told as a warning, a recovery that left something behind, is none."""
    own, told = EVENTS.get(event), LEVELS[level]
    return told if own is None or (own is Mood.GOOD and told is not Mood.IDLE) else own


class Headline(Struct, frozen=True):
    """The state of everything in one sentence, and a second one that may be empty."""

    mood: Mood
    text: str
    detail: str = ""


def headline(shown: Document) -> Headline:
    """The sentence that a person reads first: about what is worst."""
    if not shown.live:
        return Headline(Mood.BAD, "Heartbeats do not come to their end", shown.not_live[0])
    for condition, words in _AILING:
        ailing = [server for server in shown.servers if any(held.type == condition for held in server.conditions)]
        if ailing:
            return Headline(Mood.BAD, f"{ailing[0].name} {words}", ailing[0].failing)
    for phase, one, several in _NOT_UP:
        found = [server for server in shown.servers if server.phase == phase.value]
        if found:
            text = f"{found[0].name} {one}" if len(found) == 1 else f"{len(found)} servers {several}"
            return Headline(PHASES[phase.value][0], text)
    return _of_adapters(shown)


def _of_adapters(shown: Document) -> Headline:
    counts = {state: sum(server.adapters[state.value] for server in shown.servers) for state in AdapterState}
    total = sum(counts.values()) - counts[AdapterState.WITHDRAWN]
    useless = counts[AdapterState.DEAD] + counts[AdapterState.NOT_APPLIED]
    failing = sum(counts[state] for state in (AdapterState.PARKED, AdapterState.QUARANTINED, AdapterState.BACKOFF))
    if failing:
        cannot = "is" if failing == 1 else "are"
        return Headline(
            Mood.BAD if not shown.ready else Mood.WARN, f"{number(failing, 'adapter')} {cannot} failing to load"
        )
    if useless:
        verbs = "is listed and does" if useless == 1 else "are listed and do"
        mood = Mood.BAD if counts[AdapterState.DEAD] else Mood.WARN
        return Headline(mood, f"{number(useless, 'adapter')} {verbs} not work")
    paused = [held for server in shown.servers for held in server.conditions if held.type == ConditionType.PAUSED]
    if paused:
        return Headline(Mood.WARN, "Loads and unloads are paused", paused[0].message)
    if counts[AdapterState.HELD]:
        waiting = "is" if counts[AdapterState.HELD] == 1 else "are"
        return Headline(Mood.WARN, f"{number(counts[AdapterState.HELD], 'adapter')} {waiting} held back")
    if counts[AdapterState.MISSING]:
        return Headline(Mood.BUSY, f"Restoring {number(counts[AdapterState.MISSING], 'adapter')}")
    held = [condition.type for server in shown.servers for condition in server.conditions]
    held += [condition.type for condition in shown.conditions]
    if held:
        return Headline(Mood.WARN, "Something needs attention", ", ".join(held))
    if not total:
        return Headline(Mood.GOOD, "Nothing to keep yet", "What others load into the server will be remembered.")
    evicted = counts[AdapterState.EVICTED]
    if evicted:
        made = "The server made room, and loads them again by itself when they are asked for."
        return Headline(Mood.GOOD, f"{total - evicted:,} of {number(total, 'adapter')} are listed", made)
    return Headline(Mood.GOOD, "The adapter is listed" if total == 1 else f"All {total:,} adapters are listed")


def number(count: int, one: str, several: str = "") -> str:
    """A count with its noun: 1 adapter, 2 adapters."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {several or one + 's'}"


def seconds_between(earlier: str, later: str) -> float:
    """The seconds from one date of the document to another."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def duration(seconds: float) -> str:
    """A duration as a person says it, in one or two units; the script writes the same."""
    whole = round(seconds)
    if 0 < seconds < 0.95:  # noqa: PLR2004 - tenths of less than a second say nothing
        return f"{max(1, round(seconds * 1000))} ms"
    if seconds < 9.95:  # noqa: PLR2004 - from there on the tenths are rounded away
        return f"{max(0.0, seconds):.1f} s"
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 120:  # noqa: PLR2004
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h" if hours < 48 else f"{hours // 24} d"  # noqa: PLR2004


def ago(date: str, now: str) -> str:
    """How long ago a date is, roughly; the script writes the same as time goes on."""
    seconds = seconds_between(date, now)
    return "just now" if seconds < 1 else f"{how_long(date, now)} ago"


def how_long(date: str, now: str) -> str:
    """How long something lasts that began at a date, roughly; the script writes the same as time goes on."""
    return duration(float(int(seconds_between(date, now)))).replace(".0 s", " s")


def clock(date: str, now: str) -> str:
    """The time of day in UTC, with the day in front where it is another one than today."""
    day, time = date.split("T")
    return time[:8] if day == now[:10] else f"{day[5:]} {time[:8]}"
