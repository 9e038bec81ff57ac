"""Reads the bodies of control requests, and refuses those that vLLM would refuse, with its status and type of error.

Two traps are guarded against. A script that works with the engine and not here, because a body that the engine takes is
refused: so unknown fields are ignored, and a flag is what vLLM's HTTP layer (0.32.0, FastAPI and pydantic) takes for
one. And a name that is harmless in the engine's memory but not in a log, a page and a checkpoint: so here names and
paths are bounded and printable.
"""

from __future__ import annotations

import re
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import Struct

from lora_sidecar.control.requests import Answer, Load, Pause, Unload
from lora_sidecar.core.text import printable
from lora_sidecar.reconcile.adoption import NAME_LIMIT, PATH_LIMIT

T = TypeVar("T", bound=Struct)

REASON_LIMIT: Final = 500

BAD_REQUEST: Final = "Bad Request"
BAD_INPUT: Final = "InvalidUserInput"

_IN_PLACE: Final = (
    "load_inplace is not carried out by lora-sidecar: before vLLM 0.33 it makes every step read the adapter's files"
    " again, and a deleted folder then ends the server. Unload the adapter and load it, or use another name."
)

_TRUE: Final = frozenset({"1", "on", "t", "true", "y", "yes"})
_Flag = bool | Literal[0, 1, "0", "1", "f", "t", "n", "y", "no", "yes", "off", "on", "false", "true", "False", "True"]


class _Load(Struct):
    lora_name: str
    lora_path: str
    load_inplace: _Flag = False
    is_3d_lora_weight: _Flag = False


class _Unload(Struct):
    lora_name: str


class _Pause(Struct):
    reason: str = ""


class RefusedError(Exception):
    """A request that is answered without having been carried out; `param` is what of it is at fault."""

    def __init__(self, answer: Answer, param: str | None = None) -> None:
        super().__init__(answer.message)
        self.answer = answer
        self.param = param


def load(body: bytes) -> Load:
    """The load that a body asks for; unknown fields are ignored. Raises `RefusedError`."""
    asked = _decoded(body, _Load)
    if not asked.lora_name or not asked.lora_path:
        raise RefusedError(Answer(400, "Both 'lora_name' and 'lora_path' must be provided.", BAD_INPUT))
    _check("lora_name", asked.lora_name, NAME_LIMIT)
    _check("lora_path", asked.lora_path, PATH_LIMIT)
    if _means_yes(asked.load_inplace):
        raise RefusedError(Answer(400, _IN_PLACE, BAD_INPUT), "load_inplace")
    return Load(asked.lora_name, asked.lora_path, _means_yes(asked.is_3d_lora_weight))


def unload(body: bytes) -> Unload:
    """The unload that a body asks for; unknown fields are ignored. Raises `RefusedError`."""
    name = _decoded(body, _Unload).lora_name
    if not name:
        raise RefusedError(Answer(400, "'lora_name' needs to be provided to unload a LoRA adapter.", BAD_INPUT))
    _check("lora_name", name, NAME_LIMIT)
    return Unload(name)


def pause(body: bytes) -> Pause:
    """The pause that a body asks for; `reason` may be left out. Raises `RefusedError`."""
    reason = _decoded(body, _Pause).reason
    _check("reason", reason, REASON_LIMIT)
    return Pause(reason)


def _decoded(body: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Such as: Object missing required field `lora_path`; or: Expected `str`, got `int` - at `$.lora_name`.
        found = re.search(r"`(?:\$\.)?(\w+)`$", str(error))
        param = f"body.{found[1]}" if found and found[1] in type_.__struct_fields__ else "body"
        sentence = f"The body is not what this request takes. {printable(str(error))}"
        raise RefusedError(Answer(400, sentence, BAD_REQUEST), param) from error


def _means_yes(flag: _Flag) -> bool:
    return str(flag).lower() in _TRUE


def _check(field: str, text: str, longest: int) -> None:
    if len(text) > longest:
        sentence = f"'{field}' has {len(text)} characters: lora-sidecar remembers at most {longest}."
        raise RefusedError(Answer(400, sentence, BAD_INPUT), field)
    odd = next((character for character in text if not character.isprintable()), None)
    if odd is not None:
        sentence = f"'{field}' has the unprintable character U+{ord(odd):04X}, which lora-sidecar does not remember."
        raise RefusedError(Answer(400, sentence, BAD_INPUT), field)
