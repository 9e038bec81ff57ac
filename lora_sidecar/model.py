"""The values that pass between the parts: what is desired, what was observed, what is being done about it.

The trap guarded against is "unknown" read as "nothing loaded": a failed listing is an `Unknown` and never an empty
collection, so that code which forgets the difference does not type-check. All values are frozen; mappings in them
are never changed after construction. Times are seconds of the event loop's clock unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct


class Origin(StrEnum):
    """Why an adapter is desired."""

    DECLARED = "declared"
    LEARNED = "learned"
    REQUESTED = "requested"


class Adapter(Struct, frozen=True):
    """One desired adapter.

    `path` is what the server is given as `lora_path`: a folder that both containers see at the same place, or a hub
    repository id. `base` is the root of the base model under which a learned adapter was seen, else None.
    `is_3d_lora_weight` is vLLM's load field of that name (0.22 and later, mixture-of-experts layouts); a listing does
    not show it, so only a declared adapter can have it. `listed_as` is what a server that resolves symbolic links was
    seen to make of `path`, None where no difference was seen.
    """

    name: str
    path: str
    origin: Origin
    required: bool = False
    priority: int = 0
    is_3d_lora_weight: bool = False
    base: str | None = None
    listed_as: str | None = None


class Incarnation(Struct, frozen=True):
    """One life of the server process.

    `number` counts the lives known to this checkpoint and names a plan. `start_time` is the server's own
    `process_start_time_seconds` (Unix seconds, compared for equality only), None where it publishes none.
    """

    number: int
    start_time: float | None = None


class Withdrawn(Struct, frozen=True):
    """An adapter that was unloaded through the control port and is not to be loaded again by itself.

    `declared` is what the config said of it then, None where it said nothing. `pending` is whether the server has yet
    to be told.
    """

    declared: Adapter | None = None
    pending: bool = True


class Paused(Struct, frozen=True):
    """An operator's wish that nothing is loaded or unloaded; `reason` is in their words, maybe empty."""

    reason: str = ""


class Suspect(Struct, frozen=True):
    """An adapter of which a load or a probe was under way when the server died, as far as that is known.

    `deaths` counts the lives of the server that ended so, and `accused` is whether the last load from `path` broke off
    and no listing has said yet if the server outlived it. `files` is the fingerprint of the files that were loaded,
    empty where they cannot be seen.
    """

    path: str
    deaths: int = 0
    accused: bool = False
    files: str = ""


class Desired(Struct, frozen=True):
    """What should be loaded, with the evidence that tells a restart from a deliberate unload; all of it is durable.

    `listed` holds the names that were seen listed during `incarnation`: only such an adapter can have been unloaded
    on purpose, any other that is missing was lost. `released` maps the names that are still loaded but no longer wanted
    (removed from the config) to their paths: they are not adopted again until they have left the listing.
    `withdrawn` has the names that were unloaded through the control port; none of them is in `adapters`. `paused` is
    not None while an operator wants the server observed only. `suspects` are those of `adapters` that may have
    killed the server.
    """

    adapters: Mapping[str, Adapter]
    incarnation: Incarnation
    listed: frozenset[str] = frozenset()
    released: Mapping[str, str] = {}
    withdrawn: Mapping[str, Withdrawn] = {}
    paused: Paused | None = None
    suspects: Mapping[str, Suspect] = {}


class BaseModel(Struct, frozen=True):
    """A base model's card in a listing; `root` is the path or id it was started from."""

    id: str
    root: str


class Listed(Struct, frozen=True):
    """An adapter's card in a listing; `path` is the server's `root`, which in vLLM is `lora_path` exactly as sent."""

    name: str
    path: str
    parent: str


class Observed(Struct, frozen=True):
    """What one good listing said.

    `at` is when the listing was asked for. `start_time` is the server's `process_start_time_seconds`, read before
    this listing or carried over from a listing since which nothing changed; None where unknown. `runtime_loading`
    is whether the server has the load route, None where that was not found out. `line` is the number of the silent
    connection that was open before this listing was asked for and still after it came, None where there was none.
    `version` is what the server says it is.
    `capacity` is how many adapters the server lists at most: it takes the least recently used one out for the next,
    and loads it again by itself (SGLang); None where nothing is ever taken out. `resolves_paths` is whether the server
    lists real paths and not those that it was sent (vLLM's Rust frontend).
    """

    at: float
    bases: tuple[BaseModel, ...]
    adapters: tuple[Listed, ...]
    start_time: float | None = None
    runtime_loading: bool | None = None
    version: str | None = None
    line: int | None = None
    capacity: int | None = None
    resolves_paths: bool = False


class Reason(StrEnum):
    """Why an observation is unknown."""

    REFUSED = "refused"
    RESET = "reset"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    ENGINE_DEAD = "engine_dead"
    STARTING = "starting"
    UNAUTHORIZED = "unauthorized"
    SERVER_ERROR = "server_error"
    WRONG_SERVER = "wrong_server"
    BASE_MODEL_ABSENT = "base_model_absent"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    TLS = "tls"
    KEY_UNREADABLE = "key_unreadable"
    LOCAL = "local"


class Unknown(Struct, frozen=True):
    """No trustworthy observation: nothing is loaded, unloaded or forgotten because of it.

    `detail` is one bounded line for a person, and `hint` what to do about it, maybe empty.
    """

    at: float
    reason: Reason
    detail: str
    hint: str = ""


Observation = Observed | Unknown


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


class Wakefulness(StrEnum):
    """Whether the engine may be given a load: a load into a sleeping vLLM engine on a GPU destroys it."""

    AWAKE = "awake"
    ASLEEP = "asleep"
    UNCLEAR = "unclear"


class Pulse(Struct, frozen=True):
    """What the requests that go through the engine tell of it: loads, and probes by inference.

    `open_since` is when the oldest one without an answer was sent, None if none is open. `owed_since` counts those
    that were given up as well, until the engine has answered one; `given_up_at` is when that last happened, and
    `answered_at` when it last answered. `ended_by_server` is whether the last one was cut off by the server.
    """

    open_since: float | None = None
    owed_since: float | None = None
    given_up_at: float = float("-inf")
    answered_at: float = float("-inf")
    ended_by_server: bool = False


class Said(Struct, frozen=True):
    """What a model said to a probe: its likeliest first tokens with their log-probabilities, sorted by token."""

    top: tuple[tuple[str, float], ...]


class NoAnswer(Struct, frozen=True):
    """A probe without a usable answer; `status` is the HTTP status where one came, `message` the server's sentence."""

    message: str
    status: int | None = None


Answer = Said | NoAnswer


class Unfit(Struct, frozen=True):
    """The engine must not be probed now: it sleeps or is paused (`halted`), is busy, or `obstacle` is in the way."""

    halted: bool = False
    obstacle: str = ""


class Withheld(Struct, frozen=True):
    """A load that was not sent, because the engine was not known to be awake."""

    wakefulness: Wakefulness
    detail: str


Result = Accepted | Failure | Withheld


class Looked(Struct, frozen=True):
    """What a look at an adapter's files before its load came to.

    `files` is their fingerprint, empty where they cannot be seen; `unchecked` is then why nothing can be said of them.
    `doubts` are what some versions of the server would refuse.
    """

    files: str = ""
    unchecked: str = ""
    doubts: tuple[str, ...] = ()


class Sight(StrEnum):
    """What a look at the files of an adapter found."""

    PRESENT = "present"
    GONE = "gone"
    """They are not there, and the volume is."""
    SPOILT = "spoilt"
    """They are there and could not be loaded."""
    UNSEEN = "unseen"
    """Nothing can be said: not mounted here, no permission, a hub id, or never seen whole."""


class Files(Struct, frozen=True):
    """What is known of the files at one path.

    `looks` counts the looks in a row at which they were gone or spoilt. `seen_before` is whether this process saw them
    whole on a device that is still there. `why` is what is wrong with spoilt ones.
    """

    sight: Sight
    fingerprint: str = ""
    looks: int = 1
    seen_before: bool = False
    why: str = ""


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
