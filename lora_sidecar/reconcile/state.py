"""What is being done about the drift: the values that one reconcile hands to the next, and the plan it makes.

None of this is durable. The trap guarded against is a state that lives in sleeping coroutines: everything that waits,
failed or is under way is a value here, so that it can be shown, compared and tested at any moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from lora_sidecar.core.conditions import Condition
from lora_sidecar.core.events import Event
from lora_sidecar.core.model import Adapter, Desired
from lora_sidecar.core.observation import Files, Observed, Reason
from lora_sidecar.core.outcomes import Failure, LoadDeferred, Looked


class Phase(StrEnum):
    """What is known of the server."""

    STARTING = "starting"
    """It has not given a good answer since this process started."""
    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"
    """It answers, and not in a way that can be trusted."""


class ServerState(Struct, frozen=True):
    """What the last observations together say of the server.

    `since` is when the phase began. `reason` and `detail` are those of the newest unknown observation. `errors`
    counts unknown observations in a row, `timeouts` those of them that were timeouts in a row. `interrupted` is whether
    the server may have restarted unseen since the last good listing. `last_good` is when that was.
    """

    phase: Phase = Phase.STARTING
    since: float = 0.0
    reason: Reason | None = None
    detail: str = ""
    hint: str = ""
    errors: int = 0
    timeouts: int = 0
    interrupted: bool = False
    last_good: float | None = None


class Attempt(Struct, frozen=True):
    """What is known of the loads of one adapter during one incarnation.

    `failures` counts failures in a row. Nothing is sent before `not_before`. `ended_at` is when the last load ended:
    only a listing asked for later can say what came of it. `accepted` is whether the server said yes to that load,
    `fresh` whether it was that load that put the adapter there.
    `listed_since` is when the adapter was seen listed after it, None while it is missing.
    """

    failures: int = 0
    failure: Failure | None = None
    not_before: float = 0.0
    ended_at: float = 0.0
    seconds: float = 0.0
    accepted: bool = False
    fresh: bool = False
    listed_since: float | None = None
    looked: Looked = Looked()


class QuarantineTimer(Struct, frozen=True):
    """What this process knows of one suspect: quarantined for how many deaths, `until` when, and listed since when."""

    deaths: int = 0
    until: float = 0.0
    listed_since: float | None = None


class BlockReason(StrEnum):
    """Why a missing adapter is not loaded although nothing is wrong with the server."""

    QUARANTINED = "quarantined"
    FILES_GONE = "files_gone"
    CAPACITY = "capacity"
    NAME_TAKEN = "name_taken"
    BASE_MODEL = "base_model"


class Blocked(Struct, frozen=True):
    """A missing adapter that is not loaded, and why."""

    bar: BlockReason
    reason: str


class CapacityEstimate(Struct, frozen=True):
    """What was seen of an engine's limit in this life of the server.

    `exchanges` counts the listings in a row in which as many adapters had vanished as we had loaded, each of them after
    one that it had pushed out itself; `pushed` are the names that vanished so. `fit` is how many it lists at most, None
    while that is not known, and `until` when that is to be tried again.
    """

    exchanges: int = 0
    fit: int | None = None
    pushed: frozenset[str] = frozenset()
    until: float = 0.0


class ReplacementPhase(StrEnum):
    """How far a replacement is."""

    UNLOADING = "unloading"
    LOADING = "loading"
    REVERTING = "reverting"
    """The new path could not be loaded, so the former one is loaded again."""
    DONE = "done"
    REFUSED = "refused"


class Replacement(Struct, frozen=True):
    """One adapter that is listed from `old` and is to be loaded from `new` under the same name.

    `told_at` is when the server said that it is unloaded. `failures` is how many failed loads are accounted for,
    `flips` how often the path to load was changed since. `why` is what went wrong, `retry_at` when it is tried again.
    `refused` is what became of the first load from `new`, if it failed.
    """

    old: str
    new: str
    stage: ReplacementPhase = ReplacementPhase.UNLOADING
    told_at: float | None = None
    failures: int = 0
    flips: int = 0
    why: str = ""
    retry_at: float = float("inf")
    refused: Attempt | None = None


class Retire(Struct, frozen=True):
    """An adapter to be unloaded because of the config; `successor` is what is loaded under its name then, or None."""

    name: str
    successor: Adapter | None = None


class ServerBackoff(Struct, frozen=True):
    """A reason of the whole server for which nothing is loaded before `until`; `failures` counts it in a row."""

    failure: Failure
    failures: int
    until: float


class Recovery(Struct, frozen=True):
    """An outage and the way back from it, until everything lost is restored or known to fail.

    `last_good` is the last good answer before the outage (None if this process saw none), `up_at` the first after
    it (None while there is none). `restarts` counts incarnations that began meanwhile. `lost` are the adapters that
    were missing after a restart. `initial` marks the first restore of a fresh start, which follows no outage.
    """

    began: float
    reason: str
    last_good: float | None = None
    up_at: float | None = None
    restarts: int = 0
    lost: frozenset[str] = frozenset()
    initial: bool = False


class Drift(Struct, frozen=True):
    """How the listing differs from desired: names missing, listed with another path, listed and not desired."""

    missing: frozenset[str] = frozenset()
    replaced: frozenset[str] = frozenset()
    unexpected: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.missing or self.replaced or self.unexpected)


class State(Struct, frozen=True):
    """Everything that one reconcile hands to the next and that a restart of this process may lose.

    `last` is the last good listing. `missed` counts, for adapters that were listed in this incarnation, the listings
    in a row without them. `attempts` has an entry only where a load was tried in this incarnation. `restoring` is
    whether a restore was begun that is not over, so that its beginning is told once. `unloads` has, for withdrawn
    adapters, what came of telling the server, in this incarnation. `steady` is the desired for which
    `last` leaves nothing to do, to wait for or to say, and will not as long as both and the policy are the same; None
    where another look may come to something else. `evicted` are the adapters that the server took
    out of its listing by itself in this incarnation. `probation` has an entry for each suspect, `barred` for each
    missing adapter that must not be loaded, `spoilt` for each listed one whose files are gone or bad. `lives` is when
    lives of the server were lately seen to begin, `load_ended` when the last load ended, `files` the looks that were
    considered, `crowd` what is known of how many adapters fit. `swaps` are the replacements of this incarnation,
    `prunes` the unloads of removed adapters that were tried, and `path_reasons` says for each declared adapter that is
    listed with another path why it still is.
    """

    server: ServerState = ServerState()
    last: Observed | None = None
    missed: Mapping[str, int] = {}
    attempts: Mapping[str, Attempt] = {}
    hold: ServerBackoff | None = None
    withheld: LoadDeferred | None = None
    recovery: Recovery | None = None
    drift: Drift = Drift()
    conditions: tuple[Condition, ...] = ()
    restoring: bool = False
    swaps: Mapping[str, Replacement] = {}
    prunes: Mapping[str, Attempt] = {}
    path_reasons: Mapping[str, str] = {}
    steady: Desired | None = None
    unloads: Mapping[str, Attempt] = {}
    evicted: frozenset[str] = frozenset()
    probation: Mapping[str, QuarantineTimer] = {}
    spoilt: Mapping[str, str] = {}
    barred: Mapping[str, Blocked] = {}
    lives: tuple[float, ...] = ()
    load_ended: float = float("-inf")
    crowd: CapacityEstimate = CapacityEstimate()
    files: Mapping[str, Files] = {}


class Around(Struct, frozen=True):
    """What is known besides an observation.

    `under_way` are the loads under way, and a probe by inference that is or was not answered; `files` the last looks at
    files, by path.
    """

    under_way: tuple[Adapter, ...] = ()
    files: Mapping[str, Files] = {}


class Verdict(StrEnum):
    """What one heartbeat came to, in a word."""

    UNKNOWN = "unknown"
    STEADY = "steady"
    RESTORING = "restoring"
    WAITING = "waiting"


class Plan(Struct, frozen=True):
    """What follows from one observation.

    `restores` are to be loaded in this order, `unloads` are names to be unloaded, `retires` those because of the
    config, all only while the server is in `incarnation`; `observed_at` is when the listing behind them was asked for.
    `wake_at` is when there may be something to do before the next heartbeat is due, None if nothing is waited for.
    """

    desired: Desired
    work: State
    verdict: Verdict
    restores: tuple[Adapter, ...] = ()
    retires: tuple[Retire, ...] = ()
    unloads: tuple[str, ...] = ()
    observed_at: float = 0.0
    wake_at: float | None = None
    facts: tuple[Event, ...] = ()

    @property
    def incarnation(self) -> int:
        """The number of the life of the server that the plan is for."""
        return self.desired.incarnation.number
