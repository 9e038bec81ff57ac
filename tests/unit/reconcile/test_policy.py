from __future__ import annotations

from msgspec.structs import replace

from lora_sidecar.config.inventory import AdapterConfig, ServerConfig
from lora_sidecar.config.settings import Config
from lora_sidecar.reconcile.policy import Policy


def test_a_policy_is_what_the_config_asks_of_that_server() -> None:
    """Its own limit of adapters, and the rules of all."""
    servers = (
        ServerConfig("one", "http://h:1", max_cpu_loras=3),
        ServerConfig("two", "http://h:2", max_cpu_loras=5),
        ServerConfig("three", "http://h:3"),
    )
    config = Config(servers=servers)

    assert [Policy.of(config, name).capacity for name in ("one", "two", "three", "none", "")] == [
        3,
        5,
        None,
        None,
        None,
    ]
    plain = Policy.of(config)
    assert plain == Policy(config.policy, config.restore.backoff, config.heartbeat, declares=False)
    asked = replace(
        config,
        adapters=(AdapterConfig("a", "/a"),),
        policy=replace(
            config.policy, on_external_unload="restore", on_files_gone="unload", replace="never", prune=True
        ),
    )
    other = Policy.of(asked)
    assert (other.rules, other.declares) == (asked.policy, True)
