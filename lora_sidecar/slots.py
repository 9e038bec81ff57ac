"""Threads to read adapters' folders in, where a disk that hangs takes few of them.

The trap guarded against is a thread that waits for a dead disk for ever: it cannot be ended, so it keeps its slot. Few
are lent out in all, and fewer to one folder's neighbours, so that one volume that hangs leaves some for the others.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from lora_sidecar.offload import Offloader

T = TypeVar("T")

STUCK: Final = 4
"""Reads that may hang at a time; with more, nothing is read any more until one comes back."""

STUCK_BESIDE: Final = 2
"""Of those in one folder: one volume that hangs leaves threads for the others."""


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
        path, several beside it, or too many of others, have not come back; and what `function` raises.
        """
        self._refuse(path)
        async with self._turn:
            # Who waited for the turn may have waited for a read beside it that did not come back.
            self._refuse(path)
            try:
                return await self._slot.run(function, deadline)
            finally:
                # Also where the caller was cancelled meanwhile.
                if self._slot.busy:
                    self._stuck[path] = self._slot
                    self._slot = self._new_slot()

    def _refuse(self, path: str) -> None:
        """Raise `TimeoutError` where a read of that path must be expected not to come back."""
        self._stuck = {stuck: slot for stuck, slot in self._stuck.items() if slot.busy}
        beside = sum(os.path.dirname(stuck) == os.path.dirname(path) for stuck in self._stuck)
        if path in self._stuck or beside >= STUCK_BESIDE or len(self._stuck) >= STUCK:
            raise TimeoutError("earlier reads have not come back yet")
