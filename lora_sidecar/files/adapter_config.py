"""What an adapter_config.json says, and what of it engines are known to refuse. Pure.

Two traps are guarded against. A file whose few bytes are much work, since strangers write it: only the settings that
count are ever built, and none that is long. And a rule that one version has, taken for all of them: what only some
refuse is doubtful, and a setting that is not known here is not judged.

The rules of vLLM 0.24 and 0.32 were seen on real servers, those of 0.7 to 0.33 read in their source.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from lora_sidecar.core.text import printable

REQUIRED: Final = ("r", "lora_alpha", "target_modules")

_PLAIN_INITS: Final = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
_HEADS: Final = ("classifier", "score")
_SINCE_0_32: Final = {
    "lora_bias": "LoRA bias (lora_bias)",
    "alora_invocation_tokens": "Activated LoRA (aLoRA)",
    "layer_replication": "layer_replication",
    "use_bdlora": "block-diagonal LoRA (BD-LoRA)",
    "use_qalora": "QALoRA",
}
_KEYS: Final = (
    *REQUIRED,
    *("rank_pattern", "target_parameters", "modules_to_save", "bias", "use_dora", "init_lora_weights"),
    *_SINCE_0_32,
)

_LONGEST: Final = 64 * 1024
"""Bytes of the longest setting that is read."""

_LENIENT: Final = 1024 * 1024
"""Bytes of the longest file that is read as Python reads it, which takes 30 times as much memory at worst."""

_NO_RANK: Final = 2**31

Settings = Mapping[str, Any]


class _Unread:
    """A setting that is there and was not read."""

    def __repr__(self) -> str:
        return "(too long to be read)"


UNREAD: Final = _Unread()

_FILE = msgspec.json.Decoder(msgspec.defstruct("_File", [(key, msgspec.Raw, msgspec.Raw()) for key in _KEYS]))


def read_settings(text: bytes) -> Settings | str | None:
    """The settings that count of those that are there, or why no engine can read them; None: not judged."""
    if text.startswith(b"\xef\xbb\xbf"):
        return "it begins with a byte order mark (BOM), which the engine does not take: save it as UTF-8 without one"
    try:
        text.decode()
    except UnicodeDecodeError as error:
        is_utf_16 = text.startswith((b"\xff\xfe", b"\xfe\xff"))
        return f"it is {'UTF-16' if is_utf_16 else 'not UTF-8'}: {printable(str(error))}"
    try:
        file = _FILE.decode(text)
    except msgspec.ValidationError:
        return "it is no JSON object"
    except (msgspec.MsgspecError, RecursionError):
        # Python's own reader, which the engines use, takes more than JSON: NaN, and halves of characters.
        return _read_leniently(text) if len(text) <= _LENIENT else None
    return {key: _value(raw) for key in _KEYS if bytes(raw := getattr(file, key))}


def _read_leniently(text: bytes) -> Settings | str:
    try:
        config = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {printable(str(error))}"
    return {key: config[key] for key in _KEYS if key in config} if isinstance(config, dict) else "it is no JSON object"


def _value(raw: msgspec.Raw) -> Any:  # noqa: ANN401 - whatever JSON can carry
    if len(bytes(raw)) > _LONGEST:
        return UNREAD
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return UNREAD


def rank_of(settings: Settings) -> float | None:
    """The rank that the adapter has where nothing else is said; None where that is no number."""
    return _number(settings.get("r"))


def highest_rank(settings: Settings) -> float | None:
    """The highest rank that is named anywhere."""
    pattern = settings.get("rank_pattern")
    special = pattern.values() if isinstance(pattern, dict) else ()
    ranks = [_number(rank) for rank in (settings.get("r"), *special)]
    return max((rank for rank in ranks if rank is not None), default=None)


def _number(value: object) -> float | None:
    """A number that may be a rank; an endless one fits no format."""
    return value if isinstance(value, int | float) and abs(value) < _NO_RANK else None


def has_one_rank(settings: Settings) -> bool:
    """Whether each module has the rank that `r` says, as far as is known."""
    return not settings.get("rank_pattern") and not settings.get("target_parameters")


def unusable(settings: Settings) -> Iterator[str]:
    """What every engine needs and cannot work with."""
    if missing := [key for key in REQUIRED if key not in settings]:
        yield f"Missing required configuration fields: {', '.join(missing)}"
    for key in ("r", "lora_alpha"):
        if key in settings and not isinstance(settings[key], int | float | _Unread):
            yield f"`{key}` is {_shown(settings[key])}, which is no number"
    if rank_of(settings) == 0:
        yield "`r` is 0, and must be positive"


def refused_by_vllm(settings: Settings) -> Iterator[tuple[str, bool]]:
    """What vLLM does not serve, and whether only some of its versions refuse it."""
    if settings.get("use_dora"):
        yield "vLLM does not yet support DoRA.", False
    saved = settings.get("modules_to_save")
    if isinstance(saved, list) and saved:
        others = [module for module in saved if module not in _HEADS]
        yield f"vLLM does not support modules_to_save: {_shown(others or saved)}", not others
    if settings.get("bias", "none") != "none":
        yield "Adapter bias is not supported.", True
    rank = rank_of(settings)
    if rank is not None and rank < 0:
        yield f"`r` is {rank:g}, and must be positive", True
    yield from _odd_ranks(settings.get("rank_pattern"))
    init = settings.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        yield f"vLLM does not support init_lora_weights={_shown(init)}: it changes the base model's weights", True
    for key, feature in _SINCE_0_32.items():
        if settings.get(key):
            yield f"vLLM does not support {feature}.", True


def _odd_ranks(pattern: object) -> Iterator[tuple[str, bool]]:
    if not isinstance(pattern, dict):
        if pattern and pattern is not UNREAD:
            yield "`rank_pattern` is no mapping", True
        return
    for module, rank in pattern.items():
        if not isinstance(rank, int) or rank <= 0:
            yield f"`rank_pattern` says {_shown(rank)} of {printable(module)}, which is no positive whole number", True
            break


def _shown(value: object) -> str:
    """A value as Python shows it, at a length for a line."""
    return printable(repr(value)[:160])
