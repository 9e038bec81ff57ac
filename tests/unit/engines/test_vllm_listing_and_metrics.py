from __future__ import annotations

import json
from typing import Any

import pytest

from lora_sidecar.core.observation import BaseModel, Listed
from lora_sidecar.engines.vllm_answers import (
    BadListing,
    Listing,
    Listings,
    Vitals,
    decode_is_sleeping,
    decode_listing,
    decode_metrics,
)
from lora_sidecar.engines.vllm_refusals import MESSAGE_LIMIT

# Listings


def listing(*cards: dict[str, Any], **top: Any) -> bytes:
    """A body of `/v1/models`."""
    return json.dumps({"object": "list", "data": list(cards)} | top).encode()


BASE_CARD = {
    "id": "base",
    "object": "model",
    "created": 1795360509,
    "owned_by": "vllm",
    "root": "/m",
    "parent": None,
    "max_model_len": 512,
    "permission": [{"id": "modelperm-b4d118d645f04baa", "group": None, "is_blocking": False}],
}
LORA_CARD = BASE_CARD | {"id": "a", "root": "/adapters/a/", "parent": "base", "max_model_len": None}


def test_listing_has_bases_and_adapters_in_their_order() -> None:
    """A card with a parent is an adapter; a path is kept as it was sent; what else a card has is ignored."""
    body = listing(BASE_CARD, BASE_CARD | {"id": "alias"}, LORA_CARD | {"id": "z"}, LORA_CARD, more={"x": [1]})

    assert decode_listing(body) == Listing(
        (BaseModel("base", "/m"), BaseModel("alias", "/m")),
        (Listed("z", "/adapters/a/", "base"), Listed("a", "/adapters/a/", "base")),
        engine="vllm",
    )


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ([], Listing((), ())),
        ([{"id": "base"}], Listing((BaseModel("base", "base"),), ())),
        ([{"id": "base", "root": None}], Listing((BaseModel("base", "base"),), ())),
        ([{"id": "base", "root": ""}], Listing((BaseModel("base", "base"),), ())),
        ([{"id": "a", "parent": "b"}], Listing((), (Listed("a", "", "b"),))),
        ([{"id": "a", "parent": "b", "root": None}], Listing((), (Listed("a", "", "b"),))),
        ([{"id": "a", "parent": ""}], Listing((), (Listed("a", "", ""),))),
        ([{"id": "x\n\u0000😀", "parent": "b"}], Listing((), (Listed("x\n\u0000😀", "", "b"),))),
    ],
)
def test_listing_with_little_in_it(cards: list[dict[str, Any]], expected: Listing) -> None:
    """Only the id is needed; an adapter without a path has an empty one."""
    assert decode_listing(listing(*cards)) == expected


@pytest.mark.parametrize(
    ("owners", "engine"),
    [(["vllm"], "vllm"), (["vllm-frontend-rs"], "vllm"), (["sglang"] * 2, "sglang"), (["proxy"], None), ([], None)],
)
def test_listing_says_which_engine_it_comes_from(owners: list[str], engine: str | None) -> None:
    """By what all its base models name as their owner, and by no adapter's."""
    cards = [BASE_CARD | {"id": f"base{n}", "owned_by": owner} for n, owner in enumerate(owners)]
    for body in (listing(*cards), listing(*cards, LORA_CARD | {"owned_by": "sglang"})):
        read = decode_listing(body)
        assert isinstance(read, Listing)
        assert read.engine == engine


def test_two_owners_are_no_engine() -> None:
    """As behind a proxy for several."""
    read = decode_listing(listing(BASE_CARD, BASE_CARD | {"id": "other", "owned_by": "sglang"}))

    assert isinstance(read, Listing)
    assert read.engine is None


def test_one_adapter_registered_twice_counts_once() -> None:
    """Two concurrent loads of one adapter register it twice in vLLM to 0.9.2: that must not blind the watch."""
    assert decode_listing(listing(BASE_CARD, LORA_CARD, LORA_CARD)) == decode_listing(listing(BASE_CARD, LORA_CARD))


def test_an_adapter_named_like_the_base_model_is_left_out() -> None:
    """Up to 0.30 vLLM accepts one and serves the base model for it: whoever loads one must not blind the watch."""
    shadowed = listing(BASE_CARD, LORA_CARD | {"id": "base"}, LORA_CARD)

    assert decode_listing(shadowed) == decode_listing(listing(BASE_CARD, LORA_CARD))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"5",
        b"[]",
        b"{}",
        b"<html></html>",
        b"\xff\xfe\x00",
        b'{"object":"list"}',
        b'{"data":[]}',
        b'{"object":"list","data":null}',
        b'{"object":"list","data":{}}',
        b'{"object":"list","data":[null]}',
        b'{"object":"list","data":["a"]}',
        b'{"object":"list","data":[{}]}',
        b'{"object":"list","data":[{"id":5}]}',
        b'{"object":"list","data":[{"id":null}]}',
        b'{"object":"list","data":[{"id":"a","root":5}]}',
        b'{"object":"list","data":[{"id":"a","parent":{}}]}',
        b'{"object":"error","data":[]}',
        b'{"object":"list\\n","data":[]}',
        b'{"object":"list","data":[]} trailing',
        b'{"object":"list","data":[{"id":"a"}',
        b'{"object":"list","data":[{"id":"a","x":NaN}]}',
        b'{"object":"list","data":[{"id":"\\ud800"}]}',
        b'{"object":"list","data":[{"id":"\xed\xa0\x80"}]}',
        b'{"object":"list","data":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 1_000_000,
        b'{"object":"list","data":[{"id":"a","x":' + b'{"x":' * 100_000,
        listing(BASE_CARD, BASE_CARD),
        listing(BASE_CARD, LORA_CARD, LORA_CARD | {"root": "/adapters/other"}),
        b'{"object":"' + b"x" * 1_000_000 + b'","data":[]}',
    ],
)
def test_anything_else_is_no_listing(body: bytes) -> None:
    """Garbage, bombs, wrong shapes and doubled names are never a listing, least of all an empty one."""
    result = decode_listing(body)

    assert isinstance(result, BadListing)
    assert result.why.isprintable()
    assert 0 < len(result.why) < 2 * MESSAGE_LIMIT


# Metrics

AWAKE = (
    b'vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} 1.0\n'
    b'vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="weights_offloaded"} 0.0\n'
    b'vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="discard_all"} 0.0\n'
)
ASLEEP = AWAKE.replace(b"1.0", b"X").replace(b'd"} 0.0', b'd"} 1.0').replace(b"X", b"0.0")
BORN = b"# HELP process_start_time_seconds Start time.\nprocess_start_time_seconds 1.79536050912e+09\n"


def test_metrics_of_a_living_server() -> None:
    """The two families are found wherever they stand."""
    noise = b'# TYPE x counter\nx_total{a="process_start_time_seconds 5"} 3.0\n' * 1000

    assert decode_metrics(noise + AWAKE + noise + BORN) == Vitals(1795360509.12, awake=True)


@pytest.mark.parametrize(
    ("body", "start"),
    [
        (b"", None),
        (b"process_start_time_seconds 5\n", 5.0),
        (b"process_start_time_seconds 5", None),  # cut short: it may have been 57
        (b'process_start_time_seconds{pid="1"} 5 1700000000\n', 5.0),
        (b"process_start_time_seconds 5\nprocess_start_time_seconds 5.0\n", 5.0),
        (b"process_start_time_seconds 5\nprocess_start_time_seconds 6\n", None),
        (b"process_start_time_seconds 5\nprocess_start_time_seconds x\n", None),
        (b"process_start_time_seconds NaN\n", None),
        (b"process_start_time_seconds +Inf\n", None),
        (b"process_start_time_seconds -Inf\n", None),
        (b"process_start_time_seconds\n", None),
        (b"process_start_time_seconds_total 5\n", None),
        (b"my_process_start_time_seconds 5\n", None),
        (b"# process_start_time_seconds 5\n", None),
        (b"\xff\xfe process_start_time_seconds 5", None),
        (b"process_start_time_seconds \xff\n", None),
    ],
)
def test_start_time_identifies_or_is_unsaid(body: bytes, start: float | None) -> None:
    """Only one number, and one alone, tells a life of the server from another."""
    assert decode_metrics(body).start_time == start


@pytest.mark.parametrize(
    ("body", "awake"),
    [
        (AWAKE, True),
        (ASLEEP, False),
        (AWAKE.replace(b'"0"', b'"1"') + AWAKE, True),
        (AWAKE + ASLEEP.replace(b'"0"', b'"1"'), False),
        (b"", None),
        (b'vllm:engine_sleep_state{sleep_state="weights_offloaded"} 0.0\n', None),
        (b'vllm:engine_sleep_state{sleep_state="awake"} 1.0\n', True),
        (b'vllm:engine_sleep_state{sleep_state="awake"} 0.0\n', False),
        (b'vllm:engine_sleep_state{sleep_state="awake"} NaN\n', False),
        (b'vllm:engine_sleep_state{sleep_state="awake"} what\n', False),
        (AWAKE.replace(b'l"} 0.0', b'l"} NaN'), False),
        (b'vllm:engine_sleep_state{sleep_state="awake",engine="0"} 1\n', True),
        (b'vllm:engine_sleep_state{model_name="}",sleep_state="awake"} 1\n', None),
    ],
)
def test_awake_only_where_every_engine_says_so(body: bytes, awake: bool | None) -> None:
    """A load into a sleeping engine destroys it: what is not plainly awake is not awake."""
    assert decode_metrics(body).awake is awake


@pytest.mark.parametrize(
    ("body", "asleep"),
    [
        (b'{"is_sleeping":true}', True),
        (b'{"is_sleeping":false,"level":1}', False),
        (b'{"is_sleeping":"true"}', None),
        (b'{"is_sleeping":1}', None),
        (b"{}", None),
        (b"true", None),
        (b"", None),
        (b"[" * 100_000, None),
    ],
)
def test_sleep_is_read_from_a_plain_answer_alone(body: bytes, asleep: bool | None) -> None:
    """Anything but true or false says nothing."""
    assert decode_is_sleeping(body) is asleep


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b"", None),
        (b'vllm:prompt_tokens_total{engine="0"} 7.0\nvllm:generation_tokens_total{engine="0"} 5.0\n', 12.0),
        (b'vllm:generation_tokens_total{engine="0"} 5.0\nvllm:generation_tokens_total{engine="1"} 1.0\n', 6.0),
        (b"vllm:prompt_tokens_total 0.0\nvllm:generation_tokens_total 0.0\n", 0.0),
        (b"vllm:prompt_tokens_total 7.0\nvllm:generation_tokens_total NaN\n", None),
        (b"vllm:prompt_tokens_created 7.0\n", None),
        (b"# vllm:prompt_tokens_total 7.0\n", None),
    ],
)
def test_tokens_of_every_engine_are_counted_together(body: bytes, tokens: float | None) -> None:
    """What one engine does not say is not zero: then nothing is known of any."""
    assert decode_metrics(body).tokens == tokens


@pytest.mark.parametrize("length", range(len(b"process_start_time_seconds 1.79536439651e+09")))
def test_metrics_that_were_cut_short_say_nothing(length: int) -> None:
    """Half of a number is another number, and the same for two lives of the server."""
    assert decode_metrics(b"process_start_time_seconds 1.79536439651e+09\n"[:length]) == Vitals()


RUNNING = b'vllm:num_requests_running{engine="0",model_name="base"} %s\n'
WAITING = b'vllm:num_requests_waiting{engine="0",model_name="base"} %s\n'


@pytest.mark.parametrize(
    ("body", "requests"),
    [
        (RUNNING % b"0.0" + WAITING % b"0.0", 0.0),
        (RUNNING % b"1.0" + WAITING % b"0.0", 1.0),
        (RUNNING % b"0.0" + WAITING % b"3.0", 3.0),
        (RUNNING % b"0.0" + RUNNING % b"2.0" + WAITING % b"0.0", 2.0),
        (RUNNING % b"0.0", None),
        (WAITING % b"0.0", None),
        (RUNNING % b"NaN" + WAITING % b"0.0", None),
        (b'vllm:num_requests_waiting_by_reason{reason="capacity"} 0.0\n' + RUNNING % b"0.0", None),
        (b"", None),
    ],
)
def test_requests_are_counted_only_where_both_gauges_say(body: bytes, requests: float | None) -> None:
    """No traffic is a claim that needs both numbers; whatever is missing or garbled leaves it open."""
    assert decode_metrics(body).requests == requests


def body_of(*names: str, created: int = 1) -> bytes:
    """A listing of a base model and adapters, with what is new in every answer."""
    cards = [{"id": "base", "root": "/m", "parent": None, "created": created}]
    cards += [{"id": n, "root": f"/adapters/{n}", "parent": "base", "created": created} for n in names]
    return json.dumps({"object": "list", "data": cards}).encode()


def test_a_listing_that_says_the_same_is_the_same_object() -> None:
    """A steady heartbeat builds nothing, whatever else is new in the answer."""
    listings = Listings()
    first = listings.decode(body_of("a", "b"))
    assert listings.decode(body_of("a", "b", created=2)) is first
    assert listings.decode(body_of("a")) != first
    assert listings.decode(body_of("b", "a")) != first


def test_a_listing_that_cannot_be_read_leaves_the_last_one_known() -> None:
    """Garbage between two listings is garbage, and the next one is compared with the last good one."""
    listings = Listings()
    first = listings.decode(body_of("a"))
    assert isinstance(listings.decode(b"{"), BadListing)
    assert isinstance(listings.decode(body_of("a").replace(b'"id": "a"', b'"id": 5')), BadListing)
    assert listings.decode(body_of("a")) is first
