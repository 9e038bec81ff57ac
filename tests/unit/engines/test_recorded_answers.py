"""What the product makes of the answers of each version of vLLM that was run.

The recordings are what real servers answered (`tests/contract/answers`); what is asserted here is what they mean.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind
from lora_sidecar.engines.vllm_answers import (
    Listing,
    decode_is_paused,
    decode_is_sleeping,
    decode_listing,
    decode_metrics,
    decode_version,
)
from lora_sidecar.engines.vllm_refusals import classify_load, classify_unload, is_route_absent
from tests.contract.transcript import read_recording, recorded_versions

pytestmark = pytest.mark.parametrize("version", recorded_versions())

LOAD, UNLOAD = "POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter"
FILES = [
    "no_weights",
    "truncated",
    "garbage",
    "empty_weights",
    "config_not_json",
    "config_empty",
    "a_file",
]
ADAPTER = [
    "without_r",
    "without_r_and_alpha",
    "rank_64",
    "rank_zero",
    "dora",
    "bias",
    "dora_and_rank",
    "unknown_module",
]


def answers(version: str, test: str, asked: str) -> list[tuple[int, bytes]]:
    """Status and body of each answer to such a request in that test."""
    entries = read_recording(version).answers[test]
    return [(entry["status"], _bytes(entry["body"])) for entry in entries if entry.get("asked") == asked]


def _bytes(body: Any) -> bytes:
    match body:
        case str():
            return body.encode()
        case [str(), *_]:
            return "".join(f"{line}\n" for line in body).replace("{number}", "1.7e+09").encode()
        case _:
            return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [*((fault, FailureKind.FILES) for fault in FILES), *((fault, FailureKind.ADAPTER) for fault in ADAPTER)],
)
def test_refused_adapter_is_classed_by_what_can_heal_it(version: str, fault: str, kind: FailureKind) -> None:
    """Files may still come; what is wrong with an adapter stays wrong."""
    refused, repaired = answers(version, f"load_of_a_broken_adapter[{fault}]", LOAD)
    match classify_load(*refused):
        case Failure(kind=found):
            assert found is kind
        case accepted:
            pytest.fail(f"taken for {accepted}")
    assert classify_load(*repaired) == Accepted()


@pytest.mark.parametrize("where", ["missing", "empty", "no_config"])
def test_missing_folder_may_still_come(version: str, where: str) -> None:
    """A folder that is not there, or not whole, is waited for."""
    (refused,) = answers(version, f"load_without_an_adapter_there[{where}]", LOAD)
    answer = classify_load(*refused)
    assert isinstance(answer, Failure)
    assert answer.kind is FailureKind.FILES


def test_loaded_name_is_loaded_already(version: str) -> None:
    """A second load of a name is no failure: it is there."""
    first, second = answers(version, "load_of_a_loaded_name[whole]", LOAD)
    assert (classify_load(*first), classify_load(*second)) == (Accepted(), Accepted(already=True))


def test_dead_engine_is_the_engines_failure(version: str) -> None:
    """Whatever its status, it says nothing of the adapter."""
    _, late = answers(version, "death_of_the_engine", LOAD)
    answer = classify_load(*late)
    assert isinstance(answer, Failure)
    assert answer.kind is FailureKind.ENGINE


def test_absent_route_is_the_servers_setup(version: str) -> None:
    """Without runtime loading, a 404 means no adapter."""
    (load,) = answers(version, "routes_are_absent_without_runtime_loading", LOAD)
    (unload,) = answers(version, "routes_are_absent_without_runtime_loading", UNLOAD)
    assert is_route_absent(*load)
    for answer in (classify_load(*load), classify_unload(*unload)):
        assert isinstance(answer, Failure)
        assert answer.kind is FailureKind.SERVER_SETUP


def test_missing_key_is_told(version: str) -> None:
    """A refusal for want of a key is neither the adapter's nor the engine's."""
    (load,) = answers(version, "guarded_paths_without_the_key[wrong]", LOAD)
    answer = classify_load(*load)
    assert isinstance(answer, Failure)
    assert answer.kind is FailureKind.UNAUTHORIZED


@pytest.mark.parametrize("name", ["never-loaded", "base"])
def test_unloading_what_is_not_loaded_is_done_already(version: str, name: str) -> None:
    """It is as good as unloaded."""
    (unload,) = answers(version, f"unload_of_what_is_not_loaded[{name}]", UNLOAD)
    assert classify_unload(*unload) == Accepted(already=True)


def test_adapter_named_like_the_base_model_is_no_adapter(version: str) -> None:
    """Where the server lists one, the listing still has one model of that name."""
    (listed,) = answers(version, "load_under_the_name_of_the_base_model", "GET /v1/models")
    listing = decode_listing(listed[1])
    assert isinstance(listing, Listing)
    assert [base.id for base in listing.bases] == ["base"]
    assert listing.adapters == ()


def test_sleep_is_told_by_its_route_and_by_the_metrics_where_they_have_it(version: str) -> None:
    """A sleeping engine is never taken for one that is awake."""
    before, during, after = answers(version, "sleeping_engine", "GET /is_sleeping")
    assert [decode_is_sleeping(body) for _, body in (before, during, after)] == [False, True, False]
    (metrics,) = answers(version, "sleeping_engine", "GET /metrics")
    assert decode_metrics(metrics[1]).awake in (False, None)


def test_pause_is_told_by_its_route_where_there_is_one(version: str) -> None:
    """A version that cannot be paused has no such route, which is no answer."""
    before, during = answers(version, "paused_engine", "GET /is_paused")
    assert [decode_is_paused(body) for _, body in (before, during)] in ([False, True], [None, None])


def test_idle_server_is_seen_to_be_idle(version: str) -> None:
    """Its start, its requests and its tokens are in the metrics of each version."""
    (metrics,) = answers(version, "metrics_count_the_requests_that_run_and_wait", "GET /metrics")
    vitals = decode_metrics(metrics[1])
    assert (vitals.start_time, vitals.requests) == (1.7e9, 0.0)
    assert vitals.tokens is not None


def test_version_is_read(version: str) -> None:
    """What /version says begins with the version."""
    ((_, body),) = answers(version, "version_is_a_string", "GET /version")
    assert (decode_version(body) or "").startswith(version)
