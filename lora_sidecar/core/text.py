"""Text that came from outside, made fit to be shown.

The trap guarded against is a name that a client chose: with control characters it forges a line, with half a surrogate
pair it cannot be sent at all, and without an end it fills the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

NAMES_SHOWN = 20
"""How many adapter names one log line lists before it only counts them."""

NAME_LENGTH_SHOWN = 256
"""How many characters of a name one log line shows; no name that is desired has more."""

TEXT_LENGTH_SHOWN = 400
"""How many characters are shown of what a server or an event says."""


def printable(text: str, limit: int = NAME_LENGTH_SHOWN) -> str:
    """A text fit for a line: at most `limit` characters of it, with U+FFFD for each that does not print."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return short if short.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in short)


def encodable(text: str) -> str:
    """The text itself; half a surrogate pair in it, which UTF-8 cannot carry, is spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown(names: Iterable[str], say: Callable[[str], str] = printable) -> list[str]:
    """The first of `names` in order, each as `say` puts it, at most `NAMES_SHOWN`; the last may stand for the rest."""
    ordered = sorted(names)
    if len(ordered) <= NAMES_SHOWN:
        return [say(name) for name in ordered]
    return [*map(say, ordered[: NAMES_SHOWN - 1]), f"and {len(ordered) - NAMES_SHOWN + 1} more"]


def reasons(by_name: Mapping[str, str]) -> str:
    """Names with their reasons in one sentence, as many as `shown` shows."""
    return "; ".join(shown(by_name, lambda name: f"{printable(name)}: {by_name[name]}"))
