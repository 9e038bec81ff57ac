"""Threads to read adapters' folders in, where any of them may hang.

The trap guarded against is a volume that hangs. A stuck thread cannot be ended; so it keeps its slot, few are lent out,
and what lies beside folders that hang is not read, so that adapters on other volumes still are.
"""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from lora_sidecar.offload import Offloader

T = TypeVar("T")

STUCK: Final = 4
"""Reads that may hang at a time; with more, nothing is read any more until one comes back."""

STUCK_BESIDE: Final = 2
"""Reads of folders side by side that may hang: then it is their volume, and it must not use up what others need."""


class Slots:
    """Threads to read in, each for one path at a time; a stuck one stays lent out, and few are."""

    def __init__(self, name: str, new_slot: Callable[[str], Offloader] = Offloader) -> None:
        """`new_slot` makes a slot of that name."""
        self._new_slot = partial(new_slot, name)
        self._slot = self._new_slot()
        self._stuck: dict[str, Offloader] = {}
        self._turn = asyncio.Lock()

    async def run(self, path: str, function: Callable[[], T], deadline: float) -> T:
        """Call `function`, which reads `path`, in a thread.

        Raises `TimeoutError` if that takes longer than `deadline` seconds, or at once while an earlier read of that
        path, or too many of others or of folders beside it, have not come back; and what `function` raises.
        """
        self._stuck = {stuck: slot for stuck, slot in self._stuck.items() if slot.busy}
        beside = sum(posixpath.dirname(one) == posixpath.dirname(path) for one in self._stuck)
        if path in self._stuck or beside >= STUCK_BESIDE or len(self._stuck) >= STUCK:
            raise TimeoutError("earlier reads have not come back yet")
        async with self._turn:
            try:
                return await self._slot.run(function, deadline)
            finally:
                # Also where the caller was cancelled meanwhile.
                if self._slot.busy:
                    self._stuck[path] = self._slot
                    self._slot = self._new_slot()
