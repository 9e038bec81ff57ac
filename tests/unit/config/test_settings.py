from __future__ import annotations

import yaml
from jsonschema import Draft202012Validator
from msgspec import structs

from lora_sidecar.config.inventory import AdapterConfig, ServerConfig, TlsConfig
from lora_sidecar.config.load import parse
from lora_sidecar.config.process import CheckpointConfig, LogConfig, OpsConfig
from lora_sidecar.config.reference import json_schema
from lora_sidecar.config.settings import (
    AdoptConfig,
    Config,
    HeartbeatConfig,
    PolicyConfig,
    PreflightConfig,
)
from tests.support.configs import SERVER
from tests.support.paths import ROOT

SHIPPED = ROOT / "config"


def test_minimal_config_parses_to_defaults_with_only_what_it_sets() -> None:
    """The smallest file is enough, and adds nothing to the defaults but its server."""
    config = parse((SHIPPED / "minimal.yaml").read_bytes(), "minimal.yaml")

    assert Config(servers=(ServerConfig(name="vllm", url="http://127.0.0.1:8000"),)) == config


def test_defaults_are_the_published_numbers() -> None:
    """The numbers that operators plan with do not change by accident."""
    config = parse(SERVER.encode(), "test.yaml")

    assert config == Config(
        servers=(ServerConfig(name="a", url="http://h", engine="auto", api_key_file=None, base_model=None, tls=None),),
        adapters=(),
        policy=PolicyConfig(
            adopt=AdoptConfig(enabled=True, max=1000, roots=(), names=None),
            on_external_unload="forget",
            on_files_gone="warn",
        ),
        heartbeat=HeartbeatConfig(
            interval=5.0, probe_timeout=3.0, list_timeout=5.0, away_interval=0.1, down_after_timeouts=3, liveness=30.0
        ),
        preflight=PreflightConfig(enabled=True, timeout=10.0, allow_pickle=False, roots=(), hold_deadly=True),
        checkpoint=CheckpointConfig(directory="/var/lib/lora-sidecar", format="json", timeout=5.0),
        ops=OpsConfig(bind=":9400"),
        log=LogConfig(level="info", format="auto"),
    )
    assert config.restore.timeout == 300.0
    assert structs.astuple(config.restore.backoff) == (1.0, 60.0, 600.0, 600.0, 3600.0)


def test_every_key_reaches_its_place() -> None:
    """No key is read into another's place: a file that sets each to a value of its own gives exactly those."""
    text = """
servers:
- {name: a-0, url: "HTTPS://H.Example:443/team/", engine: sglang, api_key_file: /k,
   admin_api_key_file: /a, base_model: org/base, max_lora_rank: 32, max_cpu_loras: 9, base_model_config: /base,
   tls: {ca_file: /ca, cert_file: /cert, key_file: /key}}
- {name: b, url: unix:///run/vllm.sock}
- {name: c, url: "http://[::1]:8001"}
adapters:
- {name: "007", path: /a/, required: true, priority: -3, is_3d_lora_weight: on, servers: [c, a-0]}
- {name: "naïve 模型", path: org/name-1.0}
policy: {adopt: {enabled: false, max: 7, roots: [/r/, /], names: "team-.*"}, on_external_unload: restore,
         on_files_gone: unload}
heartbeat: {interval: 1m30s, probe_timeout: 50ms, list_timeout: 0.5s, away_interval: 20ms, down_after_timeouts: 9,
            liveness: 1h}
restore: {timeout: 2m, backoff: {initial: 2s, max: 3s, parked: 1h, reset_after: 24h, quarantine: 2h}}
preflight: {enabled: false, timeout: 7s, allow_pickle: true, roots: [/q/], hold_deadly: false}
checkpoint: {directory: /c/, format: yaml, timeout: 4s}
ops: {bind: "[::]:0"}
log: {level: debug, format: pretty}
"""
    config = parse(text.encode(), "test.yaml")

    assert config.servers == (
        ServerConfig(
            *("a-0", "https://h.example/team", "sglang", "/k", "/a", "org/base"),
            *(32, 9, "/base", TlsConfig("/ca", "/cert", "/key")),
        ),
        ServerConfig("b", "unix:///run/vllm.sock"),
        ServerConfig("c", "http://[::1]:8001"),
    )
    assert config.adapters == (
        AdapterConfig("007", "/a/", required=True, priority=-3, is_3d_lora_weight=True, servers=("c", "a-0")),
        AdapterConfig("naïve 模型", "org/name-1.0"),
    )
    assert config.policy == PolicyConfig(AdoptConfig(False, 7, ("/r", "/"), "team-.*"), "restore", "unload")  # noqa: FBT003
    assert structs.astuple(config.heartbeat) == (90.0, 0.05, 0.5, 0.02, 9, 3600.0)
    assert config.restore.timeout == 120.0
    assert structs.astuple(config.restore.backoff) == (2.0, 3.0, 3600.0, 86400.0, 7200.0)
    assert config.preflight == PreflightConfig(False, 7.0, True, ("/q",), False)  # noqa: FBT003
    assert config.checkpoint == CheckpointConfig("/c", "yaml", 4.0)
    assert config.ops == OpsConfig("[::]:0")
    assert config.log == LogConfig("debug", "pretty")
    Draft202012Validator(json_schema()).validate(yaml.safe_load(text))


TWO_SERVERS = """servers:
- {name: a, url: http://a}
- {name: b, url: http://b}
"""


def test_adapters_are_declared_on_the_servers_that_they_name() -> None:
    """An adapter without servers is for all of them, in the order of the file."""
    text = TWO_SERVERS + "adapters: [{name: x, path: /x}, {name: y, path: /y, servers: [b]}]\n"
    config = parse(text.encode(), "test.yaml")

    assert [[one.name for one in config.declared_on(server)] for server in ("a", "b")] == [["x"], ["x", "y"]]
