"""Keeps desired durable while the daemon runs: loads it, saves it when it changed, retries, and says how it stands.

The trap guarded against is a disk that decides over adapters. A full or hung disk must neither stop the heartbeat nor
lose what is known: memory is authoritative, the save is repeated with backoff, and a condition says so until it works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from msgspec.structs import replace

from lora_sidecar.checkpoint.aside import RejectedFile
from lora_sidecar.checkpoint.decode import Checkpoint
from lora_sidecar.checkpoint.store import Loaded, Store
from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.errors import CheckpointError, LockHeldError
from lora_sidecar.core.events import Event, EventName, Level, info, warning
from lora_sidecar.core.model import Desired, Incarnation, Origin
from lora_sidecar.threads import BlockingCall

LOCK_WAIT: Final = 10.0
"""Seconds to wait for the lock at start: a predecessor that is being stopped needs up to 5 s."""

_LOCK_PAUSE: Final = 0.1
_FIRST_RETRY: Final = 1.0
_LAST_RETRY: Final = 300.0


_Failure = CheckpointError | LockHeldError | TimeoutError


class CheckpointManager:
    """One server's checkpoint, for its watch alone."""

    def __init__(
        self, store: Store, timeout: float, now: Callable[[], float], offloader: BlockingCall | None = None
    ) -> None:
        """`timeout` bounds one save, in seconds; `offloader` is where the disk is waited for."""
        self._store = store
        self._timeout = timeout
        self._now = now
        self._offloader = offloader or BlockingCall(f"checkpoint-{store.server}")
        self._read = False
        self._saved: Desired | None = None
        self._failures = 0
        self._retry_at = 0.0
        self.generation = 0
        self.condition: Condition | None = None

    async def open(self) -> tuple[Desired, tuple[Event, ...]]:
        """Take the lock and read what was remembered; an unusable directory leaves memory to work with.

        Raises `LockHeldError` where another process keeps the lock.
        """
        give_up_at = self._now() + LOCK_WAIT
        while True:
            try:
                return self._take(await self._offloader.run(self._open_and_load, self._timeout))
            except LockHeldError:
                # Tried again from here and not in the thread, so that a signal can end the wait.
                if self._now() >= give_up_at:
                    raise
                await asyncio.sleep(_LOCK_PAUSE)
            except (CheckpointError, TimeoutError) as error:
                return _EMPTY, (self._failed(error),)

    def _open_and_load(self) -> Loaded:
        self._store.open()
        return self._store.load()

    def _take(self, loaded: Loaded) -> tuple[Desired, tuple[Event, ...]]:
        self._read = True
        facts = [_quarantined(note) for note in loaded.notes]
        if loaded.checkpoint is None:
            return _EMPTY, tuple(facts)
        self.generation = loaded.checkpoint.generation
        desired = loaded.checkpoint.desired
        if loaded.source == "current" and loaded.durable:
            self._saved = desired
        facts.append(
            info(
                EventName.CHECKPOINT_LOADED,
                generation=self.generation,
                source=loaded.source,
                adapters=len(desired.adapters),
                incarnation=desired.incarnation.number,
            )
        )
        return desired, tuple(facts)

    def has(self, desired: Desired) -> bool:
        """Whether this very value is durable."""
        return desired is self._saved

    async def keep(self, desired: Desired, *, urgent: bool = False) -> tuple[Desired, tuple[Event, ...]]:
        """Make `desired` durable if it is not yet and a try is due, or at once where it is `urgent`; never raises.

        Returns what is desired from now on: `desired`, joined with what a directory held that could be read only now.
        """
        if desired is self._saved or (self._failures and self._now() < self._retry_at and not urgent):
            return desired, ()
        try:
            facts: tuple[Event, ...] = ()
            # Of both together: this is what a heartbeat waits for.
            async with asyncio.timeout(self._timeout):
                if not self._read:
                    remembered, facts = self._take(await self._offloader.run(self._open_and_load, self._timeout))
                    desired = _joined(desired, remembered)
                checkpoint = Checkpoint(self.generation + 1, self._store.server, desired)
                await self._offloader.run(lambda: self._store.save(checkpoint), self._timeout)
        except (CheckpointError, LockHeldError, TimeoutError) as error:
            return desired, (self._failed(error),)
        return desired, (*facts, *self._succeeded(checkpoint))

    async def close(self, deadline: float) -> None:
        """Let a save under way finish, for at most `deadline` seconds, and give up the lock."""
        # Before the first reading nothing is saved, and what is under way is a wait for the lock.
        if await self._offloader.settle(deadline if self._read else 0.0):
            with suppress(CheckpointError):
                self._store.close()

    def _succeeded(self, checkpoint: Checkpoint) -> tuple[Event, ...]:
        failures, self._failures, self.condition = self._failures, 0, None
        self._saved, self.generation = checkpoint.desired, checkpoint.generation
        adapters = len(checkpoint.desired.adapters)
        written = Event(
            EventName.CHECKPOINT_WRITTEN, Level.DEBUG, {"generation": checkpoint.generation, "adapters": adapters}
        )
        if not failures:
            return (written,)
        recovered = info(
            EventName.CHECKPOINT_RECOVERED,
            generation=checkpoint.generation,
            adapters=adapters,
            previous_errors=failures,
        )
        return (written, recovered)

    def _failed(self, error: _Failure) -> Event:
        self._failures += 1
        # What the disk holds now is not known: even what it held before must be written again.
        self._saved = None
        wait = min(_LAST_RETRY, _FIRST_RETRY * 2 ** min(self._failures - 1, 16))
        self._retry_at = self._now() + wait
        # A save that is late may still come to its end, with this number; the next one must be newer than it.
        self.generation += isinstance(error, TimeoutError)
        message, hint = _told(error, self._store.directory, self._timeout)
        self.condition = Condition(ConditionType.CHECKPOINT_NOT_PERSISTED, message, hint)
        return warning(
            EventName.CHECKPOINT_WRITE_FAILED,
            repeats=message,
            message=message,
            hint=hint,
            consecutive=self._failures,
            retry_seconds=wait,
        )


_EMPTY: Final = Desired(adapters={}, incarnation=Incarnation(0))


def _joined(desired: Desired, remembered: Desired) -> Desired:
    """What is known now, and the adapters that were remembered and are not: a late mount is no reason to forget.

    What is declared is known already. Where the life of the server is the remembered one, so is what was listed in it.
    """
    gone = desired.orphaned.keys() | desired.withdrawn.keys()
    adopted = {n: a for n, a in remembered.adapters.items() if n not in gone and a.origin is not Origin.DECLARED}
    withdrawn = {n: w for n, w in remembered.withdrawn.items() if w.declared == desired.adapters.get(n)}
    adapters = {n: a for n, a in (adopted | dict(desired.adapters)).items() if n not in withdrawn}
    start_time = desired.incarnation.start_time
    same_life = start_time is not None and start_time == remembered.incarnation.start_time
    return replace(
        desired,
        adapters=adapters,
        listed=desired.listed | (remembered.listed & adapters.keys()) if same_life else desired.listed,
        withdrawn=withdrawn | dict(desired.withdrawn),
        paused=desired.paused or remembered.paused,
    )


def _told(error: _Failure, directory: str, timeout: float) -> tuple[str, str]:
    match error:
        case CheckpointError() | LockHeldError():
            return f"{error.attempted} {error.target}: {error.cause}", error.hint
        case TimeoutError():
            return f"write the checkpoint to {directory}: not done within {timeout:g} s", "is the volume's disk hung?"


def _quarantined(note: RejectedFile) -> Event:
    return warning(
        EventName.CHECKPOINT_QUARANTINED,
        kind=note.kind.value,
        file=note.file,
        moved_to=note.moved_to,
        reason=note.reason,
        hint=note.hint,
    )
