from __future__ import annotations

import json

import pytest

from lora_sidecar.engines.identity import Kind, by_model_info, by_owner, by_version
from lora_sidecar.engines.listing import Listing, decode_listing


def cards(*owners: str) -> Listing:
    """A listing of base models with these owners, and one adapter of nobody's."""
    data: list[dict[str, object]] = [{"id": f"b{n}", "owned_by": owner} for n, owner in enumerate(owners)]
    data.append({"id": "x", "owned_by": "client", "parent": "b0"})
    listing = decode_listing(json.dumps({"object": "list", "data": data}).encode())
    assert isinstance(listing, Listing)
    return listing


@pytest.mark.parametrize(
    ("owners", "kind"),
    [
        (("vllm",), Kind.VLLM),
        (("vllm", "vllm"), Kind.VLLM),
        (("vllm-frontend-rs",), Kind.VLLM),
        (("sglang",), Kind.SGLANG),
        (("vllm", "sglang"), None),
        (("VLLM",), None),
        (("",), None),
        ((), None),
    ],
)
def test_an_owner_counts_only_if_all_base_models_have_it(owners: tuple[str, ...], kind: Kind | None) -> None:
    """Adapters' cards say nothing, and two owners are a proxy in front of two servers."""
    found = by_owner(cards(*owners))

    assert (None if found is None else found.kind) is kind


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'"vllm"', b'{"version": 3}', b'{"version": "1\\n2"}', b"\xff"])
def test_what_cannot_be_read_says_nothing(body: bytes) -> None:
    """Garbage is no engine."""
    assert [by_version(body), by_model_info(body)] == [None, None]


def test_each_engine_has_a_route_of_its_own() -> None:
    """The routes that only one of them has tell it where the owner does not."""
    version, model_info = (
        by_version(b'{"version":"0.32.0"}'),
        by_model_info(b'{"model_path":"/m","is_generation":true}'),
    )

    assert version is not None
    assert version.kind is Kind.VLLM
    assert model_info is not None
    assert model_info.kind is Kind.SGLANG
