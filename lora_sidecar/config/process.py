"""What a config says of the sidecar itself: where it keeps its memory, where it listens, what it logs.

Guards against a change that is taken for applied: nearly all of these keys are read once, at the start, and say so.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from lora_sidecar.config.values import AbsolutePath, BindAddress, SecretPath


class CheckpointConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the memory that survives restarts is kept."""

    directory: Annotated[
        AbsolutePath,
        Meta(
            description="A folder that outlives the container; it gets one file for each server.",
            extra={"restart": True},
        ),
    ] = "/var/lib/lora-sidecar"
    format: Annotated[
        Literal["json", "yaml"], Meta(description="The format of the file: json or yaml.", extra={"restart": True})
    ] = "json"
    timeout: Annotated[
        float,
        Meta(ge=0.1, le=60.0, description="How long a heartbeat waits for a save.", extra={"restart": True}),
    ] = 5.0


class OpsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The port for probes, metrics and the status page."""

    bind: Annotated[
        BindAddress,
        Meta(
            description="The address to listen on. :port is every address, IPv4 and IPv6; host:port or [v6]:port one of"
            " them. With port 0 the kernel chooses.",
            extra={"restart": True},
        ),
    ] = ":9400"


class ControlConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The port on which adapters are loaded and unloaded by request; docs/control-api.md."""

    bind: Annotated[
        BindAddress,
        Meta(
            description="The address to listen on, as in ops.bind. Anything but loopback needs token_file.",
            extra={"restart": True},
        ),
    ] = "127.0.0.1:9401"
    token_file: Annotated[
        SecretPath | None,
        Meta(
            description="A file with the bearer token that every request must carry; it is read again when it changes."
            " null: no token.",
            extra={"restart": True},
        ),
    ] = None


class LogConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """What is logged and how."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="The lowest level that is logged: debug, info, warning or error."),
    ] = "info"
    format: Annotated[
        Literal["auto", "json", "pretty"],
        Meta(description="json, pretty, or auto: pretty on a terminal, json elsewhere.", extra={"restart": True}),
    ] = "auto"
