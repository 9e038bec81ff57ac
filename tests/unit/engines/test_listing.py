from __future__ import annotations

import json
from typing import Any

import pytest

from lora_sidecar.core.observation import BaseModel, Listed
from lora_sidecar.engines.listing import BadListing, Listing, decode_listing
from lora_sidecar.engines.text import MESSAGE_LIMIT


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
        owners=frozenset({"vllm"}),
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
    found = decode_listing(listing(*cards))
    assert isinstance(found, Listing)
    assert (found.bases, found.adapters) == (expected.bases, expected.adapters)


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
        # Deeper than the stack: how deep an interpreter goes depends on its version.
        b'{"object":"list","data":[],"x":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
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


def test_a_listing_that_is_none_says_what_is_wrong_with_it() -> None:
    """In the decoder's words."""
    assert decode_listing(b"[]") == BadListing("not a list of models: Expected `object`, got `array`")
