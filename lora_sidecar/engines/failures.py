"""What it means that an engine gave no good answer, whichever engine it is.

The trap guarded against is a second engine's client with an idea of its own of what an odd status proves. An answer
that is no answer to the question is a reason why nothing is known, with a hint for a person, and a load that broke off
is ambiguous; that is decided here once.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from msgspec.structs import replace

from lora_sidecar.config.values import format_duration
from lora_sidecar.core.observation import Reason, Unknown
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind
from lora_sidecar.engines.http import Reply, RequestError
from lora_sidecar.engines.text import error_text, sentence

_ANSWER_LIMIT: Final = 8192

Classify = Callable[[int, bytes], Accepted | Failure]
"""What an engine's answer to a load or an unload means, by its status and body."""

_HINTS: Final = {
    Reason.REFUSED: "nothing listens there; a server refuses connections until it is ready",
    Reason.RESET: "the server ended or was restarted, or something else that closes connections listens there",
    Reason.UNREACHABLE: "check servers[].url",
    Reason.TIMEOUT: "the server is busy, stopped or hung",
    Reason.ENGINE_DEAD: "vLLM ends itself within seconds and its container is restarted",
    Reason.UNAUTHORIZED: "the key in api_key_file must be one that the server was started with",
    Reason.WRONG_SERVER: "is servers[].url the address of a server that servers[].engine allows?",
    Reason.BASE_MODEL_ABSENT: "is servers[].url the right server, and servers[].base_model a name that it serves?",
    Reason.TLS: "check servers[].tls and the server's certificate",
    Reason.KEY_UNREADABLE: "check servers[].api_key_file, servers[].admin_api_key_file and their mounts",
    Reason.LOCAL: "this process ran out of file descriptors or memory",
}


def unknown(at: float, broken: RequestError) -> Unknown:
    """The observation that follows from a request without a good answer; `at` is when it was begun."""
    return Unknown(at, broken.reason, sentence(broken.detail), _HINTS.get(broken.reason, ""))


def too_slow(at: float, seconds: float) -> Unknown:
    """The observation that follows from a look that did not come to its end in time; `at` is when it was begun."""
    return unknown(at, RequestError(Reason.TIMEOUT, f"no whole answer within {format_duration(seconds)}", sent=True))


def refusal(path: str, reply: Reply) -> RequestError:
    """A status that is no answer to the question; a redirect is one, too, since it is not followed."""
    text = error_text(reply.body)
    detail = f"{path} answered {reply.status}{text and ': ' + text}"
    if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return RequestError(Reason.UNAUTHORIZED, detail, sent=True)
    if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR or reply.status == HTTPStatus.TOO_MANY_REQUESTS:
        return RequestError(Reason.SERVER_ERROR, detail, sent=True)
    return RequestError(Reason.WRONG_SERVER, detail, sent=True)


def unlisted(path: str, body: bytes, why: str) -> RequestError:
    """A body that is not what was asked for; `why` says what is wrong with it."""
    sample = sentence(body[:200].decode("utf-8", "replace"))
    return RequestError(Reason.MALFORMED, f"{path} is {why}; it begins {sample!r}", sent=True)


def absent_base(served: list[str], wanted: str | None) -> RequestError | None:
    """What is wrong with the base models that a listing names; None if nothing is."""
    if not served:
        return RequestError(Reason.BASE_MODEL_ABSENT, "/v1/models lists no base model", sent=True)
    if wanted is not None and wanted not in served:
        detail = f"/v1/models lists the base models {served}, not {wanted!r}"
        return RequestError(Reason.BASE_MODEL_ABSENT, sentence(detail), sent=True)
    return None


def settled(result: Reply | RequestError, classify: Classify) -> Accepted | Failure:
    """What a load or unload came to. Without an answer that is ambiguous, unless the request never left.

    The server's own answer is kept with a refusal, where it is short enough to be passed on.
    """
    if isinstance(result, RequestError):
        unsent = FailureKind.LOCAL if result.reason is Reason.LOCAL else FailureKind.ENGINE
        kind = FailureKind.AMBIGUOUS if result.sent else unsent
        return Failure(kind, sentence(f"{result.reason.value}: {result.detail}"))
    outcome = classify(result.status, result.body)
    if isinstance(outcome, Accepted) or len(result.body) > _ANSWER_LIMIT:
        return outcome
    return replace(outcome, answer=result.body)
