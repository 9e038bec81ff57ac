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
from lora_sidecar.reconcile.loads import reset
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.reconcile.state import Plan, State

Persist = Callable[[Desired], Awaitable[tuple[Desired, str]]]
"""Makes a value durable; returns what is desired from now on, and why that is not durable, empty if it is."""


_SPELL: Final = 0.5
"""Seconds of a heartbeat after which the requests that are left wait for the next: each is a save."""


class _Pending:
    """One request: waiting to be received, then to be answered. `before` is what was desired before it."""

    def __init__(self, request: Request) -> None:
        self.request = request
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

    async def submit(self, request: Request, deadline: float) -> Answer:
        """Have an request carried out; returns the answer, at the latest after `deadline` seconds."""
        pending = _Pending(request)
        self._arrived.append(pending)
        self._look()
        try:
            async with asyncio.timeout(deadline):
                return await asyncio.shield(pending.answer)
        except TimeoutError:
            # From here on it is as good as answered: what is not taken in yet never is, and what is stays remembered.
            late = _unheard(f"no heartbeat took it in within {deadline:g} s")
            pending.close(pending.decided or (late if pending.before is None else under_way(request)))
            return pending.answer.result()

    def listen(self) -> None:
        """Have the requests that came so far received in this heartbeat, whose listing is asked for after this."""
        self._heard += self._arrived
        self._arrived = []

    async def take(
        self,
        desired: Desired,
        state: State,
        seen: Observation,
        ended: tuple[tuple[Outcome, ...], tuple[Unloaded, ...]],
        persist: Persist,
    ) -> tuple[Desired, State, tuple[Event, ...]]:
        """Take back what the engine refused, and take in what is asked for, once it is durable.

        `ended` are the loads and unloads that ended since the last heartbeat.
        """
        desired, state, events = self._take_back(desired, state, seen, ended)
        loop = asyncio.get_running_loop()
        until = loop.time() + _SPELL
        for at, pending in enumerate(self._heard):
            if pending.answer.done():
                continue
            if loop.time() > until:
                self._arrived = [*self._heard[at:], *self._arrived]
                self._look()
                break
            received = receive(desired, pending.request, seen, _phase(seen, state))
            if received is None:
                self._arrived.append(pending)
                continue
            after = received.desired
            if received.answer is None or after is not desired:
                after, why = await persist(after)
                if why:
                    pending.close(_unheard(f"it could not be remembered: {why}"))
                    continue
                if pending.answer.done():
                    # Nobody waited for the save, and was told that nothing was changed.
                    desired = _undone(after, pending.request, desired)
                    continue
            state = _afresh(state, pending.request, desired, after)
            pending.before, desired = received.before, after
            events += received.events
            pending.decided = received.answer
            self._open.append(pending)
        self._heard = []
        return desired, state, events

    def _take_back(
        self,
        desired: Desired,
        state: State,
        seen: Observation,
        ended: tuple[tuple[Outcome, ...], tuple[Unloaded, ...]],
    ) -> tuple[Desired, State, tuple[Event, ...]]:
        """What is left without the requests that the engine refused.

        The heartbeat saves that before they are answered; if it cannot, the refusal holds all the same, and is saved
        later.
        """
        events: tuple[Event, ...] = ()
        # The newest first: each leaves what was desired before it.
        for pending in reversed(self._open):
            if pending.answer.done():
                continue
            failure = refusal(pending.request, seen, *ended)
            if failure is None or pending.before is None or not isinstance(pending.request, Load | Unload):
                continue
            answer, told = refused(pending.request, failure)
            before, desired = desired, retract(desired, pending.request, pending.before)
            state = _afresh(state, pending.request, before, desired)
            events += told
            pending.decided = answer
        return desired, state, events

    def answer(self, plan: Plan, seen: Observation, now: float) -> None:
        """Answer what the newest plan, which is durable and published, has decided."""
        for pending in self._open:
            answer = pending.decided or progress(pending.request, plan, seen, now, fresh=pending.fresh)
            pending.fresh = False
            if answer is not None:
                pending.close(answer)
        self._open = [pending for pending in self._open if not pending.answer.done()]

    def close(self) -> None:
        """Answer everything that is left: what is remembered will be carried out by the next process."""
        for pending in self._open:
            pending.close(pending.decided or under_way(pending.request))
        for pending in self._arrived:
            pending.close(_unheard("lora-sidecar is being stopped"))
        for pending in self._heard:
            sentence = "Maybe remembered, maybe not: lora-sidecar is being stopped. Ask again."
            pending.close(Answer(503, sentence, "ServiceUnavailable"))


def _phase(seen: Observation, state: State) -> Phase:
    return Phase.UP if isinstance(seen, Observed) else state.server.phase


def _afresh(state: State, request: Request, before: Desired, after: Desired) -> State:
    """What was tried of the name so far counts no more."""
    if not isinstance(request, Load | Unload):
        return state
    attempts = {n: a for n, a in reset(state.loads.attempts, before, after).items() if n != request.name}
    unloads = {n: a for n, a in state.unloads.items() if n != request.name}
    return replace(state, loads=replace(state.loads, attempts=attempts), unloads=unloads)


def _undone(desired: Desired, request: Request, before: Desired) -> Desired:
    if isinstance(request, Load | Unload):
        return retract(desired, request, before)
    return replace(desired, paused=before.paused)


def _unheard(why: str) -> Answer:
    return Answer(503, f"Nothing was changed: {why}.", "ServiceUnavailable")
