from __future__ import annotations

import json

from lora_sidecar.engines.listing import BadListing, Listing
from lora_sidecar.engines.vllm_answers import decode_listing


def test_rust_frontend_that_does_not_tell_adapters_from_models_is_not_understood() -> None:
    """Its first versions list names alone: adapters would pass for base models."""
    card: dict[str, object] = {"id": "base", "object": "model", "owned_by": "vllm-frontend-rs"}
    old = decode_listing(json.dumps({"object": "list", "data": [card, card | {"id": "sql"}]}).encode())
    new = decode_listing(json.dumps({"object": "list", "data": [card | {"root": "/m", "parent": None}]}).encode())

    assert isinstance(old, BadListing)
    assert isinstance(new, Listing)
    assert new.resolves_paths
