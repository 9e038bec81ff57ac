"""What etcd and the watch cache are to an API server: ConfigMaps, one counter of versions, and a bounded past."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import Struct

DATA_LIMIT = 1024 * 1024
BODY_LIMIT = 3 * 1024 * 1024

Object = dict[str, Any]


class ApiError(Exception):
    """A refusal in Kubernetes' words."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message

    def status(self) -> Object:
        """The body of the answer."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }


class Happened(Struct, frozen=True):
    """An event of the past: `type` is ADDED, MODIFIED or DELETED."""

    version: int
    type: str
    object: Object


class Store:
    """The ConfigMaps of one namespace.

    `on_change` are called after each event. `version` is the counter, `forgotten` the newest version that can no longer
    be watched from.
    """

    def __init__(self) -> None:
        self.version = 100
        self.forgotten = self.version
        self.past: list[Happened] = []
        self.on_change: list[Callable[[], None]] = []
        self._objects: dict[str, Object] = {}
        self._made = 0

    def get(self, name: str) -> Object:
        """One ConfigMap. Raises `ApiError` where there is none."""
        if name not in self._objects:
            raise ApiError(404, "NotFound", f'configmaps "{name}" not found')
        return copy.deepcopy(self._objects[name])

    def items(self, name: str | None = None) -> list[Object]:
        """All ConfigMaps, or those of one name."""
        return [copy.deepcopy(found) for key, found in sorted(self._objects.items()) if name in {None, key}]

    def create(self, name: str, data: dict[str, str] | None = None, manager: str = "test") -> Object:
        """Make a ConfigMap; raises `ApiError` where there is one of that name."""
        if name in self._objects:
            raise ApiError(409, "AlreadyExists", f'configmaps "{name}" already exists')
        self._made += 1
        made: Object = {
            "kind": "ConfigMap",
            "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{self._made}"},
        }
        if data:
            made["data"] = data
        return self._put("ADDED", name, made, manager)

    def patch(self, name: str, patch: Object, manager: str = "test") -> Object:
        """A JSON merge patch, as compare-and-swap where it has a resourceVersion. Raises `ApiError`."""
        before = self.get(name)
        metadata = patch.get("metadata") or {}
        if (
            metadata.get("resourceVersion", before["metadata"]["resourceVersion"])
            != before["metadata"]["resourceVersion"]
        ):
            sentence = "the object has been modified; please apply your changes to the latest version and try again"
            raise ApiError(409, "Conflict", f'Operation cannot be fulfilled on configmaps "{name}": {sentence}')
        after = _merged(before, patch)
        for field in ("data", "annotations"):
            holder = after if field == "data" else after["metadata"]
            if not holder.get(field):
                holder.pop(field, None)
        if any(not isinstance(value, str) for value in after.get("data", {}).values()):
            raise ApiError(
                400, "BadRequest", "json: cannot unmarshal into Go struct field ConfigMap.data of type string"
            )
        size = sum(len(value.encode()) for value in after.get("data", {}).values())
        if size > DATA_LIMIT:
            sentence = f"Too long: must have at most {DATA_LIMIT} bytes"
            raise ApiError(422, "Invalid", f'ConfigMap "{name}" is invalid: []: {sentence}')
        if after == before:
            return before
        return self._put("MODIFIED", name, after, manager)

    def replace(self, name: str, replacement: Object, manager: str = "test") -> Object:
        """What `kubectl replace` does: data that is not in it is gone."""
        kept = self.get(name)
        kept.pop("data", None)
        return self._put("MODIFIED", name, {**kept, "data": dict(replacement.get("data") or {})}, manager)

    def delete(self, name: str) -> Object:
        """Take a ConfigMap away. Raises `ApiError` where there is none."""
        gone = self.get(name)
        del self._objects[name]
        self._happen("DELETED", gone)
        return gone

    def forget(self) -> None:
        """Let nobody watch from an earlier version than the present one."""
        self.past.clear()
        self.forgotten = self.version

    def rewind(self, by: int) -> None:
        """Have etcd restored from a backup: the counter goes back, as far as clients can tell, and the past is gone."""
        self.version -= by
        for found in self._objects.values():
            found["metadata"]["resourceVersion"] = str(self.version)
        self.past.clear()
        self.forgotten = self.version

    def _put(self, kind: str, name: str, made: Object, manager: str) -> Object:
        self._objects[name] = made
        self._happen(kind, made, manager)
        return self.get(name)

    def _happen(self, kind: str, what: Object, manager: str | None = None) -> None:
        self.version += 1
        metadata = what["metadata"]
        metadata["resourceVersion"] = str(self.version)
        if manager is not None:
            at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.version)
            others = [one for one in metadata.get("managedFields", []) if one["manager"] != manager]
            ours = {"manager": manager, "operation": "Update", "apiVersion": "v1", "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
            metadata["managedFields"] = [*others, ours]
        self.past.append(Happened(self.version, kind, copy.deepcopy(what)))
        for heard in list(self.on_change):
            heard()


def _merged(target: Object, patch: Object) -> Object:
    """RFC 7386."""
    result = dict(target)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            there = result.get(key)
            result[key] = _merged(there if isinstance(there, dict) else {}, value)
        else:
            result[key] = json.loads(json.dumps(value))
    return result
