"""Which adapters a request asks to be shown.

The trap guarded against is a parameter that is guessed at: what cannot be understood is refused with the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from lora_sidecar.status.adapters import AdapterState

PAGE_SIZE: Final = 50
LARGEST_PAGE: Final = 1000


class Query(Struct, frozen=True):
    """Which adapters are asked for: of one server, in one state, with a text in name or path; and which page."""

    server: str = ""
    state: AdapterState | None = None
    text: str = ""
    offset: int = 0
    limit: int = PAGE_SIZE


class BadQueryError(Exception):
    """A query that cannot be understood; the message is for a person."""


def read_query(given: Mapping[str, str]) -> Query:
    """The query of a request's parameters `server`, `state`, `q`, `offset` and `limit`. Raises `BadQueryError`."""
    state = given.get("state", "")
    if state and state not in tuple(AdapterState):
        raise BadQueryError(f"state is one of {', '.join(AdapterState)}")
    return Query(
        server=given.get("server", "")[:256],
        state=AdapterState(state) if state else None,
        text=given.get("q", "")[:256],
        offset=_number(given, "offset", 0, 10**9, 0),
        limit=_number(given, "limit", 1, LARGEST_PAGE, PAGE_SIZE),
    )


def _number(given: Mapping[str, str], name: str, least: int, most: int, default: int) -> int:
    text = given.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):  # noqa: PLR2004
        raise BadQueryError(f"{name} is a number from {least} to {most}")
    return int(text)
