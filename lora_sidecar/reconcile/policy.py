"""The part of the config that a reconcile goes by.

The trap guarded against is a step that reads the config for itself: what a plan depends on is this value, so that the
same policy gives the same plan.
"""

from __future__ import annotations

from msgspec import Struct

from lora_sidecar.config.settings import BackoffConfig, Config, HeartbeatConfig, PolicyConfig


class Policy(Struct, frozen=True):
    """What the config asks of one server.

    `capacity` is how many adapters the server keeps in memory, None where the config does not say. `declares` is
    whether the config names any adapter at all: nothing is pruned by one that was emptied by mistake.
    """

    rules: PolicyConfig = PolicyConfig()
    backoff: BackoffConfig = BackoffConfig()
    heartbeat: HeartbeatConfig = HeartbeatConfig()
    capacity: int | None = None
    declares: bool = True

    @staticmethod
    def of(config: Config, server: str = "") -> Policy:
        """The policy that a config asks for, for the server of that name."""
        capacity = next((one.max_cpu_loras for one in config.servers if one.name == server), None)
        return Policy(config.policy, config.restore.backoff, config.heartbeat, capacity, bool(config.adapters))
