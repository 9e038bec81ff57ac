"""Keeps the newest document that the fleet's ConfigMap holds, by a list and then a watch, for ever.

The traps guarded against: what cannot be read replaces what could be, so a snapshot keeps the newest document beside
what is wrong with the ConfigMap now. A watch that looks well and hears nothing, so there is a list now and then
whatever the watch says. A list that fails takes a good watch down with it, so a list beside a watch changes nothing
unless it succeeds. And one answer read as the state of the API, so what is `away` or `denied` has lasted.

Nothing is decided here: which document is in force is for `changes.judge`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NoReturn, assert_never

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.fleet import pace
from lora_sidecar.fleet.api import (
    Bookmark,
    Changed,
    ConfigMap,
    ConfigMapApi,
    Deleted,
    Denied,
    Ended,
    Event,
    Expired,
    Listed,
    Missing,
    Silent,
    TimeIsUp,
    Unreachable,
    Watch,
)
from lora_sidecar.fleet.changes import ACCEPT_ANNOTATION, accept_token, is_accepted
from lora_sidecar.fleet.codec import decode
from lora_sidecar.fleet.document import FleetDocument, Newer, NoDocument, Unreadable

LIST_SECONDS: Final = 10.0

AWAY_AFTER: Final = 30.0
"""Seconds without any word of the API server after which it is away."""

DENIED_AFTER: Final = 10.0
"""Seconds between the first and the last of refusals in a row after which they are believed: 401 comes and goes
while an API server restarts (patroni #1729)."""


class Found(Struct, frozen=True):
    """A document that can be judged. `token` is what accepts it, `accepted` whether the ConfigMap says so.

    `changed_by` is the field manager that wrote it, empty where that is not told.
    """

    reading: FleetDocument | NoDocument
    token: str
    accepted: bool = False
    changed_by: str = ""


class Snapshot(Struct, frozen=True):
    """What is known of the fleet's ConfigMap; times are of the loop's clock.

    `found` is the newest document that could be judged, None where there never was one; `problem` is what stands in
    its place now, None where nothing does. `heard_at` is when the API server last told the truth about it, be it that
    nothing changed. `failing_since` is since when it tells nothing, and `failure` how that shows. `denied` is the last
    refusal since a request succeeded, `denied_from` and `denied_at` when the first and the last were: an open watch
    (`is_watching`) may hear changes meanwhile, and says nothing about the next request.
    """

    found: Found | None = None
    problem: Missing | Unreadable | Newer | None = None
    heard_at: float | None = None
    is_watching: bool = False
    failure: Unreachable | None = None
    failing_since: float | None = None
    denied: Denied | None = None
    denied_from: float = 0.0
    denied_at: float = 0.0

    @property
    def is_known(self) -> bool:
        """Whether the ConfigMap was ever read, whatever it held."""
        return self.found is not None or self.problem is not None

    def is_away(self, now: float) -> bool:
        """Whether the API server has been failing for so long that a person should know (`FleetAway`)."""
        return self.failing_since is not None and now - self.failing_since >= AWAY_AFTER

    @property
    def is_denied(self) -> bool:
        """Whether the API server keeps refusing us (`FleetDenied`)."""
        return self.denied is not None and self.denied_at - self.denied_from >= DENIED_AFTER


class FleetSource:
    """Follows one document of one ConfigMap; `snapshot` is always the newest."""

    def __init__(
        self,
        api: ConfigMapApi,
        key: str,
        *,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        """`key` is the document's in `data`. `clock` is the loop's, `jitter` gives numbers in [0, 1).

        `on_change` is called after `found` or `problem` has changed, for the first time after the first list.
        """
        self.snapshot = Snapshot()
        self._api = api
        self._key = key
        self._clock = clock
        self._jitter = jitter
        self._on_change = on_change
        self._version: tuple[str, str] | None = None
        self._since: str | None = None
        self._list_at = 0.0
        self._failures = 0
        self._failed_at = float("-inf")

    async def run(self) -> NoReturn:
        """Follow the document, for ever."""
        while True:
            since = self._since
            if since is None or self._clock() >= self._list_at:
                pause = await self._list()
            else:
                pause = await self._watch(since)
            await asyncio.sleep(pause)

    async def _list(self) -> float:
        """List once; the seconds to wait before the next request, 0 after a good one."""
        answer = await self._api.list(LIST_SECONDS)
        match answer:
            case Listed(resource_version, config_map):
                self._since = resource_version
                self._list_at = self._clock() + pace.until_relist(self._jitter())
                self._allowed()
                self._take(config_map)
                return 0.0
            case Denied() | Unreachable():
                pause = self._failed(answer)
                # A little later than that: what cannot be listed may still be watched, from where we were.
                self._list_at = self._clock() + pause + LIST_SECONDS
                return pause
            case _:
                assert_never(answer)

    async def _watch(self, since: str) -> float:
        """Watch until that ends; the seconds to wait before the next request."""
        opened = await self._api.watch(since, pace.of_watch(self._jitter()))
        match opened:
            case Expired():
                return self._expired()
            case Denied() | Unreachable():
                return self._failed(opened)
            case _:
                self._allowed()
                self.snapshot = replace(self.snapshot, is_watching=True)
                try:
                    return await self._follow(opened)
                finally:
                    self.snapshot = replace(self.snapshot, is_watching=False)
                    await opened.close()

    async def _follow(self, watch: Watch) -> float:
        began = self._clock()
        while True:
            told = await watch.next(self._list_at)
            match told:
                case Changed() | Deleted() | Bookmark():
                    self._hear(told)
                case TimeIsUp():
                    # What this watch has yet to tell, a good list knows: the next one goes on from there.
                    if await self._list() == 0.0:
                        return 0.0
                case Expired():
                    return self._expired()
                case Silent():
                    # This version may never be heard of: only a list tells where we are.
                    self._since = None
                    return self._ended(told)
                case Ended():
                    return 0.0 if self._clock() - began >= pace.RESET else self._ended(told)
                case _:
                    assert_never(told)

    def _hear(self, told: Event) -> None:
        self.snapshot = replace(self.snapshot, heard_at=self._clock(), failure=None, failing_since=None)
        match told:
            case Changed(config_map):
                self._since = config_map.resource_version
                self._take(config_map)
            case Deleted(resource_version):
                self._since = resource_version
                self._take(None)
            case Bookmark(resource_version):
                self._since = resource_version
            case _:
                assert_never(told)

    def _take(self, config_map: ConfigMap | None) -> None:
        version = None if config_map is None else (config_map.uid, config_map.resource_version)
        before = self.snapshot
        if before.is_known and version == self._version:
            return
        self._version = version
        self.snapshot = self._read(config_map)
        if (self.snapshot.found, self.snapshot.problem) != (before.found, before.problem):
            self._on_change()

    def _read(self, config_map: ConfigMap | None) -> Snapshot:
        if config_map is None:
            return replace(self.snapshot, problem=Missing("there is no such ConfigMap"))
        text = config_map.data.get(self._key)
        reading = decode(text)
        match reading:
            case FleetDocument() | NoDocument():
                token = accept_token(config_map.uid, self._key, text)
                accepted = is_accepted(config_map.annotations.get(ACCEPT_ANNOTATION), token)
                found = Found(reading, token, accepted, config_map.changed_by)
                return replace(self.snapshot, found=found, problem=None)
            case Unreadable() | Newer():
                return replace(self.snapshot, problem=reading)
            case _:
                assert_never(reading)

    def _allowed(self) -> None:
        """Take note of a request that succeeded."""
        self.snapshot = replace(self.snapshot, heard_at=self._clock(), failure=None, failing_since=None, denied=None)

    def _failed(self, failure: Denied | Unreachable) -> float:
        """Take note of a request that failed; the seconds to wait before the next one."""
        now, before = self._clock(), self.snapshot
        match failure:
            case Denied():
                first = now if before.denied is None else before.denied_from
                self.snapshot = replace(
                    before, failure=None, failing_since=None, denied=failure, denied_from=first, denied_at=now
                )
            case Unreachable() if before.is_watching:
                # The watch goes on, so nothing is missed.
                self.snapshot = replace(before, failure=failure)
            case Unreachable():
                since = now if before.failing_since is None else before.failing_since
                self.snapshot = replace(before, failure=failure, failing_since=since)
            case _:
                assert_never(failure)
        self._failures = 1 if now - self._failed_at >= pace.RESET else self._failures + 1
        self._failed_at = now
        asked = failure.retry_after if isinstance(failure, Unreachable) else None
        return pace.after_failure(self._failures, asked, self._jitter())

    def _ended(self, end: Ended | Silent) -> float:
        self.snapshot = replace(self.snapshot, is_watching=False)
        return self._failed(Unreachable(end.detail))

    def _expired(self) -> float:
        self._since = None
        return pace.after_expiry(self._jitter())
