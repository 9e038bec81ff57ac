"""The fake API server without sockets, as the product's own protocol: for virtual time, where nothing waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from lora_sidecar.fleet.api import (
    Bookmark,
    Changed,
    ConfigMap,
    Conflict,
    Deleted,
    Denied,
    Ended,
    Event,
    Expired,
    ListAnswer,
    Listed,
    Missing,
    PatchAnswer,
    Patched,
    Rejected,
    Silent,
    TimeIsUp,
    Unreachable,
    Verb,
    WatchEnd,
)
from tests.fakes.kube_api.store import ApiError, Happened, Object, Store

NAME = "lora-sidecar-fleet-vllm"
BOOKMARK = 60.0
SILENCE = 130.0


class DirectApi:
    """One pod's way to the ConfigMap `NAME` in a store. Faults may be switched at any time.

    `is_down`: refused. `is_stuck`: taken and never answered, open watches too. `denied`: the verbs that get 403, but
    for open watches. `answers_lost`: how many writes are done without an answer. `retry_after`: 429, with so many
    seconds. `latency` is of each request. `expires_by_event` has a watch from a forgotten version opened, and then told
    that it is. `asked` has the verb and the time of each.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.is_down = False
        self.is_stuck = False
        self.denied: frozenset[Verb] = frozenset()
        self.answers_lost = 0
        self.retry_after: float | None = None
        self.latency = 0.0
        self.expires_by_event = False
        self.asked: list[tuple[Verb, float]] = []
        self.watches: list[DirectWatch] = []

    async def list(self, deadline: float) -> ListAnswer:
        """As `ConfigMapApi`."""
        if (failed := await self._ask(Verb.LIST, deadline)) is not None:
            return failed
        found = self.store.items(NAME)
        return Listed(str(self.store.version), value(found[0]) if found else None)

    async def watch(self, since: str, seconds: float) -> DirectWatch | Expired | Denied | Unreachable:
        """As `ConfigMapApi`."""
        if (failed := await self._ask(Verb.WATCH, 10.0)) is not None:
            return failed
        if int(since) < self.store.forgotten and not self.expires_by_event:
            return Expired()
        watch = DirectWatch(self, int(since), asyncio.get_running_loop().time() + seconds)
        self.watches.append(watch)
        return watch

    async def patch(
        self, since: str, data: Mapping[str, str], annotations: Mapping[str, str | None], deadline: float
    ) -> PatchAnswer:
        """As `ConfigMapApi`."""
        if (failed := await self._ask(Verb.PATCH, deadline)) is not None:
            return failed
        metadata: dict[str, Any] = {"resourceVersion": since, "annotations": dict(annotations)}
        try:
            made = self.store.patch(NAME, {"metadata": metadata, "data": dict(data)}, "lora-sidecar")
        except ApiError as error:
            match error.code:
                case 409:
                    return Conflict(error.message)
                case 404:
                    return Missing(error.message)
                case _:
                    return Rejected(error.code, error.message)
        if self.answers_lost:
            self.answers_lost -= 1
            return Unreachable("the answer broke off")
        return Patched(value(made))

    def break_watches(self) -> None:
        """Have each open watch end at once."""
        for watch in self.watches:
            watch.breaks = True
            watch.rung.set()

    async def _ask(self, verb: Verb, deadline: float) -> Denied | Unreachable | None:
        self.asked.append((verb, asyncio.get_running_loop().time()))
        await asyncio.sleep(min(self.latency, deadline))
        if self.is_down:
            return Unreachable("cannot connect", "is it up?", sent=False)
        if self.latency > deadline:
            return Unreachable(f"no answer within {deadline:g} s")
        if self.is_stuck:
            await asyncio.sleep(deadline)
            return Unreachable(f"no answer within {deadline:g} s")
        if self.retry_after is not None:
            return Unreachable("429", retry_after=self.retry_after)
        if verb in self.denied:
            return Denied(verb, 403, f"cannot {verb}", f"give it {verb}")
        return None


class DirectWatch:
    """An open watch; as `Watch`."""

    def __init__(self, api: DirectApi, since: int, ends_at: float) -> None:
        self.api = api
        self.told = since
        self.ends_at = ends_at
        self.breaks = False
        self.is_closed = False
        self.rung = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        self._bookmark_at = self._clock() + BOOKMARK
        self._heard_at = self._clock()
        api.store.on_change.append(self.rung.set)

    async def next(self, until: float) -> Event | TimeIsUp | WatchEnd:
        """As `Watch`."""
        now = self._clock()
        while True:
            self.rung.clear()
            if (told := self._now(now)) is not None:
                return told
            if now >= self._heard_at + SILENCE:
                return Silent("nothing was told")
            if now >= until:
                return TimeIsUp()
            wake_at = min(until, self._heard_at + SILENCE, *self._own_times())
            try:
                async with asyncio.timeout_at(wake_at):
                    await self.rung.wait()
            except TimeoutError:
                # A timer may ring a rounding error before its time.
                now = wake_at
            else:
                now = self._clock()

    async def close(self) -> None:
        """As `Watch`."""
        self.is_closed = True
        if self.rung.set in self.api.store.on_change:
            self.api.store.on_change.remove(self.rung.set)

    def _own_times(self) -> tuple[float, ...]:
        return () if self.api.is_stuck else (self.ends_at, self._bookmark_at)

    def _now(self, now: float) -> Event | WatchEnd | None:
        if self.breaks:
            return Ended("the connection broke")
        if self.api.is_stuck:
            return None
        if self.told < self.api.store.forgotten:
            return Expired()
        for happened in self.api.store.past:
            if happened.version > self.told:
                self.told = happened.version
                if happened.object["metadata"]["name"] == NAME:
                    self._heard_at = now
                    return _event(happened)
        if now >= self._bookmark_at:
            self._bookmark_at = now + BOOKMARK
            if self.told <= self.api.store.version:
                self._heard_at = now
                return Bookmark(str(self.api.store.version))
        return Ended("its time was up") if now >= self.ends_at else None


def value(found: Object) -> ConfigMap:
    """A stored object as the product's value."""
    metadata = found["metadata"]
    managers = metadata.get("managedFields", [{"manager": ""}])
    return ConfigMap(
        metadata["uid"],
        metadata["resourceVersion"],
        found.get("data", {}),
        metadata.get("annotations", {}),
        managers[-1]["manager"],
    )


def _event(happened: Happened) -> Event:
    if happened.type == "DELETED":
        return Deleted(happened.object["metadata"]["resourceVersion"])
    return Changed(value(happened.object))
