"""Reads the bodies of control requests as vLLM reads them, and words refusals as it does.

Two traps are guarded against. A script that works with the engine and not here, because a body that the engine takes is
refused, or a refusal cannot be read: so the rules and the words are those of vLLM's HTTP layer (0.32.0, FastAPI and
pydantic, seen on a real server). And a name that is harmless in the engine's memory but not in a log, a page and a
checkpoint: so here names and paths are bounded and printable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.message import Message
from typing import Any, Final

from lora_sidecar.control.requests import Load, Pause, Unload
from lora_sidecar.reconcile.adoption import NAME_LIMIT, PATH_LIMIT

REASON_LIMIT: Final = 500

_TRUE: Final = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE: Final = frozenset({"0", "off", "f", "false", "n", "no"})
_INPUT_LIMIT: Final = 200
_BAD_REQUEST: Final = "Bad Request"
_BAD_INPUT: Final = "InvalidUserInput"

_IN_PLACE: Final = (
    "load_inplace is not carried out by lora-sidecar: before vLLM 0.33 it makes every step read the adapter's files"
    " again, and a deleted folder then ends the server. Unload the adapter and load it, or use another name."
)


class InvalidBodyError(Exception):
    """A body that is refused before anything is looked at; `kind` is the engine's word for the error."""

    def __init__(self, message: str, kind: str, param: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.param = param


def document(content_type: str, body: bytes) -> object:
    """The JSON document in `body`, None where there is none. Raises `InvalidBodyError`."""
    header = Message()
    if content_type:
        header["content-type"] = content_type
    subtype = header.get_content_subtype() if header.get_content_maintype() == "application" else ""
    value: object = None
    if body and (subtype == "json" or subtype.endswith("+json")):
        try:
            value = json.loads(body)
        except json.JSONDecodeError as error:
            problem = {"type": "json_invalid", "loc": f"body.{error.pos}", "msg": "JSON decode error", "input": {}}
            raise _invalid([problem], {"ctx": {"error": error.msg}}) from error
        except (ValueError, RecursionError) as error:
            raise InvalidBodyError("There was an error parsing the body", _BAD_REQUEST, None) from error
    if content_type.lower().split(";", maxsplit=1)[0] != "application/json":
        sentence = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise InvalidBodyError(sentence, _BAD_REQUEST, None)
    return value


def load(value: object) -> Load:
    """The load that a document asks for; unknown fields are ignored. Raises `InvalidBodyError`."""
    fields = _fields(value)
    problems = _text_problems(fields, "lora_name", "lora_path")
    flags: dict[str, bool] = {}
    for name in ("load_inplace", "is_3d_lora_weight"):
        flags[name], problem = _flag(fields, name)
        problems += problem
    if problems:
        raise _invalid(problems)
    name, path = fields["lora_name"], fields["lora_path"]
    if not name or not path:
        raise InvalidBodyError("Both 'lora_name' and 'lora_path' must be provided.", _BAD_INPUT, None)
    _check("lora_name", name, NAME_LIMIT)
    _check("lora_path", path, PATH_LIMIT)
    if flags["load_inplace"]:
        raise InvalidBodyError(_IN_PLACE, _BAD_INPUT, "load_inplace")
    return Load(name, path, flags["is_3d_lora_weight"])


def unload(value: object) -> Unload:
    """The unload that a document asks for; unknown fields are ignored. Raises `InvalidBodyError`."""
    fields = _fields(value)
    problems = _text_problems(fields, "lora_name")
    if problems:
        raise _invalid(problems)
    name = fields["lora_name"]
    if not name:
        raise InvalidBodyError("'lora_name' needs to be provided to unload a LoRA adapter.", _BAD_INPUT, None)
    _check("lora_name", name, NAME_LIMIT)
    return Unload(name)


def pause(value: object) -> Pause:
    """The pause that a document asks for; `reason` may be left out. Raises `InvalidBodyError`."""
    fields = _fields(value)
    problems = _text_problems({"reason": "", **fields}, "reason")
    if problems:
        raise _invalid(problems)
    reason = fields.get("reason", "")
    _check("reason", reason, REASON_LIMIT)
    return Pause(reason)


def _check(field: str, text: str, longest: int) -> None:
    if len(text) > longest:
        sentence = f"'{field}' has {len(text)} characters: lora-sidecar remembers at most {longest}."
        raise InvalidBodyError(sentence, _BAD_INPUT, field)
    odd = next((character for character in text if not character.isprintable()), None)
    if odd is not None:
        sentence = f"'{field}' has the unprintable character U+{ord(odd):04X}, which lora-sidecar does not remember."
        raise InvalidBodyError(sentence, _BAD_INPUT, field)


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
    sentence = "Input should be a valid boolean"
    match value:
        case bool():
            return value, []
        case str() | float() if (word := str(value).lower().removesuffix(".0")) in _TRUE | _FALSE:
            return word in _TRUE, []
        case 0 | 1:
            return value == 1, []
        case str() | int():
            kind, sentence = "bool_parsing", f"{sentence}, unable to interpret input"
        case _:
            kind = "bool_type"
    return False, [{"type": kind, "loc": f"body.{name}", "msg": sentence, "input": value}]


def _invalid(problems: list[dict[str, Any]], extra: Mapping[str, Any] | None = None) -> InvalidBodyError:
    label = "error" if len(problems) == 1 else "errors"
    shown = [problem | {"input": _summary(problem["input"])} | dict(extra or {}) for problem in problems]
    lines = "".join(f"\n  {problem}" for problem in shown)
    return InvalidBodyError(f"{len(problems)} validation {label}:{lines}", _BAD_REQUEST, problems[0]["loc"])


def _summary(value: object) -> str:
    if isinstance(value, (list, dict)):
        return f"<{type(value).__name__} of {len(value)} items>"
    if isinstance(value, int) and value.bit_length() > 4 * _INPUT_LIMIT:
        return "<int>"
    text = str(value)
    return text if len(text) <= _INPUT_LIMIT else f"{text[:_INPUT_LIMIT]}...[truncated]"
