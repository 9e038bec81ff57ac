"""Text that came from outside, made fit to be shown.

The trap guarded against is a name that a client chose: with control characters it forges a line, and without an end it
fills the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

NAMES_SHOWN = 20
"""How many adapter names one log line lists before it only counts them."""

NAME_LENGTH_SHOWN = 256
"""How many characters of a name one log line shows; no name that is desired has more."""


def printable(name: str, most: int = NAME_LENGTH_SHOWN) -> str:
    """A name fit for a line: a listing may hold names that clients chose, with control characters or without end.

    What has more than `most` characters is cut.
    """
    short = name if len(name) <= most else name[: most - 1] + "…"
    return short if short.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in short)


def shown(names: Iterable[str], say: Callable[[str], str] = printable) -> list[str]:
    """The first of `names` in order, each as `say` puts it, at most `NAMES_SHOWN`; the last may stand for the rest."""
    ordered = sorted(names)
    if len(ordered) <= NAMES_SHOWN:
        return [say(name) for name in ordered]
    return [*map(say, ordered[: NAMES_SHOWN - 1]), f"and {len(ordered) - NAMES_SHOWN + 1} more"]


def reasons(by_name: Mapping[str, str]) -> str:
    """Names with their reasons in one sentence, as many as `shown` shows."""
    return "; ".join(shown(by_name, lambda name: f"{printable(name)}: {by_name[name]}"))
