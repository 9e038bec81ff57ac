"""What a config names: the servers to guard, and the adapters that they are to have.

Guards against a server or an adapter that could not be told from another, or not be reached: what a name, a url and a
path may be is part of their types, in `values`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from lora_sidecar.config.values import AbsolutePath, AdapterPath, Label, Name, SecretPath, ServerUrl, Text


class TlsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """How an https server is verified, and how the sidecar identifies itself to it."""

    ca_file: Annotated[AbsolutePath | None, Meta(description="Certificates to trust, PEM; null: the system's.")] = None
    cert_file: Annotated[
        AbsolutePath | None, Meta(description="The sidecar's own certificate, PEM, for mutual TLS; needs key_file.")
    ] = None
    key_file: Annotated[SecretPath | None, Meta(description="The private key of cert_file, PEM.")] = None


class ServerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One server to guard; `url` is in one spelling, without a slash at its end."""

    name: Annotated[
        Label,
        Meta(
            description="A short name; it names the checkpoint file and metrics. Lower-case letters, digits, hyphens.",
            examples=["vllm"],
        ),
    ]
    url: Annotated[
        ServerUrl,
        Meta(
            description="The server's root: http://host:port, https://host:port or unix:///path/of/socket. Without /v1;"
            " a path prefix is allowed, a password, a query and a fragment are not.",
            examples=["http://127.0.0.1:8000"],
            extra={"restart": True},
        ),
    ]
    engine: Annotated[
        Literal["auto", "vllm", "sglang"],
        Meta(
            description="What serves there: vllm, sglang, or auto, which asks the server each time that it starts.",
            extra={"restart": True},
        ),
    ] = "auto"
    api_key_file: Annotated[
        SecretPath | None,
        Meta(description="A file with the server's API key; null: no key.", extra={"restart": True}),
    ] = None
    admin_api_key_file: Annotated[
        SecretPath | None,
        Meta(
            description="A file with SGLang's admin API key (--admin-api-key), which loads need; null: api_key_file.",
            extra={"restart": True},
        ),
    ] = None
    base_model: Annotated[
        Text | None,
        Meta(
            description="The served name of the base model. Until the server lists it, nothing is loaded or forgotten."
            " null: any name."
        ),
    ] = None
    max_lora_rank: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="The server's --max-lora-rank; null: learned when it refuses an adapter for its rank."),
    ] = None
    max_cpu_loras: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)] | None,
        Meta(
            description="The server's --max-cpu-loras. With more adapters than that, those that do not fit are loaded"
            " first, so that those of the highest priority stay in its memory. null: the most important come first."
        ),
    ] = None
    base_model_config: Annotated[
        AbsolutePath | None,
        Meta(
            description="The base model's folder or config.json as the sidecar sees it, to compare the shapes of"
            " adapters with (llama, mistral, qwen2 and qwen3); null: shapes are not compared."
        ),
    ] = None
    tls: Annotated[
        TlsConfig | None,
        Meta(
            description="For an https url only; null: the server is verified with the system's certificates.",
            extra={"restart": True},
        ),
    ] = None


class AdapterConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One declared adapter; `path` is exactly as written, since the server lists it so."""

    name: Annotated[
        Name,
        Meta(description="The model name that clients ask for.", examples=["sql-assistant"]),
    ]
    path: Annotated[
        AdapterPath,
        Meta(
            description="A folder that both containers see at the same absolute path, or a hub id such as org/name.",
            examples=["/adapters/sql-assistant"],
        ),
    ]
    required: Annotated[bool, Meta(description="true: /readyz fails until the adapter is listed.")] = False
    priority: Annotated[
        int, Meta(ge=-1000, le=1000, description="An adapter of a higher priority is restored earlier.")
    ] = 0
    is_3d_lora_weight: Annotated[
        bool, Meta(description="vLLM's load field of that name (0.22 and later): a mixture-of-experts layout.")
    ] = False
    servers: Annotated[
        Annotated[tuple[Label, ...], Meta(min_length=1, max_length=64)] | None,
        Meta(description="The names of the servers that are to have it, such as [vllm]; null: all of them."),
    ] = None
