"""What may hold and what a person should know of it.

The trap guarded against is a condition that outlives its cause: conditions are derived anew at every heartbeat and
never stored. Their types are a promise to whoever writes an alert.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from lora_sidecar.core.events import Event, EventName, info, warning


class ConditionType(StrEnum):
    """Every condition that may hold; each has an entry in the documentation on what to do."""

    SERVER_WEDGED = "ServerWedged"
    SERVER_HUNG = "ServerHung"
    RUNTIME_LOADING_DISABLED = "RuntimeLoadingDisabled"
    LOADING_REFUSED = "LoadingRefused"
    ENGINE_ASLEEP = "EngineAsleep"
    ENGINE_STATE_UNKNOWN = "EngineStateUnknown"
    BASE_MODEL_CHANGED = "BaseModelChanged"
    ADAPTER_NAME_TAKEN = "AdapterNameTaken"
    SERVER_FLAPPING = "ServerFlapping"
    ADAPTER_FAILING = "AdapterFailing"
    CAPACITY_EXCEEDED = "CapacityExceeded"
    ADAPTER_FILES_MISSING = "AdapterFilesMissing"
    ADAPTER_QUARANTINED = "AdapterQuarantined"
    ADAPTER_DEAD = "AdapterDead"
    ADAPTER_NOT_APPLIED = "AdapterNotApplied"
    VERIFICATION_WITHHELD = "VerificationWithheld"
    ADAPTER_PATH_DIFFERS = "AdapterPathDiffers"
    PRUNE_REFUSED = "PruneRefused"
    ADOPTION_REFUSED = "AdoptionRefused"
    PAUSED = "Paused"
    CHECKPOINT_NOT_PERSISTED = "CheckpointNotPersisted"
    CONFIG_REJECTED = "ConfigRejected"
    CONFIG_NEEDS_RESTART = "ConfigNeedsRestart"


class Condition(Struct, frozen=True):
    """Something that holds now and that a person should know: what, and what to do about it.

    There is at most one of a type; its message names the adapters that it concerns.
    """

    type: ConditionType
    message: str
    hint: str = ""


def transitions(before: tuple[Condition, ...], after: tuple[Condition, ...]) -> tuple[Event, ...]:
    """The events of what began and what ceased to hold."""
    old, new = {c.type for c in before}, {c.type for c in after}
    raised = [
        warning(EventName.CONDITION_RAISED, condition=c.type.value, message=c.message, hint=c.hint)
        for c in after
        if c.type not in old
    ]
    cleared = [info(EventName.CONDITION_CLEARED, condition=c.type.value) for c in before if c.type not in new]
    return (*raised, *cleared)
