"""What vLLM's refusals mean. Pure: a status and bytes in, values out.

The trap guarded against is a status code taken at its word. vLLM answers a dead engine with 400 (0.7 to 0.17) or 500
(since 0.18), a bad adapter with 400 (to 0.17) or 500 (since), a missing folder with 404 and a route that is switched
off with 404 as well; error bodies are flat (to 0.10.0) or nested (since 0.10.1). So a refusal is classified by its text
and the shape of its body, and the server's own sentence is kept for a person.

The answers of vLLM 0.32.0 were seen on a real server; those of other versions were read in their source.
"""

from __future__ import annotations

from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind
from lora_sidecar.engines.text import folded, is_route_absent, message_of, named

_FRAME = "Worker failed with error '"
_FRAME_END = "', please check the stack trace above for the root cause"


def classify_load(status: int, body: bytes) -> Accepted | Failure:
    """What the answer to a load means."""
    if status == 200:  # noqa: PLR2004 - the status is the point
        return Accepted()
    text = _message(body)
    searched = folded(text)
    if any(fragment in searched for fragment in _PRESENT):
        return Accepted(already=True)
    if "outside the configured allowed prefixes" in searched:
        text += " VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES of the server names them."
    return Failure(_kind(status, body, searched), named(status, text), status)


def classify_unload(status: int, body: bytes) -> Accepted | Failure:
    """What the answer to an unload means; an adapter that is not loaded is as good as unloaded."""
    if status == 200:  # noqa: PLR2004 - as above
        return Accepted()
    if status == 404 and not is_route_absent(status, body):  # noqa: PLR2004 - as above
        return Accepted(already=True)
    text = _message(body)
    return Failure(_kind(status, body, folded(text)), named(status, text), status)


def _kind(status: int, body: bytes, searched: str) -> FailureKind:
    if status in (401, 403):
        return FailureKind.UNAUTHORIZED
    if is_route_absent(status, body) or status == 405:  # noqa: PLR2004 - as above
        return FailureKind.SERVER_SETUP
    for kind, fragments in _FRAGMENTS:
        if any(fragment in searched for fragment in fragments):
            return kind
    if status == 404:  # noqa: PLR2004 - as above
        return FailureKind.FILES
    if status in (429, 503):
        return FailureKind.ENGINE
    return FailureKind.UNCLASSIFIED


_PRESENT = ("already been loaded", "is already loaded")

_FRAGMENTS: tuple[tuple[FailureKind, tuple[str, ...]], ...] = (
    (
        FailureKind.SERVER_SETUP,
        ("lora is not enabled", "engine was not started with lora enabled"),
    ),
    (
        FailureKind.ENGINE,
        (
            "enginecore encountered",
            "enginedead",
            "engine is dead",
            "server shutting down",
            "executor failed",
            "currently scaling",
            "out of memory",
        ),
    ),
    (
        FailureKind.FILES,
        (
            "no adapter found for",
            "no such file or directory",
            "not a directory",
            "doesn't contain tensors",
            "must exist and be accessible",
            "deserializing header",
            "safetensorerror",
            "header too",
            "incomplete metadata",
            "permission denied",
            "expecting value: line",
            "expecting property name",
        ),
    ),
    (
        FailureKind.ADAPTER,
        (
            "max_lora_rank",
            "must be a positive integer",
            "unsupported lora weight",
            "but received [",
            "support dora",
            "adapter bias",
            "lora_bias",
            "modules_to_save",
            "missing required configuration",
            "init_lora_weights",
            "conflicts with a served base model",
            "incompatible",
            "must be provided",
            "does not support",
            "outside the configured allowed prefixes",
            "vllm_runtime_lora_allowed_path_prefixes",
        ),
    ),
)
"""Texts of vLLM 0.7 to 0.33 in lower case; the first kind with a match decides, so what heals itself comes first."""


def sentence_of(status: int, body: bytes) -> str:
    """The server's own sentence, or that it said none."""
    return named(status, _message(body))


def _message(body: bytes) -> str:
    return _unframed(message_of(body))


def _unframed(text: str) -> str:
    """A worker's sentence without the frame that vLLM puts around it."""
    head, _, tail = text.partition(_FRAME)
    return head + tail.replace(_FRAME_END, "")
