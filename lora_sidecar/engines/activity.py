"""What the engine itself is doing: which requests it has answered, and whether it has any.

Two traps are guarded against. A server taken for well because its HTTP side answers: `/health` and the listing of vLLM
come from the API process, however long the engine has stood still. Only a load or a completion reaches the engine, so
what became of those is all that tells. And the moment between two requests, in which a busy server looks idle: clients
that ask one thing after another leave many, and loads that are sent into one meet the next request together. So a
server that has answered anything in its life is idle only once its count of tokens has stood still.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

from lora_sidecar.core.observation import EngineActivity, Reason
from lora_sidecar.engines.http import Reply, RequestError

COUNTS: Final = 1.0
"""Seconds for which an answer about requests counts. It costs a vLLM 24 ms of its loop (0.32.0)."""

STILL: Final = 1.0
"""Seconds for which no token was counted, before a server that has answered something counts as idle."""


class ActivityMeter:
    """Notes which requests have to go through one engine, and when it answered one."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` is the loop's clock."""
        self._now = now
        self._numbers = count()
        self._open: dict[int, float] = {}
        self._overdue: float | None = None
        self._given_up_at = float("-inf")
        self._answered_at = float("-inf")
        self._ended_by_server = False

    async def measure(self, request: Awaitable[Reply | RequestError]) -> Reply | RequestError:
        """Wait for what becomes of a request that goes through the engine, and note it.

        One that is cancelled is noted as nothing: an answer would still be owed, but nobody waits for it any more.
        """
        number = next(self._numbers)
        self._open[number] = self._now()
        self._ended_by_server = False
        try:
            result = await request
        finally:
            began = self._open.pop(number)
        if isinstance(result, Reply):
            self._answered_at = self._now()
            self._overdue = None
        elif result.reason is Reason.TIMEOUT:
            self._overdue = began if self._overdue is None else min(began, self._overdue)
            self._given_up_at = self._now()
        else:
            self._ended_by_server = True
            self._overdue = None
        return result

    @property
    def activity(self) -> EngineActivity:
        """What the requests tell now."""
        open_since = min(self._open.values(), default=None)
        owed = [at for at in (open_since, self._overdue) if at is not None]
        return EngineActivity(
            open_since=open_since,
            owed_since=min(owed, default=None),
            given_up_at=self._given_up_at,
            answered_at=self._answered_at,
            ended_by_server=self._ended_by_server,
        )


class IdleDetector:
    """Whether one server has requests to answer, told from what its metrics said over time."""

    def __init__(self) -> None:
        self._asked_at = float("-inf")
        self._idle = False
        self._tokens: float | None = None
        self._since = float("-inf")

    def is_idle(self, now: float) -> bool:
        """Whether the last answer says so, and still counts."""
        return self._idle and not self.is_due(now)

    def is_due(self, now: float) -> bool:
        """Whether the last answer, or the last question without one, counts no more: requests arrive unasked."""
        return now - self._asked_at >= COUNTS

    def ask(self, now: float) -> None:
        """Note that the server is asked: until it answers it counts as busy."""
        self._asked_at, self._idle = now, False

    def note(self, asked_at: float, requests: float | None, tokens: float | None) -> None:
        """Take in the answer to a question of `asked_at`; None is what it did not say.

        `requests` are those that run or wait, `tokens` those counted in this incarnation of the server.
        """
        if tokens != self._tokens:
            self._tokens, self._since = tokens, asked_at
        self._asked_at = asked_at
        self._idle = requests == 0 and (not tokens or asked_at - self._since >= STILL)
