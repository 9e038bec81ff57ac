"""Where requests wait for the heartbeat, and their answers for them.

Two traps are guarded against. State with two owners: a request is only put down here, and the watch takes it into what
is desired at its next heartbeat, which is now. And an answer that comes before the memory: nothing is answered, and
nothing is sent to the engine, until what the request changes is on the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec.structs import replace

from lora_sidecar.control.requests import Answer, Load, Request, Unload, receive, retract
from lora_sidecar.control.responses import progress, refusal, refused, under_way
from lora_sidecar.core.events import Event
from lora_sidecar.core.model import Desired
from lora_sidecar.core.observation import Observation, Observed
from lora_sidecar.core.outcomes import Outcome, Unloaded
from lora_sidecar.reconcile.loads import pardon
from lora_sidecar.reconcile.state import Phase, Plan, State

Persist = Callable[[Desired], Awaitable[tuple[Desired, str]]]
"""Makes a value durable; returns what is desired from now on, and why that is not durable, empty if it is."""


_SPELL: Final = 0.5
"""Seconds of a heartbeat after which the requests that are left wait for the next: each is a save."""


class _Pending:
    """One request: waiting to be received, then to be answered. `before` is what was desired before it."""

    def __init__(self, intent: Request) -> None:
        self.intent = intent
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.before: Desired | None = None
        self.decided: Answer | None = None
        self.fresh = True

    def close(self, answer: Answer) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


class RequestQueue:
    """The requests to one server. `submit` is for the control port, all else for the watch."""

    def __init__(self, look: Callable[[], None]) -> None:
        """`look` has the next heartbeat at once."""
        self._look = look
        self._arrived: list[_Pending] = []
        self._heard: list[_Pending] = []
        self._open: list[_Pending] = []

    async def submit(self, intent: Request, deadline: float) -> Answer:
        """Have an intent carried out; returns the answer, at the latest after `deadline` seconds."""
        slip = _Pending(intent)
        self._arrived.append(slip)
        self._look()
        try:
            async with asyncio.timeout(deadline):
                return await asyncio.shield(slip.answer)
        except TimeoutError:
            # From here on it is as good as answered: what is not taken in yet never is, and what is stays remembered.
            late = _unheard(f"no heartbeat took it in within {deadline:g} s")
            slip.close(slip.decided or (late if slip.before is None else under_way(intent)))
            return slip.answer.result()

    def listen(self) -> None:
        """Have the requests that came so far received in this heartbeat, whose listing is asked for after this."""
        self._heard += self._arrived
        self._arrived = []

    async def take(
        self,
        desired: Desired,
        work: State,
        seen: Observation,
        ended: tuple[tuple[Outcome, ...], tuple[Unloaded, ...]],
        persist: Persist,
    ) -> tuple[Desired, State, tuple[Event, ...]]:
        """Take back what the engine refused, and take in what is asked for, once it is durable.

        `ended` are the loads and unloads that ended since the last heartbeat.
        """
        desired, work, facts = self._take_back(desired, work, seen, ended)
        loop = asyncio.get_running_loop()
        until = loop.time() + _SPELL
        for at, slip in enumerate(self._heard):
            if slip.answer.done():
                continue
            if loop.time() > until:
                self._arrived = [*self._heard[at:], *self._arrived]
                self._look()
                break
            received = receive(desired, slip.intent, seen, _phase(seen, work))
            if received is None:
                self._arrived.append(slip)
                continue
            after = received.desired
            if received.answer is None or after is not desired:
                after, why = await persist(after)
                if why:
                    slip.close(_unheard(f"it could not be remembered: {why}"))
                    continue
                if slip.answer.done():
                    # Nobody waited for the save, and was told that nothing was changed.
                    desired = _undone(after, slip.intent, desired)
                    continue
            work = _afresh(work, slip.intent, desired, after)
            slip.before, desired = received.before, after
            facts += received.facts
            slip.decided = received.answer
            self._open.append(slip)
        self._heard = []
        return desired, work, facts

    def _take_back(
        self,
        desired: Desired,
        work: State,
        seen: Observation,
        ended: tuple[tuple[Outcome, ...], tuple[Unloaded, ...]],
    ) -> tuple[Desired, State, tuple[Event, ...]]:
        """What is left without the requests that the engine refused.

        The heartbeat saves that before they are answered; if it cannot, the refusal holds all the same, and is saved
        later.
        """
        facts: tuple[Event, ...] = ()
        # The newest first: each leaves what was desired before it.
        for slip in reversed(self._open):
            if slip.answer.done():
                continue
            failure = refusal(slip.intent, seen, *ended)
            if failure is None or slip.before is None or not isinstance(slip.intent, Load | Unload):
                continue
            answer, told = refused(slip.intent, failure)
            before, desired = desired, retract(desired, slip.intent, slip.before)
            work = _afresh(work, slip.intent, before, desired)
            facts += told
            slip.decided = answer
        return desired, work, facts

    def answer(self, plan: Plan, seen: Observation, now: float) -> None:
        """Answer what the newest plan, which is durable and published, has decided."""
        for slip in self._open:
            answer = slip.decided or progress(slip.intent, plan, seen, now, fresh=slip.fresh)
            slip.fresh = False
            if answer is not None:
                slip.close(answer)
        self._open = [slip for slip in self._open if not slip.answer.done()]

    def close(self) -> None:
        """Answer everything that is left: what is remembered will be carried out by the next process."""
        for slip in self._open:
            slip.close(slip.decided or under_way(slip.intent))
        for slip in self._arrived:
            slip.close(_unheard("lora-sidecar is being stopped"))
        for slip in self._heard:
            sentence = "Maybe remembered, maybe not: lora-sidecar is being stopped. Ask again."
            slip.close(Answer(503, sentence, "ServiceUnavailable"))


def _phase(seen: Observation, work: State) -> Phase:
    return Phase.UP if isinstance(seen, Observed) else work.server.phase


def _afresh(work: State, intent: Request, before: Desired, after: Desired) -> State:
    """What was tried of the name so far counts no more."""
    if not isinstance(intent, Load | Unload):
        return work
    attempts = {n: a for n, a in pardon(work.attempts, before, after).items() if n != intent.name}
    unloads = {n: a for n, a in work.unloads.items() if n != intent.name}
    return replace(work, attempts=attempts, unloads=unloads)


def _undone(desired: Desired, intent: Request, before: Desired) -> Desired:
    if isinstance(intent, Load | Unload):
        return retract(desired, intent, before)
    return replace(desired, paused=before.paused)


def _unheard(why: str) -> Answer:
    return Answer(503, f"Nothing was changed: {why}.", "ServiceUnavailable")
