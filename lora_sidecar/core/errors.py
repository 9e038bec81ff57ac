"""What can go wrong, as values that say what was attempted, on what, why it failed and what to do.

Two traps are guarded against. An error that only repeats the operating system's word ("Permission denied") leaves
the person on call guessing which file and which mount; so each carries the operation, its target and a hint. And an
expected failure thrown through the heartbeat would end it; so a failure that the daemon lives with is a returned
value (see `model.py`), and only what must stop the process, or a command, is an exception here.
"""

from __future__ import annotations

from msgspec import Struct


class SidecarError(Exception):
    """An operation that failed: what was attempted, on what, the cause, and what a person can do.

    `str()` of it is one line fit for a terminal or a log.
    """

    def __init__(self, attempted: str, target: str, cause: str, hint: str = "") -> None:
        super().__init__(attempted, target, cause, hint)
        self.attempted = attempted
        self.target = target
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        line = f"{self.attempted} {self.target}: {self.cause}"
        return f"{line} ({self.hint})" if self.hint else line


class LockHeldError(SidecarError):
    """Another process holds the checkpoint's lock."""


class CheckpointError(SidecarError):
    """The checkpoint's directory or file cannot be used as asked."""


class Problem(Struct, frozen=True):
    """One thing wrong with a config: where it is, and the rule that it breaks.

    `line` counts from 1 and is 0 where no line can be named (a file that cannot be read). `key` is the path of
    the key, `servers[0].url` for instance, and empty for the document as a whole. `hint` may be empty.
    """

    line: int
    key: str
    rule: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        key = f"{self.key}: " if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{key}{self.rule}{hint}"


class ConfigError(SidecarError):
    """A config that cannot be used, with every problem found in it (at least one)."""

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        super().__init__("read config", source, "; ".join(map(str, problems)))
        self.source = source
        self.problems = problems
