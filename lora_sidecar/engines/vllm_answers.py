"""vLLM's good answers as values: listings, metrics, states and completions. Pure: bytes in, values out.

The trap guarded against is a body that looks like an answer and says nothing: an error page with 200, metrics cut short
in the middle of a number, several processes behind one name. What is not certainly an answer is no empty one.

The answers of vLLM 0.32.0 were seen on a real server; those of other versions were read in their source.
"""

from __future__ import annotations

import math
import re
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.core.outcomes import Answer, ProbeAnswer, ProbeFailure
from lora_sidecar.engines import listing as listings
from lora_sidecar.engines.listing import BadListing, Listing
from lora_sidecar.engines.text import UNREADABLE, decoded, sentence
from lora_sidecar.engines.vllm_refusals import sentence_of

_RUST: Final = "vllm-frontend-rs"


def decode_listing(body: bytes) -> Listing | BadListing:
    """Read `/v1/models`, as `listing.decode_listing` does; vLLM's Rust frontend lists the real paths of folders."""
    listing = listings.decode_listing(body)
    if isinstance(listing, BadListing) or _RUST not in listing.owners:
        return listing
    if listing.rootless:
        return BadListing("by a version of vLLM's Rust frontend that does not tell adapters from models")
    return replace(listing, resolves_paths=True)


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
    except UNREADABLE as error:
        return ProbeFailure(f"not a completion with log-probabilities: {sentence(str(error))}", status)
    if not decoded.choices or not decoded.choices[0].logprobs.top_logprobs:
        return ProbeFailure("a completion without log-probabilities", status)
    return ProbeAnswer(tuple(sorted(decoded.choices[0].logprobs.top_logprobs[0].items())))
