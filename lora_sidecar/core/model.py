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
    ADOPTED = "adopted"
    REQUESTED = "requested"


class Adapter(Struct, frozen=True):
    """One desired adapter.

    `path` is what the server is given as `lora_path`: a folder that both containers see at the same place, or a hub
    repository id. `base` is the root of the base model under which an adopted adapter was seen, else None.
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

    @property
    def urgency(self) -> tuple[int, bool, str]:
        """The key by which adapters are ordered, the most important first."""
        return -self.priority, not self.required, self.name


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
    on purpose, any other that is missing was lost. `orphaned` maps the names that are still loaded but no longer wanted
    (removed from the config) to their paths: they are not adopted again until they have left the listing.
    `withdrawn` has the names that were unloaded through the control port; none of them is in `adapters`. `paused` is
    not None while an operator wants the server observed only. `suspects` are those of `adapters` that may have
    killed the server.
    """

    adapters: Mapping[str, Adapter]
    incarnation: Incarnation
    listed: frozenset[str] = frozenset()
    orphaned: Mapping[str, str] = {}
    withdrawn: Mapping[str, Withdrawn] = {}
    paused: Paused | None = None
    suspects: Mapping[str, Suspect] = {}
