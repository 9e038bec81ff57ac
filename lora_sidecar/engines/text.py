"""What any engine's answers have in common: JSON, error bodies, the router's 404. Pure: bytes in, values out.

The trap guarded against is a body that is taken at its word. It may be no JSON, an error of any shape, megabytes long
or full of control characters. Whatever it is, one bounded line for a person is made of it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from lora_sidecar.core.text import printable

MESSAGE_LIMIT: Final = 400
"""Characters that are kept of a server's sentence."""

SEARCHED: Final = 65_536
"""Characters of a refusal that are searched for what it means: a list of module names may stand before the point."""

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises at a body that is not what was asked for."""

_ANY: Final = msgspec.json.Decoder()


def decoded(body: bytes) -> Any:  # noqa: ANN401 - whatever JSON may hold
    """What the body holds, None where it is no JSON."""
    try:
        return _ANY.decode(body)
    except UNREADABLE:
        return None


def sentence(text: str) -> str:
    """Text made safe for a log line: one line, printable, at most `MESSAGE_LIMIT` characters."""
    return printable(" ".join(text[: 4 * MESSAGE_LIMIT].split()), MESSAGE_LIMIT)


def named(status: int, text: str) -> str:
    """The server's own sentence, or that it said none."""
    return sentence(text) or f"HTTP {status} without a message"


def folded(text: str) -> str:
    """Text in lower case with single spaces, as fragments are searched for in it."""
    return " ".join(text[:SEARCHED].split()).lower()


def message_of(body: bytes) -> str:
    """The server's own words out of an error body: nested, flat, a string under `error`, `detail`, or plain text."""
    match decoded(body):
        case {"error": {"message": str(text)}} | {"message": str(text)} | {"error": str(text)} | {"detail": str(text)}:
            return text
        case _:
            return body[:SEARCHED].decode(errors="replace")


def error_text(body: bytes) -> str:
    """`message_of`, made safe for a log line."""
    return sentence(message_of(body))


def is_route_absent(status: int, body: bytes) -> bool:
    """Whether a 404 comes from the router (no such route) and not from a handler (no such adapter)."""
    if status != 404:  # noqa: PLR2004 - the status is the point
        return False
    match decoded(body):
        case {"error": _} | {"message": _}:
            return False
        case _:
            return True
