"""What vLLM's refusals mean. Pure: a status and bytes in, values out.

The trap guarded against is a status code taken at its word. vLLM answers a dead engine with 400 (0.7 to 0.17) or 500
(since 0.18), a bad adapter with 400 (to 0.17) or 500 (since), a missing folder with 404 and a route that is switched
off with 404 as well; error bodies are flat (to 0.10.0) or nested (since 0.10.1). So a refusal is classified by its text
and the shape of its body, and the server's own sentence is kept for a person.

The answers of vLLM 0.32.0 were seen on a real server; those of other versions were read in their source.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind

MESSAGE_LIMIT = 400
"""Characters that are kept of a server's sentence."""

_SEARCHED = 65_536
"""Characters of a refusal that are searched for what it means: a list of module names may stand before the point."""

_FRAME = "Worker failed with error '"
_FRAME_END = "', please check the stack trace above for the root cause"

_ANY = msgspec.json.Decoder()


def is_route_absent(status: int, body: bytes) -> bool:
    """Whether a 404 comes from the router (no such route) and not from a handler (no such adapter)."""
    if status != 404:  # noqa: PLR2004 - the status is the point
        return False
    match decoded(body):
        case {"error": _} | {"message": _}:
            return False
        case _:
            return True


def classify_load(status: int, body: bytes) -> Accepted | Failure:
    """What the answer to a load means."""
    if status == 200:  # noqa: PLR2004 - as above
        return Accepted()
    text = _message(body)
    folded = _folded(text)
    if any(fragment in folded for fragment in _PRESENT):
        return Accepted(already=True)
    if "outside the configured allowed prefixes" in folded:
        text += " VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES of the server names them."
    return Failure(_kind(status, body, folded), _named(status, text), status)


def classify_unload(status: int, body: bytes) -> Accepted | Failure:
    """What the answer to an unload means; an adapter that is not loaded is as good as unloaded."""
    if status == 200:  # noqa: PLR2004 - as above
        return Accepted()
    if status == 404 and not is_route_absent(status, body):  # noqa: PLR2004 - as above
        return Accepted(already=True)
    text = _message(body)
    return Failure(_kind(status, body, _folded(text)), _named(status, text), status)


def _kind(status: int, body: bytes, folded: str) -> FailureKind:
    if status in (401, 403):
        return FailureKind.UNAUTHORIZED
    if is_route_absent(status, body) or status == 405:  # noqa: PLR2004 - as above
        return FailureKind.SERVER_SETUP
    for kind, fragments in _FRAGMENTS:
        if any(fragment in folded for fragment in fragments):
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
            "division by zero",
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
    return _named(status, _message(body))


def error_text(body: bytes) -> str:
    """The server's own sentence out of an error body: nested, flat, a string under `error`, `detail`, or plain text."""
    return sentence(_message(body))


def _message(body: bytes) -> str:
    match decoded(body):
        case {"error": {"message": str(text)}} | {"message": str(text)} | {"error": str(text)} | {"detail": str(text)}:
            return _unframed(text)
        case _:
            return body[:_SEARCHED].decode(errors="replace")


def _folded(text: str) -> str:
    return " ".join(text[:_SEARCHED].split()).lower()


def _unframed(text: str) -> str:
    """A worker's sentence without the frame that vLLM puts around it."""
    head, _, tail = text.partition(_FRAME)
    return head + tail.replace(_FRAME_END, "")


def _named(status: int, text: str) -> str:
    return sentence(text) or f"HTTP {status} without a message"


def decoded(body: bytes) -> Any:  # noqa: ANN401 - whatever JSON may hold
    """What the body holds, None where it is no JSON."""
    try:
        return _ANY.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def sentence(text: str) -> str:
    """Text made safe for a log line: one line, printable, at most `MESSAGE_LIMIT` characters."""
    line = " ".join(text[: 4 * MESSAGE_LIMIT].split())
    clean = "".join(c if c.isprintable() else "�" for c in line)
    return clean if len(clean) <= MESSAGE_LIMIT else clean[: MESSAGE_LIMIT - 1] + "…"
