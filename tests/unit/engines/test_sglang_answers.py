from __future__ import annotations

import json
from typing import Any

import pytest

from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind
from lora_sidecar.engines.sglang_answers import ServerInfo, classify_load, classify_unload, decode_server_info

INFO: dict[str, Any] = {
    "model_path": "/models/tiny",
    "max_loaded_loras": 8,
    "random_seed": 7,
    "dp_size": 1,
    "enable_memory_saver": False,
    "startup_time": {"load_weight": 3.0, "scheduler_e2e": 12.345678901, "cuda_graph": {}},
    "internal_states": [{}],
    "version": "0.5.23",
}


def info(**fields: object) -> bytes:
    """A body of `/server_info`."""
    return json.dumps(INFO | fields).encode()


def update(message: str | None, *, success: bool = False) -> bytes:
    """A body of a load's or an unload's answer."""
    body = {"rid": None, "http_worker_ipc": None, "success": success, "error_message": message}
    return json.dumps(body | {"loaded_adapters": None}).encode()


def read(body: bytes) -> ServerInfo:
    """The settings that a body holds."""
    found = decode_server_info(body)
    assert isinstance(found, ServerInfo)
    return found


def test_a_life_is_told_by_the_time_it_took_to_start() -> None:
    """Equal answers are one life; another duration is another life, even where the seed was fixed."""
    other = {"load_weight": 3.0, "scheduler_e2e": 12.345678902, "cuda_graph": {}}

    assert read(info()).start_id == read(info()).start_id is not None
    assert read(info()).start_id != read(info(startup_time=other)).start_id
    assert read(info()).start_id != read(info(random_seed=8)).start_id


@pytest.mark.parametrize(
    "startup_time", [None, {}, {"scheduler_e2e": None}, {"scheduler_e2e": 0.0}, {"scheduler_e2e": 12}]
)
def test_a_seed_alone_proves_nothing(startup_time: object) -> None:
    """SGLang 0.5.10 publishes no start-up times; --random-seed would make every life look like the one before it."""
    assert read(info(startup_time=startup_time)).start_id is None


def test_the_limit_of_the_listing_is_read() -> None:
    """No limit is None, which is not the same as a limit that is not published."""
    assert read(info()).capacity == 8
    assert read(info(max_loaded_loras=None)).capacity is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"max_loaded_loras": 8}',
        info(max_loaded_loras="8"),
        info(max_loaded_loras=0),
        info(dp_size="many"),
        info(startup_time=3),
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_settings_that_cannot_be_read_are_no_settings(body: bytes) -> None:
    """A limit that was not understood must not pass for no limit: that would forget what was only evicted."""
    assert isinstance(decode_server_info(body), str)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("LoRA is not enabled. Please set `--enable-lora` to enable LoRA.", FailureKind.SERVER_SETUP),
        (
            "LoRA adapter x with rank 64 is incompatible with the current LoRA memory pool configuration.",
            FailureKind.ADAPTER,
        ),
        ("Failed to load x because LoRA serving currently doesn't support DoRA adapters", FailureKind.ADAPTER),
        (
            "LoRA serving currently doesn't support adapters that add tokens to the vocabulary",
            FailureKind.ADAPTER,
        ),
        ("'lora_alpha'", FailureKind.ADAPTER),
        (
            "Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/adapters/x'. Use `repo_type` argument",
            FailureKind.FILES,
        ),
        ("[Errno 2] No such file or directory: '/adapters/x/adapter_config.json'", FailureKind.FILES),
        ("Error while deserializing header: incomplete metadata, file not fully covered", FailureKind.FILES),
        ("CUDA out of memory. Tried to allocate 2 GiB", FailureKind.ENGINE),
        ("LoRA adapter 'x' has an incomplete unload. Retry the unload before loading", FailureKind.UNCLASSIFIED),
        (None, FailureKind.UNCLASSIFIED),
    ],
)
def test_the_sentence_says_whose_fault_it_is(message: str | None, kind: FailureKind) -> None:
    """Every refusal is a 400."""
    result = classify_load(400, update(message))

    assert isinstance(result, Failure)
    assert result.kind is kind
    assert result.message.startswith((message or "refused")[:40])


def test_already_loaded_is_as_good_as_loaded_only_if_every_rank_says_so() -> None:
    """The messages of the ranks are joined: one that failed otherwise is a failure."""
    already = "Failed to load LoRA adapter x because it is already loaded"

    assert classify_load(400, update(already)) == Accepted(already=True)
    assert classify_load(400, update(f"{already} | {already}")) == Accepted(already=True)
    mixed = classify_load(400, update(f"{already} | CUDA out of memory"))
    assert isinstance(mixed, Failure)
    assert mixed.kind is FailureKind.ENGINE


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_names_the_admin_key(status: int) -> None:
    """With the right API key a load may still lack the admin key, which nothing in the answer says."""
    result = classify_load(status, b'{"error":"Unauthorized"}')

    assert isinstance(result, Failure)
    assert result.kind is FailureKind.UNAUTHORIZED
    assert "servers[].admin_api_key_file" in result.message


@pytest.mark.parametrize(("status", "kind"), [(500, "unclassified"), (503, "engine"), (404, "server_setup")])
def test_an_answer_that_is_no_answer_of_a_load(status: int, kind: str) -> None:
    """What does not come from the handler is classified by its status."""
    result = classify_load(status, b"Internal Server Error")

    assert isinstance(result, Failure)
    assert result.kind.value == kind


def test_success_is_a_200_that_does_not_deny_it() -> None:
    """A 200 that says "success": false is a failure."""
    assert classify_load(200, update("", success=True)) == Accepted()
    assert isinstance(classify_load(200, update("it is not")), Failure)


def test_unloading_what_is_not_loaded_is_done() -> None:
    """An unknown name is a 400 here, too."""
    gone = "LoRA with name x does not exist. Loaded LoRAs: odict_keys(['a'])"

    assert classify_unload(400, update(gone)) == Accepted(already=True)
    assert classify_unload(200, update("", success=True)) == Accepted()
    assert isinstance(classify_unload(400, update("CUDA error")), Failure)
