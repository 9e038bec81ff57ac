"""Examines the server's health at every heartbeat, for its watch.

The trap guarded against is a sleeping or paused engine taken for a hung one: it answers as little. It is asked, but
only when it has been silent for long, since the question costs the server more than a heartbeat does.
"""

from __future__ import annotations

import asyncio

from lora_sidecar.config.settings import ServerHealthConfig
from lora_sidecar.core.conditions import Condition, transitions
from lora_sidecar.core.events import Event
from lora_sidecar.engines.base import Engine
from lora_sidecar.reconcile.outage import ServerState
from lora_sidecar.reconcile.server_health import Health, conditions_of, examine, failing, suspects_hang


class Vitals:
    """The health of one server."""

    def __init__(self) -> None:
        self._health = Health()

    async def make(
        self, engine: Engine, server: ServerState, rule: ServerHealthConfig, now: float, patience: float
    ) -> tuple[Event, ...]:
        """Examine it after a heartbeat; the facts are the conditions that began or ceased to hold.

        A question is waited for at most `patience` seconds; without its answer the next heartbeat decides.
        """
        before = self._health
        activity = engine.activity
        suspected = not before.hung and suspects_hang(before, server, activity, rule, now)
        try:
            async with asyncio.timeout(patience):
                halted = suspected and await engine.is_paused()
        except TimeoutError:
            return ()
        self._health = examine(before, server, activity, rule, now, halted=halted)
        return transitions(conditions_of(before), self.conditions)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions that hold."""
        return conditions_of(self._health)

    @property
    def failing(self) -> str:
        """Why the server's container should be ended, empty if it should not be."""
        return failing(self._health)
