"""vLLM's good answers as values: listings, metrics, states and completions. Pure: bytes in, values out.

The trap guarded against is a body that looks like an answer and says nothing: an error page with 200, metrics cut short
in the middle of a number, several processes behind one name. What is not certainly an answer is no empty one.

The answers of vLLM 0.32.0 were seen on a real server; those of other versions were read in their source.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec
from msgspec import Struct

from lora_sidecar.core.observation import BaseModel, Listed
from lora_sidecar.core.outcomes import Answer, ProbeAnswer, ProbeFailure
from lora_sidecar.engines.vllm_refusals import decoded, sentence, sentence_of


class Listing(Struct, frozen=True):
    """The cards of one good `/v1/models`: base models, and adapters in the order in which they were loaded.

    `rust` is whether vLLM's Rust frontend wrote it, which lists the real paths of folders. `engine` is what all its
    base models name as their owner, None where that is none that is known.
    """

    bases: tuple[BaseModel, ...]
    adapters: tuple[Listed, ...]
    rust: bool = False
    engine: Literal["vllm", "sglang"] | None = None


class BadListing(Struct, frozen=True):
    """A body that is not a listing, and why."""

    why: str


class _Card(Struct, gc=False):
    id: str
    root: str | None = None
    parent: str | None = None
    owned_by: str = ""


class _Body(Struct):
    object: str
    data: list[_Card]


_RUST = "vllm-frontend-rs"
_ENGINES: dict[str, Literal["vllm", "sglang"]] = {"vllm": "vllm", _RUST: "vllm", "sglang": "sglang"}
_LISTING = msgspec.json.Decoder(_Body)


class Listings:
    """Reads one listing after another; one that says the same as the one before is that very object.

    Bytes tell nothing: `created` and the permissions' ids are new in each answer (vLLM 0.32.0). So the three fields
    that count are decoded and compared, and nothing is built from them unless they changed.
    """

    def __init__(self) -> None:
        self._cards: list[_Card] | None = None
        self._listing: Listing | None = None

    def decode(self, body: bytes) -> Listing | BadListing:
        """Read `/v1/models`, as `decode_listing` does."""
        cards = _decode_cards(body)
        if isinstance(cards, BadListing):
            return cards
        if self._listing is None or cards != self._cards:
            listing = _listing_of(cards)
            if isinstance(listing, BadListing):
                return listing
            self._cards, self._listing = cards, listing
        return self._listing


def decode_listing(body: bytes) -> Listing | BadListing:
    """Read `/v1/models`. A card with a `parent` is an adapter; `root` is then the path it was loaded from.

    Equal cards count once (vLLM to 0.9.2 can register one adapter twice), and an adapter named like a base model is
    left out (vLLM to 0.30 accepts one, and serves the base model for it); one name with two paths cannot be trusted.
    """
    cards = _decode_cards(body)
    return cards if isinstance(cards, BadListing) else _listing_of(cards)


def _decode_cards(body: bytes) -> list[_Card] | BadListing:
    try:
        decoded = _LISTING.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return BadListing(f"not a list of models: {sentence(str(error))}")
    if decoded.object != "list":
        return BadListing(f"not a list of models: its object is {sentence(decoded.object)!r}")
    return decoded.data


def _listing_of(cards: list[_Card]) -> Listing | BadListing:
    bases = tuple(BaseModel(card.id, card.root or card.id) for card in cards if card.parent is None)
    served = {base.id for base in bases}
    listed = [Listed(c.id, c.root or "", c.parent) for c in cards if c.parent is not None and c.id not in served]
    adapters = tuple(dict.fromkeys(listed))
    if len({card.name for card in adapters}) != len(adapters) or len(served) != len(bases):
        return BadListing("the same model is listed twice")
    rust = any(card.owned_by == _RUST for card in cards)
    if rust and any(card.root is None for card in cards):
        return BadListing("by a version of vLLM's Rust frontend that does not tell adapters from models")
    owners = {card.owned_by for card in cards if card.parent is None}
    return Listing(bases, adapters, rust, _ENGINES.get(owners.pop()) if len(owners) == 1 else None)


_START_TIME = re.compile(rb"^process_start_time_seconds(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_REQUESTS = re.compile(rb"^vllm:num_requests_(running|waiting)(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_TOKENS = re.compile(rb"^vllm:(?:prompt|generation)_tokens_total(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_REQUEST_STATES = frozenset({b"running", b"waiting"})
_SLEEP_STATE = re.compile(rb'^vllm:engine_sleep_state\{[^}]*sleep_state="([a-z_]+)"[^}]*\} (\S+)', re.MULTILINE)


class Vitals(Struct, frozen=True):
    """What `/metrics` tells: when the process started (Unix seconds), whether every engine is awake; None is unsaid.

    `requests` counts those that run or wait, of all engines (vLLM 0.32.0: 0 when idle, 1 during one stream), `tokens`
    those of prompts and answers since the start.
    """

    start_time: float | None = None
    awake: bool | None = None
    requests: float | None = None
    tokens: float | None = None


def decode_metrics(body: bytes) -> Vitals:
    """Read the families that matter out of `/metrics`, wherever they stand (vLLM 0.11.1 and later have both).

    More than one start time means that several processes answer under one name: then it identifies nothing. A body
    that does not end with a line feed was cut short, maybe in the middle of a number, and says nothing.
    """
    if not body.endswith(b"\n"):
        return Vitals()
    starts = {_number(match) for match in _START_TIME.findall(body)}
    states = [(state, _number(value)) for state, value in _SLEEP_STATE.findall(body)]
    asleep = any(value != (1.0 if state == b"awake" else 0.0) for state, value in states)
    awake = None if not any(state == b"awake" for state, _ in states) else not asleep
    counts = [(state, _number(value)) for state, value in _REQUESTS.findall(body)]
    told = len({state for state, value in counts if value is not None}) == len(_REQUEST_STATES)
    requests = sum(value or 0.0 for _, value in counts) if told else None
    tokens = [_number(value) for value in _TOKENS.findall(body)]
    counted = sum(value or 0.0 for value in tokens) if tokens and None not in tokens else None
    return Vitals(starts.pop() if len(starts) == 1 else None, awake, requests, counted)


def _number(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def decode_is_sleeping(body: bytes) -> bool | None:
    """Read `/is_sleeping`, a route of the developer mode; None for anything else than its answer."""
    match decoded(body):
        case {"is_sleeping": bool(asleep)}:
            return asleep
        case _:
            return None


def decode_version(body: bytes) -> str | None:
    """Read `/version`; None for anything else than its answer."""
    match decoded(body):
        case {"version": str(version)}:
            return sentence(version)
        case _:
            return None


def decode_is_paused(body: bytes) -> bool | None:
    """Read `/is_paused`, beside `/pause` and `/resume`; None for anything else than its answer."""
    match decoded(body):
        case {"is_paused": bool(paused)}:
            return paused
        case _:
            return None


class _Logprobs(Struct):
    top_logprobs: list[dict[str, float]]


class _Choice(Struct):
    logprobs: _Logprobs


class _Completion(Struct):
    choices: list[_Choice]


_COMPLETION = msgspec.json.Decoder(_Completion)


def decode_completion(status: int, body: bytes) -> Answer:
    """Read the log-probabilities of the first token out of `/v1/completions`."""
    if status != 200:  # noqa: PLR2004 - the status is the point
        return ProbeFailure(sentence_of(status, body), status)
    try:
        decoded = _COMPLETION.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return ProbeFailure(f"not a completion with log-probabilities: {sentence(str(error))}", status)
    if not decoded.choices or not decoded.choices[0].logprobs.top_logprobs:
        return ProbeFailure("a completion without log-probabilities", status)
    return ProbeAnswer(tuple(sorted(decoded.choices[0].logprobs.top_logprobs[0].items())))
