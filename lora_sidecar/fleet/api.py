"""What is asked of the Kubernetes API about one ConfigMap, and everything that can come of it.

The trap guarded against is a failure read as an answer: no ConfigMap, no permission and no answer are three different
types, and none of them is an empty `ConfigMap`. Expected failures are values; each says what was attempted, on what,
the cause and what a person can do.

`kubernetes.KubernetesApi` is the real one; a simulation stands in for it by the protocols here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol

from msgspec import Struct


class Verb(StrEnum):
    """A verb of Kubernetes' RBAC."""

    LIST = "list"
    WATCH = "watch"
    PATCH = "patch"


class ConfigMap(Struct, frozen=True):
    """One version of the ConfigMap. `resource_version` is opaque: it is compared for equality and sent back.

    `changed_by` is the field manager that wrote last (`kubectl-edit` for instance), empty where that is not told.
    """

    uid: str
    resource_version: str
    data: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    changed_by: str = ""


class Listed(Struct, frozen=True):
    """A list's answer, as of `resource_version`; `config_map` is None where there is none of that name."""

    resource_version: str
    config_map: ConfigMap | None


class Denied(Struct, frozen=True):
    """The API server knows us not (401) or does not let us (403)."""

    verb: Verb
    status: int
    detail: str
    hint: str

    def __str__(self) -> str:
        return f"{self.detail} ({self.hint})"


class Unreachable(Struct, frozen=True):
    """No usable answer: no connection, no end of it, an overloaded or broken server, or no credentials to ask with.

    `retry_after` are the seconds that the server asks to be left alone, None where it does not. `sent` is whether the
    server may have received the request.
    """

    detail: str
    hint: str = ""
    retry_after: float | None = None
    sent: bool = True

    def __str__(self) -> str:
        return f"{self.detail} ({self.hint})" if self.hint else self.detail


class Patched(Struct, frozen=True):
    """The write is done; `config_map` is what it made."""

    config_map: ConfigMap


class Conflict(Struct, frozen=True):
    """409: the ConfigMap has changed since the version that the write was made for, or is another object by now."""

    detail: str


class Missing(Struct, frozen=True):
    """404: there is no ConfigMap of that name to write."""

    detail: str


class Rejected(Struct, frozen=True):
    """The API server will never take this write, too much data for instance (422, 413)."""

    status: int
    detail: str


class Changed(Struct, frozen=True):
    """A watch tells of a new version, the first one included."""

    config_map: ConfigMap


class Deleted(Struct, frozen=True):
    """A watch tells that the ConfigMap was deleted."""

    resource_version: str


class Bookmark(Struct, frozen=True):
    """A watch tells that nothing else happened up to this version."""

    resource_version: str


class Expired(Struct, frozen=True):
    """410: the version to watch from is forgotten, so only a list can tell what is."""


class Ended(Struct, frozen=True):
    """A watch is over: its time was up, or the connection broke. It may go on from the last version that it told."""

    detail: str


class Silent(Struct, frozen=True):
    """A watch told nothing, not even a bookmark, for too long: its connection is dead, or it never began to hear."""

    detail: str


class TimeIsUp(Struct, frozen=True):
    """Nothing was told until the time that the caller named; the watch goes on."""


Event = Changed | Deleted | Bookmark
WatchEnd = Expired | Ended | Silent
ListAnswer = Listed | Denied | Unreachable
PatchAnswer = Patched | Conflict | Missing | Rejected | Denied | Unreachable


class Watch(Protocol):
    """An open watch; `close` it in the end."""

    async def next(self, until: float) -> Event | TimeIsUp | WatchEnd:
        """The next event, or that `until` (the loop's clock) has come. After a `WatchEnd` it is not asked again."""

    async def close(self) -> None:
        """Let go of the connection."""


class ConfigMapApi(Protocol):
    """Three verbs on one ConfigMap."""

    async def list(self, deadline: float) -> ListAnswer:
        """What there is now, within `deadline` seconds."""

    async def watch(self, since: str, seconds: float) -> Watch | Expired | Denied | Unreachable:
        """Hear of what happens after the version `since`, for at most `seconds`."""

    async def patch(
        self, since: str, data: Mapping[str, str], annotations: Mapping[str, str | None], deadline: float
    ) -> PatchAnswer:
        """Write keys of `data` and annotations (None takes one out) if the ConfigMap still has the version `since`.

        Once, within `deadline` seconds: what became of a write without an answer only a list can say.
        """
