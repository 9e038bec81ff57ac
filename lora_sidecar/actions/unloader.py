"""Tells the server what to unload, as the newest plan says: one after another, reported and never believed.

Three traps are guarded against:

* An unload that overtakes a load of the same name finds nothing, and the load lands after it. A name whose load is
  under way waits for its end, and for no other load: vLLM (to 0.33) only drops the name from a table.
* An adapter that is unloaded to be replaced is away until its successor is loaded. None is while the engine sleeps or
  is paused, when nothing could be loaded, nor where the successor's files are missing or the engine would refuse them.
* A plan says nothing of the server's next incarnation, nor, where its save took long, of the server as it is now. What
  the config gives reason to is looked up in the newest plan just before it is done, and not taken from a late one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from lora_sidecar.actions.worker import Worker
from lora_sidecar.core.outcomes import Failure, Retired, Unloaded
from lora_sidecar.engines.base import Engine
from lora_sidecar.files.preflight import Preflight
from lora_sidecar.reconcile.replacement import Retire
from lora_sidecar.reconcile.state import Plan

FRESH: Final = 1.0
"""Seconds that a plan's listing may be old when the plan comes: meanwhile somebody may have replaced an adapter."""


class Unloader(Worker[Unloaded | Retired]):
    """The unloads of one server, those that somebody asked for and those that the config gives reason to."""

    def __init__(
        self,
        now: Callable[[], float],
        finished: Callable[[], None],
        loading: Callable[[str], bool],
        preflight: Preflight,
    ) -> None:
        """`loading` tells whether a load of a name is under way; `preflight` looks at what is to be loaded next."""
        super().__init__(now, finished)
        self._loading = loading
        self._preflight = preflight
        self._unloads: list[str] = []
        self._retires: list[Retire] = []

    def offer(self, plan: Plan, engine: Engine) -> None:
        """See `Worker.offer`."""
        self._unloads = list(plan.unloads)
        self._retires = list(plan.retires) if self._now() - plan.observed_at <= FRESH else []
        super().offer(plan, engine)

    def cancel_pending(self) -> None:
        """Unload nothing because of the config until the next plan, since what is wanted has changed."""
        self._retires = []

    def _is_asked_for(self, plan: Plan) -> bool:
        del plan
        return bool(self._unloads or self._retires)

    async def _carry_out(self) -> bool:
        done = False
        while (plan := self._plan) is not None and (engine := self._engine) is not None:
            # What somebody asked for comes first: it waits for no look at files.
            if self._unloads:
                done |= await self._unload(self._unloads.pop(0), plan, engine)
            elif self._retires:
                done |= await self._retire(self._retires[0], plan, engine)
            else:
                break
        return done

    async def _unload(self, name: str, plan: Plan, engine: Engine) -> bool:
        if not self._is_due(name, plan) or self._loading(name):
            return False
        result = await engine.unload(name)
        at = self._ended_at[name] = self._now()
        self._ended.append(Unloaded(name, plan.incarnation, result, at))
        return True

    async def _retire(self, retire: Retire, plan: Plan, engine: Engine) -> bool:
        """Unload what the config replaces or removes, unless something speaks against that; whether it was tried."""
        if not self._is_due(retire.name, plan):
            self._retires.remove(retire)
            return False
        if await engine.is_paused():
            self.cancel_pending()
            return False
        refusal = await self._refusal(retire)
        if refusal is None and await engine.is_paused():
            self.cancel_pending()
            return False
        if retire not in self._retires or self._plan is None or self._plan.incarnation != plan.incarnation:
            # Meanwhile the server may have gone, or the config have changed.
            return False
        self._retires.remove(retire)
        result = refusal or await engine.unload(retire.name)
        at = self._ended_at[retire.name] = self._now()
        self._ended.append(Retired(retire.name, plan.incarnation, result, at))
        return True

    async def _refusal(self, retire: Retire) -> Failure | None:
        """Why the successor must not be expected to load; None where there is none, or nothing speaks against it."""
        if retire.successor is None:
            return None
        looked = await self._preflight.inspect(retire.successor)
        refusal = looked.refusal or await self._preflight.absence(retire.successor)
        return refusal and replace(refusal, message=f"nothing is unloaded for it; {refusal.message}")
