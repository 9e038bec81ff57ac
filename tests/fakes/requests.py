"""Reads request bodies and words refusals as vLLM's HTTP layer (FastAPI and pydantic) does.

The trap guarded against is a client that understands only the refusals that a fake's author thought of: vLLM words
the same status in several frames, and `{"detail": ...}`, `{"error": "..."}` and `{"error": {...}}` all occur.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from email.message import Message
from typing import Any

from aiohttp import web
from msgspec import Struct

FLAGS = ("load_inplace", "is_3d_lora_weight")
"""The fields of a load that are true or false."""
_TRUE = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE = frozenset({"0", "off", "f", "false", "n", "no"})
_INPUT_LIMIT = 200


class InvalidRequestError(Exception):
    """The body was refused before any adapter was looked at; `message` and `param` go into the answer."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class LoadRequest(Struct, frozen=True):
    """The body of POST /v1/load_lora_adapter."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class CompletionRequest(Struct, frozen=True):
    """The part of a completion's body that the fake understands."""

    model: str
    prompt: str
    max_tokens: int
    logprobs: int | None = None

    def answer(self, model: str, weights: str, *, created: int, fingerprint: str) -> dict[str, object]:
        """What the server answers; the text follows from the name of the model whose weights speak and the prompt."""
        digest = hashlib.sha256(f"{weights}\0{self.prompt}".encode()).hexdigest()
        choice = {
            "index": 0,
            "text": (digest * (1 + self.max_tokens // len(digest)))[: self.max_tokens],
            "logprobs": None if self.logprobs is None else self._logprobs(digest),
            "finish_reason": "length",
            "stop_reason": None,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "routed_experts": None,
        }
        prompt_tokens = len(self.prompt.encode())
        usage = {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + self.max_tokens,
            "completion_tokens": self.max_tokens,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        }
        return {
            "id": f"cmpl-{secrets.token_hex(8)}",
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": fingerprint,
            "usage": usage,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _logprobs(self, digest: str) -> dict[str, object]:
        """The log-probabilities of each token, a character of the text, and of those likeliest in its place."""
        text = (digest * (1 + self.max_tokens // len(digest)))[: self.max_tokens]
        top: list[dict[str, float]] = []
        for at, token in enumerate(text):
            others = [c for c in "ghijklmnopqrstuvwxyz" if c != token][: max(0, (self.logprobs or 0) - 1)]
            start = int(digest[at % 56 : at % 56 + 8], 16) / 2**32
            top.append({token: -start, **{other: -start - 1.0 - n / 8 for n, other in enumerate(others)}})
        return {
            "text_offset": list(range(len(text))),
            "token_logprobs": [entry[token] for token, entry in zip(text, top, strict=True)],
            "tokens": list(text),
            "top_logprobs": top,
        }


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with compact JSON, as vLLM's framework writes it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    response = web.Response(body=text.encode(), status=status, headers=headers)
    response.headers["Content-Type"] = "application/json"
    return response


def error_response(
    code: int, kind: str, message: str, param: str | None = None, *, status: int | None = None
) -> web.Response:
    """Answer with vLLM's error frame; `status` is the code where it is not another."""
    frame = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return json_response(frame, code if status is None else status)


def detail_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer as the framework itself does, for a route or a method that does not exist."""
    return json_response({"detail": detail}, status, headers)


def json_body(content_type: str, body: bytes) -> object:
    """The JSON document in `body`. Raises `InvalidRequestError`, as the framework would refuse it."""
    header = Message()
    if content_type:
        header["content-type"] = content_type
    subtype = header.get_content_subtype() if header.get_content_maintype() == "application" else ""
    value: object = None
    if body and (subtype == "json" or subtype.endswith("+json")):
        try:
            value = json.loads(body)
        except json.JSONDecodeError as error:
            raise _invalid(
                [{"type": "json_invalid", "loc": f"body.{error.pos}", "msg": "JSON decode error", "input": {}}],
                {"ctx": {"error": error.msg}},
            ) from error
        except ValueError as error:
            raise InvalidRequestError("There was an error parsing the body", None) from error
    if content_type.lower().split(";", maxsplit=1)[0] != "application/json":
        raise InvalidRequestError(
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed", None
        )
    return value


def load_request(value: object, known: Sequence[str] = FLAGS) -> LoadRequest:
    """The load that a JSON document asks for, of a server to which these flags are known.

    Raises `InvalidRequestError`.
    """
    fields = _fields(value)
    problems = _text_problems(fields, "lora_name", "lora_path")
    flags = {}
    for name in known:
        flags[name], problem = _flag(fields, name)
        problems += problem
    if problems:
        raise _invalid(problems)
    return LoadRequest(fields["lora_name"], fields["lora_path"], flags.get("load_inplace", False))


def unload_request(value: object) -> str:
    """The name that a JSON document asks to unload. Raises `InvalidRequestError`."""
    fields = _fields(value)
    problems = _text_problems(fields, "lora_name")
    if problems:
        raise _invalid(problems)
    name: str = fields["lora_name"]
    return name


def completion_request(value: object) -> CompletionRequest:
    """The completion that a JSON document asks for, of a text prompt only. Raises `InvalidRequestError`."""
    fields = _fields(value)
    problems = _text_problems({"model": "", "prompt": ""} | dict(fields), "model", "prompt")
    if problems:
        raise _invalid(problems)
    return CompletionRequest(
        fields.get("model", ""),
        fields.get("prompt", ""),
        int(fields.get("max_tokens") or 16),
        fields.get("logprobs"),
    )


def _fields(value: object) -> Mapping[str, Any]:
    if value is None:
        raise _invalid([{"type": "missing", "loc": "body", "msg": "Field required", "input": None}])
    if not isinstance(value, dict):
        sentence = "Input should be a valid dictionary or object to extract fields from"
        raise _invalid([{"type": "model_attributes_type", "loc": "body", "msg": sentence, "input": value}])
    return value


def _text_problems(fields: Mapping[str, Any], *names: str) -> list[dict[str, Any]]:
    problems: list[dict[str, Any]] = []
    for name in names:
        where = f"body.{name}"
        if name not in fields:
            problems.append({"type": "missing", "loc": where, "msg": "Field required", "input": fields})
        elif not isinstance(fields[name], str):
            sentence = "Input should be a valid string"
            problems.append({"type": "string_type", "loc": where, "msg": sentence, "input": fields[name]})
    return problems


def _flag(fields: Mapping[str, Any], name: str) -> tuple[bool, list[dict[str, Any]]]:
    value = fields.get(name, False)
    word = str(value).lower()
    sentence = "Input should be a valid boolean"
    match value:
        case bool():
            return value, []
        case str() | int() | float() if word.removesuffix(".0") in _TRUE | _FALSE:
            return word.removesuffix(".0") in _TRUE, []
        case str() | int():
            kind, sentence = "bool_parsing", f"{sentence}, unable to interpret input"
        case _:
            kind = "bool_type"
    return False, [{"type": kind, "loc": f"body.{name}", "msg": sentence, "input": value}]


def _invalid(problems: list[dict[str, Any]], extra: Mapping[str, Any] | None = None) -> InvalidRequestError:
    label = "error" if len(problems) == 1 else "errors"
    shown = [problem | {"input": _summary(problem["input"])} | dict(extra or {}) for problem in problems]
    lines = "".join(f"\n  {problem}" for problem in shown)
    return InvalidRequestError(f"{len(problems)} validation {label}:{lines}", problems[0]["loc"])


def _summary(value: object) -> str:
    if isinstance(value, (list, dict)):
        return f"<{type(value).__name__} of {len(value)} items>"
    text = str(value)
    return text if len(text) <= _INPUT_LIMIT else f"{text[:_INPUT_LIMIT]}...[truncated]"
