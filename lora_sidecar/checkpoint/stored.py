"""The form in which a checkpoint of version 2 is stored: apart from the model, so that no change there changes a file.

The trap guarded against is a field of the model that is renamed and thereby unreadable in every pod. Both the way into
a file (`encode`) and the way back (`decode`) go by these types.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from lora_sidecar.core.model import Adapter, Desired, Incarnation, Origin, Paused, Suspect, Withdrawn

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Priority = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class StoredAdapter(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An adapter."""

    name: str
    path: str
    origin: Origin
    required: bool
    priority: Priority
    is_3d_lora_weight: bool
    base: str | None
    listed_as: str | None = None


class StoredIncarnation(Struct, frozen=True, forbid_unknown_fields=True):
    """An incarnation; `start_time` in Unix seconds, None where unknown."""

    number: Count
    start_time: float | None


class StoredOrphan(Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter that is still loaded and no longer wanted."""

    name: str
    path: str


class StoredWithdrawn(Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter that was unloaded by request."""

    name: str
    pending: bool
    declared: StoredAdapter | None


class StoredPause(Struct, frozen=True, forbid_unknown_fields=True):
    """An operator's wish that nothing is loaded or unloaded."""

    reason: str


class StoredSuspect(Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter that may have killed the server."""

    name: str
    path: str
    deaths: Count
    accused: bool
    files: str


class StoredCheckpoint(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A whole checkpoint; lists are sorted by name, and those with a default are left out where they are empty."""

    version: int
    generation: Count
    server: str
    incarnation: StoredIncarnation
    adapters: list[StoredAdapter]
    listed: list[str]
    orphaned: list[StoredOrphan]
    withdrawn: list[StoredWithdrawn] = []
    paused: StoredPause | None = None
    suspects: list[StoredSuspect] = []


def stored_adapter(adapter: Adapter) -> StoredAdapter:
    """An adapter as it is stored."""
    return StoredAdapter(
        name=adapter.name,
        path=adapter.path,
        origin=adapter.origin,
        required=adapter.required,
        priority=adapter.priority,
        is_3d_lora_weight=adapter.is_3d_lora_weight,
        base=adapter.base,
        listed_as=adapter.listed_as,
    )


def adapter_of(stored: StoredAdapter) -> Adapter:
    """An adapter from its stored form."""
    return Adapter(
        name=stored.name,
        path=stored.path,
        origin=stored.origin,
        required=stored.required,
        priority=stored.priority,
        is_3d_lora_weight=stored.is_3d_lora_weight,
        base=stored.base,
        listed_as=stored.listed_as,
    )


def desired_of(stored: StoredCheckpoint) -> Desired:
    """What was desired, from its stored form."""
    return Desired(
        adapters={one.name: adapter_of(one) for one in stored.adapters},
        incarnation=Incarnation(stored.incarnation.number, stored.incarnation.start_time),
        listed=frozenset(stored.listed),
        orphaned={one.name: one.path for one in stored.orphaned},
        withdrawn={
            one.name: Withdrawn(None if one.declared is None else adapter_of(one.declared), one.pending)
            for one in stored.withdrawn
        },
        paused=None if stored.paused is None else Paused(stored.paused.reason),
        suspects={one.name: Suspect(one.path, one.deaths, one.accused, one.files) for one in stored.suspects},
    )
