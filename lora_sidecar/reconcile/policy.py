"""The part of the config that a reconcile goes by.

The trap guarded against is a step that reads the config for itself: what a plan depends on is this value, so that the
same policy gives the same plan.
"""

from __future__ import annotations

from msgspec import Struct

from lora_sidecar.config.settings import AdoptConfig, BackoffConfig, Config, HeartbeatConfig
from lora_sidecar.reconcile.replacement import Rule


class Policy(Struct, frozen=True):
    """What the config asks of one server."""

    adopt: AdoptConfig
    forget_unloaded: bool
    backoff: BackoffConfig
    heartbeat: HeartbeatConfig
    unload_gone: bool = False
    capacity: int | None = None
    retire: Rule = Rule()

    @staticmethod
    def of(config: Config, server: str = "") -> Policy:
        """The policy that a config asks for, for the server of that name."""
        capacity = next((one.max_cpu_loras for one in config.servers if one.name == server), None)
        forgets = config.policy.on_external_unload == "forget"
        gone = config.policy.on_files_gone == "unload"
        retire = Rule(config.policy.replace, config.policy.prune, bool(config.adapters))
        return Policy(config.policy.adopt, forgets, config.restore.backoff, config.heartbeat, gone, capacity, retire)
