"""What one heartbeat knows, and the verbs by which a rule speaks.

The trap guarded against is rules that reach into each other: what all of them know (listing, incarnation, files, time,
outcomes) is here, what each remembers is its own, and the one changes the other's only through a verb. A beat is made
and dropped within one `reconcile`, so that purity holds from outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct

from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.events import Event, EventName, info, warning
from lora_sidecar.core.model import Adapter, Desired, Incarnation
from lora_sidecar.core.observation import Files, Observation, Observed
from lora_sidecar.core.outcomes import Outcome, Retired, Unloaded
from lora_sidecar.core.text import reasons
from lora_sidecar.reconcile.backoff import Attempt, Now
from lora_sidecar.reconcile.policy import Policy


class Evidence(StrEnum):
    """What tells which incarnation a listing belongs to, strongest first."""

    START_TIME = "start_time"
    SILENT_CONNECTION = "silent_connection"
    OUTAGE = "outage"
    ALL_MISSING = "all_missing"
    NONE = "none"
    FIRST_SIGHT = "first_sight"


class Identified(Struct, frozen=True):
    """Which incarnation a listing belongs to, whether that is another one than before, and on what evidence."""

    incarnation: Incarnation
    restarted: bool
    evidence: Evidence


class BlockReason(StrEnum):
    """Why a missing adapter is not loaded although nothing is wrong with the server."""

    QUARANTINED = "quarantined"
    FILES_GONE = "files_gone"
    CAPACITY = "capacity"
    NAME_TAKEN = "name_taken"
    BASE_MODEL = "base_model"


class Blocked(Struct, frozen=True):
    """A missing adapter that is not loaded, why in a word, and why in a sentence."""

    reason: BlockReason
    why: str


class Happened(Struct, frozen=True):
    """What happened since the last heartbeat, each told once.

    `outcomes` are of loads and `unloads` of unloads that ended; `in_flight` are the adapters of the loads under way,
    and of a probe by inference that is or was not answered. `files` are the last looks at files, by path.
    """

    outcomes: tuple[Outcome, ...] = ()
    unloads: tuple[Unloaded | Retired, ...] = ()
    in_flight: tuple[Adapter, ...] = ()
    files: Mapping[str, Files] = {}

    def __bool__(self) -> bool:
        return bool(self.outcomes or self.unloads or self.in_flight)


class Beat:
    """What a heartbeat knows whatever it saw, and what the rules have said so far.

    `before` is what was desired as the heartbeat began, `desired` what the rules have made of it. `former_paths` are
    those to which a replacement may go back. `settled` is whether nothing waits for anything, so that the same
    observation again comes to nothing.
    """

    def __init__(self, desired: Desired, seen: Observation, policy: Policy, clock: Now, happened: Happened) -> None:
        self.before = desired
        self.desired = desired
        self.at = seen.at
        self.policy = policy
        self.clock = clock
        self.now = clock.now
        self.happened = happened
        self.outcomes = happened.outcomes
        self.unloads = happened.unloads
        self.in_flight = happened.in_flight
        self.files = happened.files
        self.former_paths: Mapping[str, str] = {}
        self.events: list[Event] = []
        self.settled = True

    def say(self, event: EventName, **fields: Any) -> None:  # noqa: ANN401 - whatever JSON can carry
        """Tell a transition that a person wants to see."""
        self.events.append(info(event, **fields))

    def warn(self, event: EventName, *, repeats: str = "", **fields: Any) -> None:  # noqa: ANN401 - as above
        """Tell something that a person may have to act on."""
        self.events.append(warning(event, repeats=repeats, **fields))


class ListingBeat(Beat):
    """What a heartbeat with a good listing knows besides, and what the rules decide by it.

    `last` is the good listing before this one, None where this is the first since this process started. `listed` maps
    listed names to their paths, `held` has besides what the server holds and left out to make room. `attempts` are
    those of the loads in this incarnation. `refused` maps listed names that were not adopted to reasons. `missing` are
    the adapters to be restored: filled once absence has told the unloaded from the lost. `blocked` are those of them
    that must not be loaded, `alone` those that are loaded after all others and one at a time. `unload` maps names to be
    unloaded to reasons.
    """

    def __init__(self, beat: Beat, seen: Observed, last: Observed | None, incarnation: Identified) -> None:
        super().__init__(beat.before, seen, beat.policy, beat.clock, beat.happened)
        self.desired = beat.desired
        self.former_paths = beat.former_paths
        self.events = beat.events
        self.settled = beat.settled
        self.seen = seen
        self.last = last
        self.incarnation = incarnation
        self.restarted = incarnation.restarted
        self.listed: Mapping[str, str] = {card.name: card.path for card in seen.adapters}
        self.held = self.listed
        self.attempts: dict[str, Attempt] = {}
        self.last_load_ended = float("-inf")
        self.refused: Mapping[str, str] = {}
        self.missing: Mapping[str, Adapter] = {}
        self.blocked: dict[str, Blocked] = {}
        self.alone: set[str] = set()
        self.unload: dict[str, str] = {}
        self.conditions: list[Condition] = []
        self.wake_at: float | None = None

    def block(self, name: str, reason: BlockReason, why: str) -> None:
        """Have a missing adapter not loaded; the first rule that objects gives the reason."""
        self.blocked.setdefault(name, Blocked(reason, why))

    def raise_condition(self, kind: ConditionType, message: str, hint: str) -> None:
        """Say that something holds now that a person should know."""
        self.conditions.append(Condition(kind, message, hint))

    def raise_blocked(self, kind: ConditionType, reason: BlockReason, hint: str) -> None:
        """Raise a condition for the adapters that are blocked for a reason, if there are any."""
        why = {name: one.why for name, one in self.blocked.items() if one.reason is reason}
        if why:
            self.raise_condition(kind, reasons(why), hint)

    def wake(self, at: float | None) -> None:
        """Have the next heartbeat at that time of the loop's clock, unless it comes sooner."""
        if at is not None:
            self.wake_at = at if self.wake_at is None else min(self.wake_at, at)

    @property
    def loadable(self) -> dict[str, Adapter]:
        """The missing adapters that nothing speaks against."""
        return {name: adapter for name, adapter in self.missing.items() if name not in self.blocked}
