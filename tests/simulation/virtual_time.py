"""An event loop whose clock moves only when nothing else is left to do: hours pass in the time that their work takes.

The trap guarded against is a run that cannot be repeated. This loop waits for no socket and no thread, so the order of
everything that happens follows from the program alone. A world with nothing to wait for is an error, never a hang.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class NothingToWaitForError(AssertionError):
    """Every task waits for something that no timer will ever bring about."""


class _Clock(selectors.SelectSelector):
    """Stands where the loop waits for sockets, and moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let the time pass that the loop has nothing to do."""
        if timeout is None:
            raise NothingToWaitForError("no timer is set and nothing is ready")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on virtual time, which begins at `began` seconds."""

    def __init__(self, began: float = 0.0) -> None:
        self._virtual = _Clock()
        self._virtual.now = began
        super().__init__(self._virtual)

    def time(self) -> float:
        """The virtual time."""
        return self._virtual.now


def run(main: Coroutine[Any, Any, T], began: float = 0.0) -> T:
    """Run `main` on virtual time to its end; what it left behind is cancelled."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(began)) as runner:
        return runner.run(main)
