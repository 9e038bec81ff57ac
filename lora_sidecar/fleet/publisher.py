"""Writes a change into the fleet's document, by compare-and-swap, so that nobody's write is lost.

The traps guarded against: a write that starts from what this pod remembers takes out what others put in; so each try
starts from what the API server says then. A write whose answer was lost is made again and rings in every replica, or is
taken for lost and is not; so a try looks first whether it is there already. And many writers in step never get through;
so between tries they wait for a time of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, assert_never

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.fleet import pace, writes
from lora_sidecar.fleet.api import (
    ConfigMap,
    ConfigMapApi,
    Conflict,
    Denied,
    Listed,
    Missing,
    Patched,
    Rejected,
    Unreachable,
)
from lora_sidecar.fleet.changes import (
    ACCEPT_ANNOTATION,
    accept_token,
    is_accepted,
    judge,
    without_token,
)
from lora_sidecar.fleet.codec import decode, encode
from lora_sidecar.fleet.document import FleetDocument, Newer, NoDocument, Unreadable
from lora_sidecar.fleet.writes import Change, Put, Refused, Unchanged

PUBLISH_SECONDS: Final = 5.0
"""Seconds for everything that one change needs; a hundred writers at once need more, and some hear so."""


class Published(Struct, frozen=True):
    """The fleet's document says what was asked for, as of `serial`; `wrote` is whether that needed a write."""

    serial: int
    wrote: bool


class NotPublished(Struct, frozen=True):
    """The change is not in the fleet's document; asked for again later, it may be.

    `in_doubt` is whether a write had no answer and may be there all the same: then a watch tells of it.
    """

    reason: str
    hint: str = ""
    in_doubt: bool = False


class _Again(Struct, frozen=True):
    """Try once more after so many seconds; `failure` is what is told if there is no time for that."""

    failure: NotPublished
    pause: float


class _Start(Struct, frozen=True):
    """The document that a write starts from; `restores` is whether that puts back what the ConfigMap lost."""

    document: FleetDocument
    restores: bool


_Outcome = Published | Refused | NotPublished


class FleetPublisher:
    """Writes one document of one ConfigMap, one change at a time."""

    def __init__(self, api: ConfigMapApi, key: str, *, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        """`key` is the document's in `data`. `clock` is the loop's, `jitter` gives numbers in [0, 1)."""
        self._api = api
        self._key = key
        self._clock = clock
        self._jitter = jitter
        self._turn = asyncio.Lock()

    async def publish(self, wish: Change, in_force: FleetDocument | None) -> _Outcome:
        """Have the document say what is wished, within 5 s.

        `in_force` is the document that this pod goes by, None where it never knew one. Where the ConfigMap has one that
        is held (`changes.Held`), the write starts from `in_force` and thereby puts back what was lost.
        """
        until = self._clock() + PUBLISH_SECONDS
        try:
            async with asyncio.timeout_at(until):
                await self._turn.acquire()
        except TimeoutError:
            return NotPublished("other changes of this pod are still being written", _HINT_LATER)
        try:
            return await self._persist(wish, in_force, until)
        finally:
            self._turn.release()

    async def _persist(self, wish: Change, in_force: FleetDocument | None, until: float) -> _Outcome:
        tries, in_doubt = 0, False
        while True:
            tries += 1
            result = await self._try(wish, in_force, until, tries)
            match result:
                case _Again(failure, pause):
                    in_doubt = in_doubt or failure.in_doubt
                    if self._clock() + pause >= until:
                        return replace(failure, in_doubt=in_doubt)
                    await asyncio.sleep(pause)
                case NotPublished():
                    return replace(result, in_doubt=in_doubt)
                case _:
                    return result

    async def _try(self, wish: Change, in_force: FleetDocument | None, until: float, tries: int) -> _Outcome | _Again:
        answer = await self._api.list(until - self._clock())
        match answer:
            case Listed(config_map=ConfigMap() as config_map):
                pass
            case Listed():
                return _gone()
            case Denied():
                return NotPublished(answer.detail, answer.hint)
            case Unreachable():
                return self._unreachable(answer, tries, in_doubt=False)
            case _:
                assert_never(answer)
        text = config_map.data.get(self._key)
        reading = decode(text)
        if isinstance(reading, Unreadable | Newer):
            return NotPublished(f"the fleet's document cannot be read, so it is not overwritten: {reading}", _HINT_MEND)
        token = accept_token(config_map.uid, self._key, text)
        accepted = is_accepted(config_map.annotations.get(ACCEPT_ANNOTATION), token)
        start = _start(in_force, reading, accepted=accepted)
        changed = writes.change(start.document, wish)
        match changed:
            case Unchanged() if start.restores and isinstance(wish, Put):
                # What is wished is in force and not in the ConfigMap: it has to be put back.
                document = writes.rewritten(start.document)
            case Unchanged(serial):
                return Published(serial, wrote=False)
            case Refused():
                return changed
            case FleetDocument():
                document = changed
            case _:
                assert_never(changed)
        return await self._write(config_map, document, token, until, tries)

    async def _write(
        self, before: ConfigMap, document: FleetDocument, token: str, until: float, tries: int
    ) -> _Outcome | _Again:
        annotation = before.annotations.get(ACCEPT_ANNOTATION)
        # What was accepted is written over now: left there, it would accept the same text once more.
        cleared = {ACCEPT_ANNOTATION: without_token(annotation, token)} if is_accepted(annotation, token) else {}
        answer = await self._api.patch(
            before.resource_version, {self._key: encode(document)}, cleared, until - self._clock()
        )
        match answer:
            case Patched():
                return Published(document.serial, wrote=True)
            case Conflict(detail):
                failure = NotPublished(f"others kept writing the fleet's document: {detail}", _HINT_LATER)
                return _Again(failure, pace.after_conflict(tries, self._jitter()))
            case Missing():
                return _gone()
            case Rejected(status, detail):
                return Refused(f"the API server does not take the fleet's document: {status} {detail}")
            case Denied():
                return NotPublished(answer.detail, answer.hint)
            case Unreachable():
                return self._unreachable(answer, tries, in_doubt=answer.sent)
            case _:
                assert_never(answer)

    def _unreachable(self, answer: Unreachable, tries: int, *, in_doubt: bool) -> _Again:
        failure = NotPublished(answer.detail, answer.hint, in_doubt)
        return _Again(failure, pace.after_failure(tries, answer.retry_after, self._jitter()))


_HINT_LATER: Final = "ask again in a moment"
_HINT_MEND: Final = "mend it with kubectl edit configmap, or update this sidecar"


def _start(in_force: FleetDocument | None, reading: FleetDocument | NoDocument, *, accepted: bool) -> _Start:
    judged = judge(in_force, reading, accepted=accepted)
    if isinstance(judged, FleetDocument):
        return _Start(judged, restores=False)
    return _Start(writes.restored(in_force or FleetDocument(), reading), restores=True)


def _gone() -> NotPublished:
    return NotPublished(
        "the fleet's ConfigMap does not exist", "apply the manifest that has it: sidecars never create it"
    )
