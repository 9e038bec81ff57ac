"""Whether a server has requests to answer, told from what its metrics said over time.

The trap guarded against is the moment between two requests. Clients that ask one thing after another leave many, and a
look that falls into one sees an idle server; the loads that are then sent at once meet the next request together. So a
server that has answered anything in its life is idle only once its count of tokens has stood still.
"""

from __future__ import annotations

from typing import Final

STILL: Final = 1.0
"""Seconds for which no token was counted."""


class IdleDetector:
    """When one server was last seen to have no requests."""

    def __init__(self) -> None:
        self.seen_at = float("-inf")
        self._tokens: float | None = None
        self._since = float("-inf")

    def note(self, asked_at: float, requests: float | None, tokens: float | None) -> None:
        """Take in the answer to a question of `asked_at`, seconds of the loop's clock; None is what it did not say.

        `requests` are those that run or wait, `tokens` those counted in this life of the server.
        """
        if tokens != self._tokens:
            self._tokens, self._since = tokens, asked_at
        still = not tokens or asked_at - self._since >= STILL
        self.seen_at = asked_at if requests == 0 and still else float("-inf")
