"""What a look at a server, its engine or its files found.

The trap guarded against is "unknown" read as "nothing loaded": a failed listing is an `Unknown` and never an empty
collection, so that code which forgets the difference does not type-check. Times are seconds of the event loop's clock
unless a name says otherwise.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from msgspec import Struct


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
    lists real paths and not those that it was sent (vLLM's Rust frontend). `engine` is what the listing says that it
    comes from, whatever the config says; None where it does not say.
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
    engine: Literal["vllm", "sglang"] | None = None


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


class EngineActivity(Struct, frozen=True):
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


class Sight(StrEnum):
    """What a look at the files of an adapter found."""

    PRESENT = "present"
    GONE = "gone"
    """They are not there, and the volume is."""
    UNREADABLE = "unreadable"
    """They are there, and no engine could read them: damaged, or half copied."""
    UNSEEN = "unseen"
    """Nothing can be said: not mounted here, no permission, an error of the disk, a hub id, or never seen whole."""


class Files(Struct, frozen=True):
    """What is known of the files at one path.

    `looks` counts the looks in a row at which they were gone or unreadable. `seen_before` is whether this process saw
    them whole on a device that is still there. `why` is what is wrong with unreadable ones. `fingerprint` changes when
    bytes do, and not with times or inodes; it is empty where not all of them were seen.
    """

    sight: Sight
    fingerprint: str = ""
    looks: int = 1
    seen_before: bool = False
    why: str = ""
