"""The JSON of the Kubernetes API to values: a list, an object, an event of a watch, a refusal.

The trap guarded against is another server's JSON, or half of it, read as an empty list: what lacks the fields that
every Kubernetes object has is `Malformed`. Fields that are not needed here are not looked at. Seen on Kubernetes 1.20.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw, Struct

from lora_sidecar.fleet.api import Bookmark, Changed, ConfigMap, Deleted, Event, Expired, Listed

_GONE: Final = 410
_QUOTED: Final = 300


class Malformed(Struct, frozen=True):
    """Not what the Kubernetes API answers."""

    detail: str


class Status(Struct, frozen=True):
    """A refusal in Kubernetes' words; `retry_after` in seconds."""

    code: int
    message: str
    retry_after: float | None = None


class _Manager(Struct, frozen=True):
    manager: str = ""
    time: str = ""


class _Metadata(Struct, frozen=True, rename="camel"):
    name: str
    uid: str
    resource_version: str
    annotations: dict[str, str] | None = None
    managed_fields: list[_Manager] | None = None


class _ConfigMap(Struct, frozen=True):
    metadata: _Metadata
    data: dict[str, str] | None = None


class _Version(Struct, frozen=True, rename="camel"):
    resource_version: str


class _Versioned(Struct, frozen=True):
    metadata: _Version


class _List(Struct, frozen=True):
    kind: str
    metadata: _Version
    items: list[_ConfigMap] | None


class _Event(Struct, frozen=True):
    type: str
    object: Raw


class _Details(Struct, frozen=True, rename="camel"):
    retry_after_seconds: float | None = None


class _Status(Struct, frozen=True):
    kind: str
    code: int = 0
    message: str | None = None
    details: _Details | None = None


_LIST: Final = msgspec.json.Decoder(_List)
_CONFIG_MAP: Final = msgspec.json.Decoder(_ConfigMap)
_VERSIONED: Final = msgspec.json.Decoder(_Versioned)
_EVENT: Final = msgspec.json.Decoder(_Event)
_STATUS: Final = msgspec.json.Decoder(_Status)


def listed(body: bytes, name: str) -> Listed | Malformed:
    """What a list of ConfigMaps says about the one called `name`."""
    try:
        found = _LIST.decode(body)
    except (ValueError, RecursionError) as error:
        return _malformed("a list of ConfigMaps", error)
    if found.kind != "ConfigMapList":
        return Malformed(f"it is no list of ConfigMaps but a {found.kind[:_QUOTED]!r}")
    ours = (item for item in found.items or () if item.metadata.name == name)
    return Listed(found.metadata.resource_version, next((_value(item) for item in ours), None))


def config_map(body: bytes) -> ConfigMap | Malformed:
    """The ConfigMap in a body."""
    try:
        return _value(_CONFIG_MAP.decode(body))
    except (ValueError, RecursionError) as error:
        return _malformed("a ConfigMap", error)


def event(line: bytes, name: str) -> Event | Expired | Status | Malformed | None:
    """What a line of a watch says; None where it concerns another object or is of a type that is not known."""
    try:
        told = _EVENT.decode(line)
        body = bytes(told.object)
        match told.type:
            case "ADDED" | "MODIFIED":
                found = _CONFIG_MAP.decode(body)
                return Changed(_value(found)) if found.metadata.name == name else None
            case "DELETED":
                gone = _CONFIG_MAP.decode(body)
                return Deleted(gone.metadata.resource_version) if gone.metadata.name == name else None
            case "BOOKMARK":
                return Bookmark(_VERSIONED.decode(body).metadata.resource_version)
            case "ERROR":
                refusal = status(body)
                return Expired() if refusal.code == _GONE else refusal
            case _:
                return None
    except (ValueError, RecursionError) as error:
        return _malformed("an event of a watch", error)


def status(body: bytes) -> Status:
    """A refusal's code and words; code 0 and the beginning of the body where it is not one of Kubernetes."""
    try:
        found = _STATUS.decode(body)
    except (ValueError, RecursionError):
        found = None
    if found is None or found.kind != "Status":
        return Status(0, printable(body[:_QUOTED].decode(errors="replace")))
    after = None if found.details is None else found.details.retry_after_seconds
    return Status(found.code, printable(found.message or ""), after)


def printable(text: str) -> str:
    """Text from elsewhere as one bounded line."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line[:_QUOTED])


def _value(found: _ConfigMap) -> ConfigMap:
    metadata = found.metadata
    # Of managers of the same second the last one: Kubernetes sorts them by time.
    managers = reversed(metadata.managed_fields or ())
    newest = max(managers, key=lambda manager: manager.time, default=_Manager())
    return ConfigMap(
        metadata.uid, metadata.resource_version, found.data or {}, metadata.annotations or {}, printable(newest.manager)
    )


def _malformed(what: str, error: Exception) -> Malformed:
    return Malformed(f"it is not {what}: {printable(str(error))}")
