"""What one reconcile hands to the next, a field for each rule, and the plan that it makes.

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
from lora_sidecar.core.observation import Files, Observed
from lora_sidecar.reconcile.backoff import Attempts
from lora_sidecar.reconcile.beat import Blocked
from lora_sidecar.reconcile.capacity import Capacity
from lora_sidecar.reconcile.drift import Drift
from lora_sidecar.reconcile.flapping import Restarts
from lora_sidecar.reconcile.loads import Loads
from lora_sidecar.reconcile.outage import ServerState
from lora_sidecar.reconcile.poison import Timers
from lora_sidecar.reconcile.policy import Policy
from lora_sidecar.reconcile.recovery import Recovery
from lora_sidecar.reconcile.replacement import Replacements, Retire
from lora_sidecar.reconcile.slow_start import SlowStart


class Settled(Struct, frozen=True):
    """What was desired, asked for and seen of files when nothing was left to do, to wait for or to say."""

    desired: Desired
    policy: Policy
    files: Mapping[str, Files]


class State(Struct, frozen=True):
    """Everything that one reconcile hands to the next and that a restart of this process may lose.

    `last` is the last good listing. `missed` counts, for adapters that were listed in this incarnation, the listings
    in a row without them. `blocked` has each missing adapter that must not be loaded, `unreadable` each listed one
    whose files are gone or bad. `files` are the last looks at files, by path. `settled` is None where another look may
    come to something else.
    """

    server: ServerState = ServerState()
    last: Observed | None = None
    loads: Loads = Loads()
    unloads: Attempts = {}
    replacements: Replacements = Replacements()
    poison: Timers = {}
    restarts: Restarts = ()
    slow_start: SlowStart = SlowStart()
    capacity: Capacity = Capacity()
    missed: Mapping[str, int] = {}
    unreadable: Mapping[str, str] = {}
    blocked: Mapping[str, Blocked] = {}
    drift: Drift = Drift()
    recovery: Recovery | None = None
    conditions: tuple[Condition, ...] = ()
    files: Mapping[str, Files] = {}
    settled: Settled | None = None


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
    state: State
    verdict: Verdict
    restores: tuple[Adapter, ...] = ()
    retires: tuple[Retire, ...] = ()
    unloads: tuple[str, ...] = ()
    observed_at: float = 0.0
    wake_at: float | None = None
    events: tuple[Event, ...] = ()

    @property
    def incarnation(self) -> int:
        """The number of the life of the server that the plan is for."""
        return self.desired.incarnation.number
