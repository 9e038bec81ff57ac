"""How the requests to a server went: loads, unloads and probes by inference.

The trap guarded against is a failure as an exception that somebody forgets to catch: an expected failure is a value,
and says whose fault it is, since that decides what is tried next. Times are seconds of the event loop's clock.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from lora_sidecar.core.model import Adapter


class FailureKind(StrEnum):
    """Whose fault a failed load is, which decides what is tried next."""

    FILES = "files"
    """The adapter's files are absent or incomplete: they may still arrive, so it is tried again with backoff."""
    ADAPTER = "adapter"
    """The server refuses this adapter for what it is: parked, since only other files or flags can change that."""
    SERVER_SETUP = "server_setup"
    """The server as started can load nothing (route switched off, LoRA not enabled): no adapter is to blame."""
    UNAUTHORIZED = "unauthorized"
    """The key is missing or wrong: no adapter is to blame."""
    LOCAL = "local"
    """This process could not send it (no descriptors, no memory): neither adapter nor server is to blame."""
    ENGINE = "engine"
    """The engine is dead, stopping or out of memory: the round ends and the next listing decides."""
    AMBIGUOUS = "ambiguous"
    """The request broke off after it may have been received: it may yet take effect, so the next listing decides."""
    NOT_LISTED = "not_listed"
    """The server said that it loaded the adapter, and then did not list it."""
    UNCLASSIFIED = "unclassified"
    """A refusal whose text is not known: tried again with backoff."""


class Failure(Struct, frozen=True):
    """A load or unload that did not succeed.

    `message` is the server's own sentence, bounded; `status` its HTTP status; `answer` its body as it came, empty where
    there was none or it is long.
    """

    kind: FailureKind
    message: str
    status: int | None = None
    answer: bytes = b""


class Accepted(Struct, frozen=True):
    """The server says that the adapter is loaded (`already`: it was before). Believed only once it is listed."""

    already: bool = False


class SleepState(StrEnum):
    """Whether the engine may be given a load: a load into a sleeping vLLM engine on a GPU destroys it."""

    AWAKE = "awake"
    ASLEEP = "asleep"
    UNCLEAR = "unclear"


class ProbeAnswer(Struct, frozen=True):
    """What a model said to a probe: its likeliest first tokens with their log-probabilities, sorted by token."""

    top: tuple[tuple[str, float], ...]


class ProbeFailure(Struct, frozen=True):
    """A probe without a usable answer; `status` is the HTTP status where one came, `message` the server's sentence."""

    message: str
    status: int | None = None


Answer = ProbeAnswer | ProbeFailure


class ProbeBlocked(Struct, frozen=True):
    """The engine must not be probed now: it sleeps or is paused (`halted`), is busy, or `obstacle` is in the way."""

    halted: bool = False
    obstacle: str = ""


class LoadDeferred(Struct, frozen=True):
    """A load that was not sent, because the engine was not known to be awake."""

    wakefulness: SleepState
    detail: str


Result = Accepted | Failure | LoadDeferred


class Looked(Struct, frozen=True):
    """What a look at an adapter's files before its load came to.

    `files` is their fingerprint, empty where they cannot be seen; `unchecked` is then why nothing can be said of them.
    `doubts` are what was found and was no reason not to send it.
    """

    files: str = ""
    unchecked: str = ""
    doubts: tuple[str, ...] = ()


class Outcome(Struct, frozen=True):
    """How one load of a plan went; `at` is when it ended, `seconds` how long it took."""

    adapter: Adapter
    incarnation: int
    result: Result
    at: float
    seconds: float
    looked: Looked = Looked()


class Unloaded(Struct, frozen=True):
    """How one unload went; `at` is when it ended. Accepted also where the adapter was not loaded (`already`)."""

    name: str
    incarnation: int
    result: Accepted | Failure
    at: float


class Retired(Struct, frozen=True):
    """How one unload went that the config gave reason to; `at` is when it ended."""

    name: str
    incarnation: int
    result: Accepted | Failure
    at: float
