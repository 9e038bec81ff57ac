"""Sends the probes by inference: one adapter at a time, ever so slowly, and only where it does no harm.

The traps guarded against: a probe that competes with requests (none is sent beyond `verify.busy_above`), one that waits
in a sleeping or paused engine (it is asked first), one of an adapter whose files are gone or unreadable (vLLM reads an
evicted adapter again at its next request, and dies when it cannot), an adapter that kills the server at every probe
(it is told, and becomes a suspect as by a load), and an adapter that waits for a slot of the engine taken for dead (no
answer in time counts only if the engine had nothing else to do).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from lora_sidecar.config.settings import Config
from lora_sidecar.core.conditions import Condition, transitions
from lora_sidecar.core.events import Event
from lora_sidecar.core.model import Adapter
from lora_sidecar.core.observation import Sight
from lora_sidecar.core.outcomes import Answer, ProbeAnswer, ProbeFailure
from lora_sidecar.core.paths import is_listed_path
from lora_sidecar.engines.base import Engine
from lora_sidecar.files.folder import is_complete, is_visible
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.reconcile.state import Plan, Verdict
from lora_sidecar.reconcile.verification import ProbeRecord, Trials, completed, conditions_of, current, judge, next_up
from lora_sidecar.threads import ReaderPool

_ADAPTER_DEADLINE: Final = 30.0
_SCAN_DEADLINE: Final = 2.0
_REFUSALS: Final = 2
"""Probes in a row that the base model must fail before that is told."""


class Prober:
    """The probes of one server. `offer` and `conditions` are for its watch, `run` is its task."""

    def __init__(self, now: Callable[[], float], report: Callable[..., None], readers: ReaderPool) -> None:
        """`report` takes events, in `readers` the disk is waited for."""
        self._engine: Engine | None = None
        self._now = now
        self._report = report
        self._readers = readers
        self._plan: Plan | None = None
        self._config: Config | None = None
        self._changed = asyncio.Event()
        self._trials: Trials = {}
        self._incarnation: int | None = None
        self._obstacle = ""
        self._refused = 0
        self._resume_at = float("-inf")
        self._told: tuple[Condition, ...] = ()
        self._asking: Adapter | None = None
        self._unanswered_at = float("inf")

    def offer(self, plan: Plan, engine: Engine, config: Config) -> tuple[Event, ...]:
        """Go by the newest plan and config; the events are the conditions that began or ceased to hold."""
        self._plan, self._engine, self._config = plan, engine, config
        if plan.verdict is not Verdict.UNKNOWN and plan.observed_at > self._unanswered_at:
            # The server outlived it.
            self._asking = None
        if plan.incarnation != self._incarnation or config.verify.by == "listed":
            self._incarnation, self._trials, self._obstacle, self._refused = plan.incarnation, {}, "", 0
        elif plan.state.last is not None:
            self._trials = current(self._trials, self._listed(plan))
        self._changed.set()
        before, self._told = self._told, self.conditions
        return transitions(before, self._told)

    @property
    def trials(self) -> Trials:
        """What the probes came to, by adapter; empty while nothing is probed."""
        return self._trials

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions that hold."""
        return conditions_of(self._trials, self._obstacle)

    @property
    def in_doubt(self) -> tuple[Adapter, ...]:
        """The adapter that was asked last, unless it answered or the server was seen to have outlived that."""
        return () if self._asking is None else (self._asking,)

    async def run(self) -> None:
        """Probe for ever."""
        while True:
            self._changed.clear()
            wait = self._wait()
            try:
                async with asyncio.timeout_at(None if wait is None else max(wait[1], self._now())):
                    await self._changed.wait()
            except TimeoutError:
                # The loop may wake up a hair before the time: it is due all the same, or this would spin.
                if wait is not None:
                    await self._probe(wait[0])

    def _wait(self) -> tuple[str, float] | None:
        """Which adapter to probe next, and when; None until another plan comes."""
        plan, config = self._plan, self._config
        if plan is None or config is None or config.verify.by == "listed":
            return None
        if plan.state.server.phase is not Phase.UP or plan.state.server.errors or plan.restores:
            return None
        turn = next_up(current(self._trials, self._listed(plan)), config.verify.interval)
        return None if turn is None else (turn[0], max(turn[1], self._resume_at))

    def _listed(self, plan: Plan) -> dict[str, str]:
        cards = () if plan.state.last is None else plan.state.last.adapters
        return {card.name: card.path for card in cards if card.name in plan.desired.adapters}

    async def _probe(self, name: str) -> None:
        plan, engine, config = self._plan, self._engine, self._config
        if plan is None or engine is None or config is None or plan.state.last is None or not plan.state.last.bases:
            return
        self._trials = current(self._trials, self._listed(plan))
        before, incarnation = self._trials, self._incarnation
        trial = before.get(name)
        if trial is None:
            return
        blocked = await engine.probe_blocked(config.verify.busy_above)
        self._obstacle = blocked.obstacle if blocked is not None else ""
        if blocked is not None:
            self._resume_at = self._now() + config.verify.interval
            if blocked.halted:
                # After a sleep each has to be proven anew.
                self._settle(incarnation, before, {n: ProbeRecord(t.path) for n, t in before.items()})
            return
        if await self._files_gone(trial.path, plan):
            self._settle(incarnation, before, {**before, name: judge(trial, _UNASKED, _UNASKED, self._now())})
            return
        base = await engine.probe(plan.state.last.bases[0].id, trial.prompt, None)
        said: Answer = base
        if not isinstance(base, ProbeFailure):
            said = await self._ask(engine, _loaded(plan, trial, name), trial.prompt)
        if isinstance(base, ProbeFailure):
            self._refused += 1
        else:
            self._refused = 0
            if isinstance(said, ProbeFailure):
                base = await _fair(engine, base, said, plan.state.last.bases[0].id, trial.prompt)
        if isinstance(base, ProbeFailure) and base.status is not None and self._refused >= _REFUSALS:
            self._obstacle = f"the base model answers no completion with log-probabilities: {base.message}"
        self._settle(incarnation, before, {**before, name: judge(trial, base, said, self._now())})

    async def _ask(self, engine: Engine, adapter: Adapter, prompt: str) -> Answer:
        self._asking, self._unanswered_at = adapter, float("inf")
        said = await engine.probe(adapter.name, prompt, _ADAPTER_DEADLINE)
        if isinstance(said, ProbeAnswer):
            self._asking = None
        self._unanswered_at = self._now()
        return said

    def _settle(self, incarnation: int | None, before: Trials, after: Trials) -> None:
        """Take the result over, unless the server has restarted or the listing has changed meanwhile."""
        if incarnation == self._incarnation:
            listed = {name: trial.path for name, trial in self._trials.items()}
            self._trials = current(after, listed)
            self._report(*completed(before, self._trials))

    async def _files_gone(self, path: str, plan: Plan) -> bool:
        """Whether the adapter could not be read again, as far as can be seen: its place is there, and it is not."""
        known = plan.state.files.get(path)
        if known is not None and known.sight in (Sight.GONE, Sight.UNREADABLE):
            return True
        if not is_visible(path):
            return False
        folder = Path(path)
        try:
            return await self._readers.run(
                path, lambda: folder.parent.is_dir() and not is_complete(path), _SCAN_DEADLINE
            )
        except (TimeoutError, OSError):
            return True


async def _fair(
    engine: Engine, base: ProbeAnswer, said: ProbeFailure, model: str, prompt: str
) -> ProbeAnswer | ProbeFailure:
    """What the base model says after the adapter failed; a wait counts only in an engine that does nothing else."""
    if said.status is None and await engine.probe_blocked(0) is not None:
        return said
    again = await engine.probe(model, prompt, _ADAPTER_DEADLINE)
    return base if isinstance(again, ProbeAnswer) else again


def _loaded(plan: Plan, trial: ProbeRecord, name: str) -> Adapter:
    """The adapter as it is in the server: what it dies of may be another path than the one that is desired."""
    adapter = plan.desired.adapters[name]
    return adapter if is_listed_path(adapter, trial.path) else replace(adapter, path=trial.path)


_UNASKED: Final = ProbeFailure("it was not asked")
