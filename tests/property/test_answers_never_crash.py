"""Whatever a server answers, reading it ends in a value, soon, and without growing."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_sidecar.core.outcomes import Failure
from lora_sidecar.engines.listing import BadListing, Listing
from lora_sidecar.engines.text import MESSAGE_LIMIT, error_text
from lora_sidecar.engines.vllm_answers import decode_is_sleeping, decode_listing, decode_metrics
from lora_sidecar.engines.vllm_refusals import classify_load, classify_unload


def _listing(cards: list[dict[str, Any]]) -> bytes:
    return json.dumps({"object": "list", "data": cards}).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
CARDS = st.lists(
    st.fixed_dictionaries(
        {"id": st.text(max_size=12) | JSON},
        optional={"root": st.none() | st.text(max_size=12) | JSON, "parent": st.none() | st.text(max_size=6) | JSON},
    ),
    max_size=6,
)
BODIES = (
    st.binary(max_size=300)
    | JSON.map(lambda value: json.dumps(value).encode())
    | CARDS.map(_listing)
    | st.tuples(CARDS, st.integers(0, 400)).map(lambda pair: _listing(pair[0])[: pair[1]])
)
STATUSES = (
    st.sampled_from((200, 201, 204, 302, 307, 400, 401, 403, 404, 405, 409, 422, 429, 500, 502, 503)) | st.integers()
)

HOSTILE = {
    "a nesting bomb": b'{"object":"list","data":' + b"[" * 200_000,
    "a nested object": b'{"a":' * 100_000,
    "a million cards": b'{"object":"list","data":[' + b",".join([b'{"id":"a"}'] * 300_000) + b"]}",
    "one long name": b'{"object":"list","data":[{"id":"' + b"x" * 8_000_000 + b'","parent":"b"}]}',
    "half of an escape": b'{"object":"list","data":[{"id":"\\ud800","parent":"b"}]}',
    "a number beyond every float": b'{"object":"list","data":[{"id":"a","created":' + b"9" * 400_000 + b"}]}",
    "quotes without an end": b'"' * 1_000_000,
    "metrics without an end": b"process_start_time_seconds{" * 200_000,
    "a million samples": b'vllm:engine_sleep_state{sleep_state="awake"} 1.0\n' * 100_000,
    "spaces": b" " * 4_000_000,
    "line feeds": b"\n" * 4_000_000,
}


@settings(max_examples=400, deadline=None)
@given(body=BODIES)
def test_any_listing_is_one_or_is_named(body: bytes) -> None:
    """A body is a listing with texts in it, or a reason that fits on a line."""
    match decode_listing(body):
        case Listing(bases, adapters):
            assert {type(text) for base in bases for text in (base.id, base.root)} <= {str}
            assert {type(text) for one in adapters for text in (one.name, one.path, one.parent)} <= {str}
            assert len({one.name for one in adapters}) == len(adapters)
        case BadListing(why):
            assert why
            assert "\n" not in why
            assert len(why) <= MESSAGE_LIMIT + 100


@settings(max_examples=400, deadline=None)
@given(body=BODIES | st.text(max_size=200).map(lambda text: f"process_start_time_seconds {text}\n".encode()))
def test_any_metrics_say_a_number_or_nothing(body: bytes) -> None:
    """A start time is a finite number, whatever stood in its place."""
    vitals = decode_metrics(body)
    assert vitals.start_time is None or math.isfinite(vitals.start_time)
    assert vitals.awake in (None, True, False)
    assert decode_is_sleeping(body) in (None, True, False)


@settings(max_examples=400, deadline=None)
@given(status=STATUSES, body=BODIES)
def test_any_refusal_has_a_kind_and_a_sentence(status: int, body: bytes) -> None:
    """An answer to a load or an unload is a success or a failure that a person can read in one line."""
    for classify in (classify_load, classify_unload):
        result = classify(status, body)
        if isinstance(result, Failure):
            assert result.message
            assert result.message.isprintable()
            assert len(result.message) <= MESSAGE_LIMIT
    assert len(error_text(body)) <= MESSAGE_LIMIT


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answer_is_read_soon_and_leaves_nothing(name: str) -> None:
    """Within seconds, and with memory in proportion to the body, which the transport caps."""
    body = HOSTILE[name]
    tracemalloc.start()
    began = time.process_time()
    try:
        decode_listing(body)
        decode_metrics(body)
        decode_metrics(body + b"\n")
        decode_is_sleeping(body)
        classify_load(500, body)
        took = time.process_time() - began
        left, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert took < 10.0
    assert left < 1_000_000
    assert most < 40 * len(body) + 1_000_000
