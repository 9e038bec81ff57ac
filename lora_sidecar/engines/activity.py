"""Notes which requests have to go through the engine, and when it answered one.

The trap guarded against is a server taken for well because its HTTP side answers: `/health` and the listing of vLLM
answer from the API process, however long the engine has stood still. Only a load or a completion reaches the engine, so
what became of those is all that tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lora_sidecar.core.observation import EngineActivity, Reason
from lora_sidecar.engines.http import Reply, RequestError


class Errand:
    """One request that goes through the engine; at most one of the two is to be called when it ended."""

    def __init__(self) -> None:
        self.reached = False
        self.late = False

    def answered(self) -> None:
        """The engine answered, whatever it said."""
        self.reached = True

    def timed_out(self) -> None:
        """The deadline passed without an answer."""
        self.late = True


class ActivityMeter:
    """Keeps the pulse of one engine."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` is the loop's clock."""
        self._now = now
        self._open: dict[Errand, float] = {}
        self._overdue: float | None = None
        self._given_up_at = float("-inf")
        self._answered_at = float("-inf")
        self._ended_by_server = False

    @contextmanager
    def errand(self) -> Iterator[Errand]:
        """Around one request; one that ends neither answered nor timed out was cut off by the server, or by us."""
        errand = Errand()
        self._open[errand] = self._now()
        self._ended_by_server = False
        try:
            yield errand
        except BaseException:
            # Given up by us: an answer would still be owed, but nobody waits for it any more.
            del self._open[errand]
            raise
        began = self._open.pop(errand)
        if errand.reached:
            self._answered_at = self._now()
            self._overdue = None
        elif errand.late:
            self._overdue = began if self._overdue is None else min(began, self._overdue)
            self._given_up_at = self._now()
        else:
            self._ended_by_server = True
            self._overdue = None

    @property
    def pulse(self) -> EngineActivity:
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


def note(errand: Errand, reply: Reply | RequestError) -> None:
    """Tell what came of the request; one that is neither answered nor timed out was cut off."""
    if isinstance(reply, Reply):
        errand.answered()
    elif reply.reason is Reason.TIMEOUT:
        errand.timed_out()
