"""SGLang's answers as values: which incarnation it is, what it keeps, what a refusal means. Pure: bytes in, values out.

Two traps are guarded against. SGLang answers every refusal with 400 and a sentence, so the sentence decides. And an
adapter that is missing from its listing need not be lost: beyond `max_loaded_loras` it takes the least recently used
adapter out of the listing and loads it again by itself at the next request; so that limit is read, and is part of
every observation.

Read in the source of SGLang 0.5.6, 0.5.10 and 0.5.23; none of it was seen on a running server.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec
from msgspec import Struct

from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind
from lora_sidecar.engines.text import UNREADABLE, error_text, folded, named, sentence


class ServerInfo(Struct, frozen=True):
    """What `/server_info` tells.

    `capacity` is `max_loaded_loras`, None for no limit. `start_id` identifies one incarnation as a number that is
    compared for equality only, None where nothing of that kind is published (before `startup_time`, which 0.5.10 has
    not and 0.5.23 has). `replicas` is `dp_size`: with more than one, no adapter can be loaded at run time.
    `memory_saver` is whether its memory can be released by a request; nothing publishes whether it is.
    """

    capacity: int | None
    start_id: float | None
    replicas: int
    memory_saver: bool


class _Info(Struct):
    max_loaded_loras: int | None
    random_seed: int | None
    dp_size: int = 1
    enable_memory_saver: bool = False
    startup_time: dict[str, Any] | None = None


class _Update(Struct):
    success: bool
    error_message: str | None = None


_INFO: Final = msgspec.json.Decoder(_Info)
_UPDATE: Final = msgspec.json.Decoder(_Update)


def decode_server_info(body: bytes) -> ServerInfo | str:
    """Read `/server_info`; a text says why it cannot be read."""
    try:
        info = _INFO.decode(body)
    except UNREADABLE as error:
        return f"not the server's settings: {sentence(str(error))}"
    if info.max_loaded_loras is not None and info.max_loaded_loras < 1:
        return f"not the server's settings: max_loaded_loras is {info.max_loaded_loras}"
    return ServerInfo(info.max_loaded_loras, _start_id(info), info.dp_size, info.enable_memory_saver)


def _start_id(info: _Info) -> float | None:
    """A number for this incarnation: from how long its parts took to start, which SGLang publishes unrounded.

    The random seed is drawn at each start, but `--random-seed` fixes it: alone it would prove two of them to be one.
    """
    took = None if info.startup_time is None else info.startup_time.get("scheduler_e2e")
    if not isinstance(took, float) or took <= 0:
        return None
    digest = hashlib.sha256(msgspec.json.encode((info.random_seed, took))).digest()
    return float(int.from_bytes(digest[:6]))


def classify_load(status: int, body: bytes) -> Accepted | Failure:
    """What the answer to a load means."""
    update = _update(body)
    if status == 200 and (update is None or update.success):  # noqa: PLR2004 - the status is the point
        return Accepted()
    text = _text(update, body)
    refusals = [part for part in text.split(" | ") if "is already loaded" not in part.lower()]
    if not refusals:
        return Accepted(already=True)
    return _failure(status, " | ".join(refusals))


def classify_unload(status: int, body: bytes) -> Accepted | Failure:
    """What the answer to an unload means; an adapter that is not loaded is as good as unloaded."""
    update = _update(body)
    if status == 200 and (update is None or update.success):  # noqa: PLR2004 - as above
        return Accepted()
    text = _text(update, body)
    if "does not exist. loaded loras" in text.lower():
        return Accepted(already=True)
    return _failure(status, text)


def _update(body: bytes) -> _Update | None:
    try:
        return _UPDATE.decode(body)
    except UNREADABLE:
        return None


def _text(update: _Update | None, body: bytes) -> str:
    # The ranks' messages are joined, and one of them may have nothing to say.
    return error_text(body) if update is None else update.error_message or "refused without a message"


def _failure(status: int, text: str) -> Failure:
    kind = _kind(status, folded(text))
    if kind is FailureKind.UNAUTHORIZED:
        text = f"{text} (with --admin-api-key only that key loads adapters: servers[].admin_api_key_file names it)"
    return Failure(kind, named(status, text), status)


def _kind(status: int, searched: str) -> FailureKind:
    if status in (401, 403):
        return FailureKind.UNAUTHORIZED
    if status in (404, 405):
        return FailureKind.SERVER_SETUP
    if searched in _KEY_ERRORS:
        return FailureKind.ADAPTER
    for kind, fragments in _FRAGMENTS:
        if any(fragment in searched for fragment in fragments):
            return kind
    return FailureKind.ENGINE if status in (429, 503) else FailureKind.UNCLASSIFIED


_KEY_ERRORS: Final = frozenset({"'target_modules'", "'r'", "'lora_alpha'"})
"""What is left of Python's `KeyError` for a key that adapter_config.json has not."""

_FRAGMENTS: Final[tuple[tuple[FailureKind, tuple[str, ...]], ...]] = (
    (FailureKind.SERVER_SETUP, ("lora is not enabled", "dp_size must be 1", "data-parallel replicas")),
    (FailureKind.ENGINE, ("out of memory",)),
    (
        FailureKind.FILES,
        (
            "no such file or directory",
            "not a directory",
            "permission denied",
            # What the hub's client says of a folder that is not there: it takes the path for a repository's id.
            "repo id must",
            "repository not found",
            "cannot find the requested files",
            "cannot find an appropriate cached snapshot",
            "cannot find the appropriate snapshot folder",
            "cannot find any model weights",
            "deserializing header",
            "header too",
            "incomplete metadata",
            "expecting value: line",
            "expecting property name",
        ),
    ),
    (
        FailureKind.ADAPTER,
        (
            "lora memory pool configuration",
            "support dora",
            "add tokens to the vocabulary",
            "as a pinned adapter",
            "requires pinned adapters",
            "unsupported lora",
            "size mismatch",
        ),
    ),
)
"""Texts of SGLang 0.5.6 to 0.5.23 in lower case; the first kind with a match decides: what heals itself comes first."""
