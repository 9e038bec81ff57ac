"""The configuration as values: what the program is told, with type, bounds, default and meaning of each key.

Guards against a parser, a schema and a reference file that are kept by hand and drift apart: all three are derived
from the Structs here, in `inventory` and in `process`, so that a new key is one field, and `config/sidecar.yaml`
printed anew. `reader` turns a file into them, `reference` prints the schema and the commented example.

Every `float` is a duration: seconds here, a text such as `5s` in the file. `extra={"restart": True}` marks a key whose
change only a restart applies.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from lora_sidecar.config.inventory import AdapterConfig, ServerConfig
from lora_sidecar.config.process import CheckpointConfig, ControlConfig, LogConfig, OpsConfig
from lora_sidecar.config.values import AbsolutePath, NamePattern

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 24 * _HOUR


class AdoptConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Which adapters that someone else loaded are remembered."""

    enabled: Annotated[bool, Meta(description="Remember adapters that someone else loaded.")] = True
    max: Annotated[
        int, Meta(ge=1, le=10_000, description="How many of them are remembered at most, for each server.")
    ] = 1000
    roots: Annotated[
        tuple[AbsolutePath, ...],
        Meta(max_length=100, description="Only adapters whose path is at or below one of these folders; []: any path."),
    ] = ()
    names: Annotated[
        NamePattern | None,
        Meta(
            description="Only adapters whose whole name this regular expression matches; null: any name. RE2 syntax:"
            " no look-around and no references back; \\w, \\d, \\s and \\b know ASCII only."
        ),
    ] = None


class PolicyConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What to do about adapters that others load and unload, and that the config changes or removes."""

    adopt: Annotated[AdoptConfig, Meta(description="Which adapters that someone else loaded are remembered.")] = (
        AdoptConfig()
    )
    on_external_unload: Annotated[
        Literal["forget", "restore"],
        Meta(
            description="When someone unloads an adapter that was adopted: forget it, or restore it. An adapter that"
            " this file declares is always restored."
        ),
    ] = "forget"
    on_files_gone: Annotated[
        Literal["warn", "unload"],
        Meta(
            description="When the files of a listed adapter vanish while their volume is still there: warn, or unload"
            " the adapter. A request for it may kill the server once the engine has evicted it; after an unload the"
            " request gets a 404. The adapter is loaded again when its files are back."
        ),
    ] = "warn"
    replace: Annotated[
        Literal["never", "safe", "always"],
        Meta(
            description="When a declared adapter is listed with another path: never, safe or always unload it and load"
            " it from the path given here. safe: only where the server's prefix cache cannot go on with the former"
            " weights (vLLM 0.31 and later, and up to 0.11.0). A replacement that cannot be loaded is undone."
        ),
    ] = "safe"
    prune: Annotated[
        bool,
        Meta(description="Unload a declared adapter that is removed from this file; never by a file without adapters."),
    ] = False


class HeartbeatConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How often the sidecar looks at a server, and how long it waits for an answer."""

    interval: Annotated[
        float, Meta(ge=0.1, le=5 * _MINUTE, description="The time between two looks at a server that answers.")
    ] = 5.0
    probe_timeout: Annotated[float, Meta(ge=0.01, le=_MINUTE, description="How long a health probe may take.")] = 3.0
    list_timeout: Annotated[
        float, Meta(ge=0.01, le=_MINUTE, description="How long a listing may take; with probe_timeout, the whole look.")
    ] = 5.0
    away_interval: Annotated[
        float,
        Meta(
            ge=0.01,
            le=5 * _MINUTE,
            description="The time between two attempts to connect while the server is away; at most interval.",
        ),
    ] = 0.1
    down_after_timeouts: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="How many timeouts in a row make a server count as down; one refused connection is enough.",
        ),
    ] = 3
    liveness: Annotated[
        float,
        Meta(
            ge=1.0,
            le=_HOUR,
            description="/livez fails when no heartbeat was completed for so long; at least"
            " 2 x interval + probe_timeout + list_timeout + 2 x checkpoint.timeout.",
        ),
    ] = 30.0

    @property
    def patience(self) -> float:
        """Seconds that a whole look at a server may take, whatever it is made of."""
        return self.probe_timeout + self.list_timeout


class BackoffConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How long an adapter waits before it is tried again."""

    initial: Annotated[
        float, Meta(ge=0.01, le=_HOUR, description="The wait after the first failure; each further one doubles it.")
    ] = 1.0
    max: Annotated[float, Meta(ge=0.01, le=_DAY, description="The longest wait; at least initial.")] = 60.0
    parked: Annotated[
        float, Meta(ge=1.0, le=_DAY, description="The wait of an adapter that the server refuses for what it is.")
    ] = 600.0
    reset_after: Annotated[
        float, Meta(ge=1.0, le=_DAY, description="Once it was listed for so long, an adapter's failures are forgotten.")
    ] = 600.0
    quarantine: Annotated[
        float,
        Meta(
            ge=1.0,
            le=_DAY,
            description="The wait of an adapter during whose loads the server died twice; each further death doubles"
            " it.",
        ),
    ] = 3600.0


class RestoreConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How missing adapters are loaded."""

    timeout: Annotated[float, Meta(ge=1.0, le=_HOUR, description="How long one load may take.")] = 300.0
    concurrency: Annotated[
        Annotated[int, Meta(ge=1, le=16)] | Literal["auto"],
        Meta(
            description="How many loads are in flight at most; auto: four while the server has no requests, else one,"
            " since each load pauses all inference, and the pauses of several add up."
        ),
    ] = "auto"
    backoff: Annotated[BackoffConfig, Meta(description="How long an adapter waits before it is tried again.")] = (
        BackoffConfig()
    )


class PreflightConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How an adapter's folder is read before the server is asked to load it."""

    enabled: Annotated[bool, Meta(description="false: every adapter is sent without a look at its folder.")] = True
    timeout: Annotated[
        float,
        Meta(
            ge=0.1,
            le=5 * _MINUTE,
            description="How long one read may take, and all reads of an adapter's weights together. A folder that does"
            " not answer within it is not sent: the engine, and every request in it, would wait as long.",
        ),
    ] = 10.0
    allow_pickle: Annotated[
        bool,
        Meta(
            description="Send declared and requested adapters whose weights are a pickle (.bin, .pt), too. Adopted ones"
            " are always sent."
        ),
    ] = False
    roots: Annotated[
        tuple[AbsolutePath, ...],
        Meta(
            max_length=100,
            description="Send only folders at or below one of these, symbolic links resolved; []: any folder.",
        ),
    ] = ()
    hold_deadly: Annotated[
        bool,
        Meta(
            description="Do not send SGLang what it would accept and die of at the first request, as far as the folder"
            " tells: a rank that the weights contradict, half of a pair of weights, a module that the base model does"
            " not have (servers[].base_model_config)."
        ),
    ] = True


class VerifyConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What proves that an adapter is there."""

    by: Annotated[
        Literal["listed", "probe"],
        Meta(
            description="listed: the server lists it. probe: it also answers a request for one token, and not as the"
            " base model does. A probe is two such requests and one scrape of /metrics; docs/verification.md has the"
            " price."
        ),
    ] = "listed"
    interval: Annotated[
        float,
        Meta(
            ge=0.1,
            le=_DAY,
            description="The time between two probes, one adapter after the other. After a restore each is probed once,"
            " 1s apart.",
        ),
    ] = 30.0
    busy_above: Annotated[
        int, Meta(ge=0, le=10_000, description="No probe while more requests than this run or wait.")
    ] = 4


class ServerHealthConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """When the sidecar reports a server as wedged or hung."""

    wedged_after: Annotated[
        Annotated[float, Meta(ge=30.0, le=_DAY)] | None,
        Meta(
            description="ServerWedged: a server that had answered refuses every connection for so long. More than its"
            " longest start. null: never; a wedge that an open load proves is reported after 30s in any case."
        ),
    ] = 1800.0
    hung_after: Annotated[
        float,
        Meta(
            ge=1.0,
            le=_DAY,
            description="ServerHung: a load or a probe (see verify) got no answer for so long while /health answers."
            " More than the longest load takes. Not while the engine says that it sleeps or is paused.",
        ),
    ] = 300.0


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """One file, read and found sound."""

    servers: Annotated[
        tuple[ServerConfig, ...],
        Meta(
            min_length=1,
            max_length=64,
            description="The servers of this pod to guard. To add, remove or rename one needs a restart.",
        ),
    ]
    adapters: Annotated[
        tuple[AdapterConfig, ...],
        Meta(
            max_length=10_000,
            description="Adapters that are always wanted; []: only what others load is remembered.",
        ),
    ] = ()
    policy: Annotated[
        PolicyConfig,
        Meta(
            description="What to do about adapters that others load and unload, and that this file changes or removes."
        ),
    ] = PolicyConfig()
    heartbeat: Annotated[
        HeartbeatConfig,
        Meta(description="How often the sidecar looks at a server, and how long it waits for an answer."),
    ] = HeartbeatConfig()
    restore: Annotated[RestoreConfig, Meta(description="How missing adapters are loaded.")] = RestoreConfig()
    preflight: Annotated[
        PreflightConfig, Meta(description="How an adapter's folder is read before the server is asked to load it.")
    ] = PreflightConfig()
    verify: Annotated[VerifyConfig, Meta(description="What proves that an adapter is there.")] = VerifyConfig()
    server_health: Annotated[
        ServerHealthConfig,
        Meta(description="When a server is reported as wedged or hung, and /serverz/NAME fails for it."),
    ] = ServerHealthConfig()
    checkpoint: Annotated[CheckpointConfig, Meta(description="Where the memory that survives restarts is kept.")] = (
        CheckpointConfig()
    )
    ops: Annotated[OpsConfig, Meta(description="The port for probes, metrics and the status page.")] = OpsConfig()
    control: Annotated[
        ControlConfig,
        Meta(description="The port on which adapters are loaded and unloaded by request; docs/control-api.md."),
    ] = ControlConfig()
    log: Annotated[LogConfig, Meta(description="What is logged and how.")] = LogConfig()

    def declared_on(self, server: str) -> tuple[AdapterConfig, ...]:
        """Return the adapters that the server of that name is to have."""
        return tuple(one for one in self.adapters if one.servers is None or server in one.servers)
