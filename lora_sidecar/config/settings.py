"""The configuration: what may be asked of the program, and whether one file asks it soundly.

The Structs are the one table of keys: type, bounds, default and meaning; parser and JSON Schema are derived from it.
Guards against a config that is half understood: a misspelt key, a converted value or timing that cannot work together
would otherwise show itself in the outage it was written for. Times are seconds once parsed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Struct

from lora_sidecar.config import values
from lora_sidecar.config.reading import Reading
from lora_sidecar.config.rules import faults
from lora_sidecar.config.strict_yaml import load
from lora_sidecar.config.table import Duration, Key, Listing, Section, Text, Whole, changed, schema
from lora_sidecar.config.values import Fault
from lora_sidecar.core.errors import ConfigError, Problem

MAX_PROBLEMS = 100

_PATH = Text(values.absolute_path, values.ABSOLUTE_PATTERN)
_SECRET_PATH = Text(values.absolute_path, values.ABSOLUTE_PATTERN, secret=True)


class TlsConfig(Struct, frozen=True):
    """How an https server is verified, and how we identify ourselves to it."""

    ca_file: Annotated[str | None, Key("Certificates to trust, PEM; null: those of the system.", _PATH)] = None
    cert_file: Annotated[str | None, Key("Our own certificate, PEM, for mutual TLS.", _PATH)] = None
    key_file: Annotated[str | None, Key("The private key of cert_file, PEM.", _SECRET_PATH)] = None


class ServerConfig(Struct, frozen=True):
    """One server to guard; `url` is in one spelling, without a slash at its end."""

    name: Annotated[
        str,
        Key("A short name; it names the checkpoint file and metrics.", Text(values.label, values.LABEL_PATTERN, 63)),
    ]
    url: Annotated[
        str,
        Key(
            "The server's root: http://host:port, https://host:port or unix:///path/of/socket.",
            Text(values.server_url, values.URL_PATTERN, 2048, secret=True),
            restart=True,
        ),
    ]
    engine: Annotated[Literal["auto", "vllm", "sglang"], Key("What serves there; auto asks it.", restart=True)] = "auto"
    api_key_file: Annotated[str | None, Key("A file with the server's API key.", _SECRET_PATH, restart=True)] = None
    admin_api_key_file: Annotated[
        str | None,
        Key("A file with SGLang's admin API key, for loads; null: api_key_file serves.", _SECRET_PATH, restart=True),
    ] = None
    base_model: Annotated[
        str | None, Key("The served name of the base model, which must be listed; null: any.", Text())
    ] = None
    max_lora_rank: Annotated[
        int | None, Key("The server's --max-lora-rank; null: learned from its refusals.", Whole(1, 4096))
    ] = None
    max_cpu_loras: Annotated[
        int | None,
        Key("The server's --max-cpu-loras, if more adapters are wanted than it keeps in memory.", Whole(1, 100_000)),
    ] = None
    base_model_config: Annotated[
        str | None,
        Key("The base model's folder or config.json, to hold adapters' shapes against; null: not checked.", _PATH),
    ] = None
    tls: Annotated[TlsConfig | None, Key("TLS settings of an https url; null: the system's.", restart=True)] = None


class AdapterConfig(Struct, frozen=True):
    """One declared adapter; `path` is exactly as written, since the server lists it so."""

    name: Annotated[str, Key("The model name that clients ask for.", Text(longest=256))]
    path: Annotated[
        str,
        Key(
            "An absolute folder, the same in both containers, or a hub id org/name.",
            Text(values.adapter_path, values.ADAPTER_PATH_PATTERN),
        ),
    ]
    required: Annotated[bool, Key("Readiness waits until it is listed.")] = False
    priority: Annotated[int, Key("A higher one is restored earlier.", Whole(-1000, 1000))] = 0
    is_3d_lora_weight: Annotated[
        bool, Key("vLLM's load field of that name (0.22 and later): a mixture-of-experts layout.")
    ] = False
    servers: Annotated[
        tuple[str, ...] | None,
        Key(
            "The names of the servers that are to have it; null: all.",
            Listing(64, fewest=1, item=Text(values.label, values.LABEL_PATTERN, 63)),
        ),
    ] = None


class AdoptConfig(Struct, frozen=True):
    """Which adapters that someone else loaded are remembered."""

    enabled: Annotated[bool, Key("Remember adapters that someone else loaded.")] = True
    max: Annotated[int, Key("How many learned adapters are remembered at most, for each server.", Whole(1, 10_000))] = (
        1000
    )
    roots: Annotated[
        tuple[str, ...], Key("Adopt only paths at or below these folders; []: any path.", Listing(100, item=_PATH))
    ] = ()
    names: Annotated[
        str | None,
        Key(
            "Adopt only names that this regular expression (RE2) matches as a whole; null: any name.",
            Text(values.regular_expression, longest=256),
        ),
    ] = None


class PolicyConfig(Struct, frozen=True):
    """What to do about adapters that others load and unload, and that the config changes or removes."""

    adopt: Annotated[AdoptConfig, Key("Which adapters that someone else loaded are remembered.")] = AdoptConfig()
    on_external_unload: Annotated[
        Literal["forget", "restore"],
        Key("What to do when a learned adapter was unloaded on purpose; a declared one is always restored."),
    ] = "forget"
    on_files_gone: Annotated[
        Literal["warn", "unload"],
        Key("What to do when the files of a listed adapter vanish: a request for it may then kill the server."),
    ] = "warn"
    replace: Annotated[
        Literal["never", "safe", "always"],
        Key(
            "Load a declared adapter anew that is listed with another path; safe: only where the server's prefix cache "
            "cannot go on with the former weights."
        ),
    ] = "safe"
    prune: Annotated[bool, Key("Unload a declared adapter that is removed from the config.")] = False


class HeartbeatConfig(Struct, frozen=True):
    """How often and how patiently a server is looked at."""

    interval: Annotated[float, Key("Time between two looks at a server that answers.", Duration("100ms", "5m"))] = 5.0
    probe_timeout: Annotated[float, Key("How long a probe may take.", Duration("10ms", "1m"))] = 3.0
    list_timeout: Annotated[
        float, Key("How long a listing may take; with probe_timeout, how long a whole look.", Duration("10ms", "1m"))
    ] = 5.0
    away_interval: Annotated[
        float,
        Key("Time between connection attempts while the server is away; at most interval.", Duration("10ms", "5m")),
    ] = 0.1
    down_after_timeouts: Annotated[int, Key("Timeouts in a row after which a server is down.", Whole(1, 100))] = 3
    liveness: Annotated[
        float,
        Key(
            "/livez fails when no heartbeat was completed for so long; "
            "at least 2 x interval + probe_timeout + list_timeout + 2 x checkpoint.timeout.",
            Duration("1s", "1h"),
        ),
    ] = 30.0

    @property
    def patience(self) -> float:
        """Seconds that a whole look at a server may take, whatever it is made of."""
        return self.probe_timeout + self.list_timeout


class BackoffConfig(Struct, frozen=True):
    """The wait before an adapter that failed to load is tried again."""

    initial: Annotated[float, Key("The wait after the first failure; it doubles.", Duration("10ms", "1h"))] = 1.0
    max: Annotated[float, Key("The longest wait; at least initial.", Duration("10ms", "24h"))] = 60.0
    parked: Annotated[
        float, Key("The wait for an adapter that the server refuses for what it is.", Duration("1s", "24h"))
    ] = 600.0
    reset_after: Annotated[
        float, Key("Failures are forgotten once the adapter was listed for so long.", Duration("1s", "24h"))
    ] = 600.0
    quarantine: Annotated[
        float,
        Key("The wait after the server died twice while the adapter was loaded; it doubles.", Duration("1s", "24h")),
    ] = 3600.0


class RestoreConfig(Struct, frozen=True):
    """How missing adapters are loaded."""

    timeout: Annotated[float, Key("How long one load may take.", Duration("1s", "1h"))] = 300.0
    concurrency: Annotated[
        int | Literal["auto"],
        Key(
            "How many loads are in flight at most; auto: several while the server has no requests, else one.",
            Whole(1, 16, word="auto"),
        ),
    ] = "auto"
    backoff: Annotated[BackoffConfig, Key("The wait before an adapter that failed is tried again.")] = BackoffConfig()


class PreflightConfig(Struct, frozen=True):
    """How an adapter's folder is looked at before the server is given it."""

    enabled: Annotated[bool, Key("Look at the folders that can be seen from here before they are sent.")] = True
    timeout: Annotated[float, Key("How long one read may take.", Duration("100ms", "5m"))] = 10.0
    allow_pickle: Annotated[
        bool,
        Key("Send declared and requested adapters whose weights are a pickle (.bin, .pt), too, as learned ones are."),
    ] = False
    roots: Annotated[
        tuple[str, ...],
        Key("Send only folders at or below these, symbolic links resolved; []: any.", Listing(100, item=_PATH)),
    ] = ()


class VerifyConfig(Struct, frozen=True):
    """What proves that an adapter is there."""

    by: Annotated[
        Literal["listed", "probe"],
        Key("listed: the server lists it; probe: it also answers a request for one token, and not as the base model."),
    ] = "listed"
    interval: Annotated[
        float, Key("Time between two probes, one adapter after the other.", Duration("100ms", "24h"))
    ] = 30.0
    busy_above: Annotated[int, Key("No probe while more requests than this are under way.", Whole(0, 10_000))] = 4


class ServerHealthConfig(Struct, frozen=True):
    """When a server is named as wedged or hung, and /serverz fails for it."""

    wedged_after: Annotated[
        float | None,
        Key(
            "Refused connections for so long after it had answered; null: only where an open load proves it.",
            Duration("30s", "24h"),
        ),
    ] = 1800.0
    hung_after: Annotated[
        float, Key("No answer to a load or a probe for so long, while /health answers.", Duration("1s", "24h"))
    ] = 300.0


class CheckpointConfig(Struct, frozen=True):
    """Where the memory that survives restarts is kept."""

    directory: Annotated[
        str, Key("A folder that outlives the container; one file for each server.", _PATH, restart=True)
    ] = "/var/lib/lora-sidecar"
    format: Annotated[Literal["json", "yaml"], Key("The format of the file.", restart=True)] = "json"
    timeout: Annotated[float, Key("How long a heartbeat waits for a save.", Duration("100ms", "1m"), restart=True)] = (
        5.0
    )


class OpsConfig(Struct, frozen=True):
    """The port for probes and metrics."""

    bind: Annotated[
        str,
        Key(
            "host:port or [v6]:port to listen on, :port for every address; port 0 lets the kernel choose.",
            Text(values.bind_address, values.BIND_PATTERN, 300),
            restart=True,
        ),
    ] = ":9400"


class ControlConfig(Struct, frozen=True):
    """The port on which adapters can be loaded and unloaded by request."""

    bind: Annotated[
        str,
        Key(
            "host:port to listen on; anything but loopback needs token_file; port 0 lets the kernel choose.",
            Text(values.bind_address, values.BIND_PATTERN, 300),
            restart=True,
        ),
    ] = "127.0.0.1:9401"
    token_file: Annotated[
        str | None,
        Key("A file with the bearer token that every request must carry; null: none.", _SECRET_PATH, restart=True),
    ] = None


class LogConfig(Struct, frozen=True):
    """What is logged and how."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Key("The least level that is logged.")] = "info"
    format: Annotated[
        Literal["auto", "json", "pretty"], Key("auto: pretty on a terminal, JSON elsewhere.", restart=True)
    ] = "auto"


class Config(Struct, frozen=True):
    """One file, read and found sound."""

    servers: Annotated[tuple[ServerConfig, ...], Key("The servers of this pod to guard.", Listing(64, fewest=1))]
    adapters: Annotated[tuple[AdapterConfig, ...], Key("Adapters that are always wanted.", Listing(10_000))] = ()
    policy: Annotated[PolicyConfig, Key("What to do about adapters that others load, and that the config changes.")] = (
        PolicyConfig()
    )
    heartbeat: Annotated[HeartbeatConfig, Key("How often and how patiently a server is looked at.")] = HeartbeatConfig()
    restore: Annotated[RestoreConfig, Key("How missing adapters are loaded.")] = RestoreConfig()
    preflight: Annotated[PreflightConfig, Key("How an adapter's folder is looked at before it is sent.")] = (
        PreflightConfig()
    )
    verify: Annotated[VerifyConfig, Key("What proves that an adapter is there.")] = VerifyConfig()
    server_health: Annotated[
        ServerHealthConfig, Key("When a server is named as wedged or hung, and /serverz fails for it.")
    ] = ServerHealthConfig()
    checkpoint: Annotated[CheckpointConfig, Key("Where the memory that survives restarts is kept.")] = (
        CheckpointConfig()
    )
    ops: Annotated[OpsConfig, Key("The port for probes and metrics.")] = OpsConfig()
    control: Annotated[ControlConfig, Key("The port to load and unload adapters by request.")] = ControlConfig()
    log: Annotated[LogConfig, Key("What is logged and how.")] = LogConfig()

    def declared_on(self, server: str) -> tuple[AdapterConfig, ...]:
        """Return the adapters that the server of that name is to have."""
        return tuple(one for one in self.adapters if one.servers is None or server in one.servers)


_DEFAULT = Config(servers=())


def parse(data: bytes, source: str) -> Config:
    """Return the config that the bytes of one YAML file spell; `source` names the file in the error.

    Raises `ConfigError` with every problem found, by line (the first hundred, and how many more there are).
    """
    tree, problems = load(data)
    reading = Reading(Config, problems)
    config: Any = None
    if tree is not None:
        config = reading.read(Section(Config), tree, "")
        for line, path, fault in faults(reading, _DEFAULT):
            reading.object(line, path, fault)
    elif not problems:
        reading.object(0, "", Fault("is empty", "name at least one server under servers"))
    if not reading.problems and isinstance(config, Config):
        return config
    found = sorted(reading.problems, key=lambda problem: (problem.line, problem.key))
    more = len(found) - MAX_PROBLEMS
    if more > 0:
        found[MAX_PROBLEMS:] = [Problem(0, "", f"has {more} more problems", "mend these first")]
    raise ConfigError(source, tuple(found))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the file, for editors; the parser checks more than it can say."""
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lora-sidecar",
        "description": "Configuration of lora-sidecar. Durations are texts such as 5s, 100ms or 1m30s.",
    }
    return head | schema(Section(Config))


def restart_needed(old: Config, new: Config) -> tuple[str, ...]:
    """Return the key paths of `new` whose change only a restart can apply; everything else applies live.

    Servers are told apart by name, and a change in the set of names is named `servers`.
    """
    before = {server.name: server for server in old.servers}
    paths = ["servers"] if before.keys() != {server.name for server in new.servers} else []
    for at, server in enumerate(new.servers):
        if server.name in before:
            paths += changed(before[server.name], server, f"servers[{at}]")
    return (*paths, *changed(old, new))
