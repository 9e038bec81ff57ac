from __future__ import annotations

import hashlib
import json

import pytest

from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, ProbeFailure
from lora_sidecar.engines import identity as identity_wire
from lora_sidecar.engines import sglang_answers as sglang_wire
from lora_sidecar.engines import vllm_answers as vllm_wire
from lora_sidecar.engines import vllm_refusals as refusal_wire


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"version": 1, "is_paused": "no", "is_sleeping": 0}'])
def test_an_answer_that_is_none_says_nothing(body: bytes) -> None:
    """Neither a version nor a state is made of it."""
    assert vllm_wire.decode_version(body) is None
    assert vllm_wire.decode_is_paused(body) is None
    assert vllm_wire.decode_is_sleeping(body) is None


def test_versions_and_states_are_read() -> None:
    """A version is made safe for a line."""
    assert vllm_wire.decode_version(b'{"version": "0.32.0\\n+cpu"}') == "0.32.0 +cpu"
    assert vllm_wire.decode_is_paused(b'{"is_paused": true}') is True
    assert vllm_wire.decode_is_paused(b'{"is_paused": false}') is False
    assert vllm_wire.decode_is_sleeping(b'{"is_sleeping": true}') is True
    assert vllm_wire.decode_is_sleeping(b'{"is_sleeping": false}') is False


def test_a_completion_without_numbers_is_no_answer() -> None:
    """With the status that it came with, and what is wrong with it."""
    assert vllm_wire.decode_completion(200, b'{"choices": []}') == ProbeFailure(
        "a completion without log-probabilities", 200
    )
    bare = b'{"choices": [{"logprobs": {"top_logprobs": []}}]}'
    assert vllm_wire.decode_completion(200, bare) == ProbeFailure("a completion without log-probabilities", 200)
    broken = vllm_wire.decode_completion(200, b'{"choices": 1}')
    assert isinstance(broken, ProbeFailure)
    assert broken.status == 200
    assert broken.message == ("not a completion with log-probabilities: Expected `array`, got `int` - at `$.choices`")


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (f"bad: {refusal_wire._FRAME}no rank{refusal_wire._FRAME_END}", "bad: no rank"),
        (f"{refusal_wire._FRAME}one {refusal_wire._FRAME}two", f"one {refusal_wire._FRAME}two"),
        (f"no frame{refusal_wire._FRAME_END}", f"no frame{refusal_wire._FRAME_END}"),
    ],
)
def test_the_frame_of_a_workers_sentence_is_left_out(said: str, read: str) -> None:
    """The first one and its end; without its beginning nothing is."""
    assert refusal_wire._unframed(said) == read


def sglang(message: str | None, *, success: bool = False) -> bytes:
    """What SGLang answers to a load or an unload."""
    return json.dumps({"success": success, "error_message": message}).encode()


@pytest.mark.parametrize("classify", [sglang_wire.classify_load, sglang_wire.classify_unload])
@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, sglang(None, success=True), Accepted()),
        (200, b"fine", Accepted()),
        (200, sglang("no"), Failure(FailureKind.UNCLASSIFIED, "no", 200)),
        (400, sglang("no"), Failure(FailureKind.UNCLASSIFIED, "no", 400)),
        (400, sglang("no", success=True), Failure(FailureKind.UNCLASSIFIED, "no", 400)),
        (400, sglang(None), Failure(FailureKind.UNCLASSIFIED, "refused without a message", 400)),
        (500, b"", Failure(FailureKind.UNCLASSIFIED, "HTTP 500 without a message", 500)),
        (404, b"gone", Failure(FailureKind.SERVER_SETUP, "gone", 404)),
        (405, b"no", Failure(FailureKind.SERVER_SETUP, "no", 405)),
        (429, b"busy", Failure(FailureKind.ENGINE, "busy", 429)),
        (503, b"busy", Failure(FailureKind.ENGINE, "busy", 503)),
        (400, sglang("'r'"), Failure(FailureKind.ADAPTER, "'r'", 400)),
        (400, sglang("CUDA  out\nof memory"), Failure(FailureKind.ENGINE, "CUDA out of memory", 400)),
    ],
)
def test_a_refusal_of_sglang_has_a_kind_a_sentence_and_a_status(
    classify: object, status: int, body: bytes, expected: Accepted | Failure
) -> None:
    """The same for loads and unloads."""
    assert callable(classify)
    assert classify(status, body) == expected


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_of_sglang_says_which_one_is_needed(status: int) -> None:
    """A server with an admin key loads with no other."""
    hint = "(with --admin-api-key only that key loads adapters: servers[].admin_api_key_file names it)"
    assert sglang_wire.classify_load(status, sglang("no")) == Failure(FailureKind.UNAUTHORIZED, f"no {hint}", status)


def test_an_unload_of_what_sglang_has_not_is_as_good_as_one() -> None:
    """Its sentence tells, whatever its case."""
    absent = sglang("LoRA with name a DOES NOT EXIST. Loaded LoRAs: dict_keys([])")
    assert sglang_wire.classify_unload(400, absent) == Accepted(already=True)


def test_an_unreadable_setting_of_sglang_is_named() -> None:
    """What is wrong with it, and a limit that cannot be one; one adapter is a limit."""
    assert sglang_wire.decode_server_info(b"[]") == "not the server's settings: Expected `object`, got `array`"
    none = b'{"max_loaded_loras": 0, "random_seed": 1}'
    assert sglang_wire.decode_server_info(none) == "not the server's settings: max_loaded_loras is 0"
    one = sglang_wire.decode_server_info(none.replace(b"0", b"1"))
    assert one == sglang_wire.ServerInfo(1, None, 1, memory_saver=False)


def test_a_life_of_sglang_is_a_number_that_a_float_holds() -> None:
    """Six bytes of a digest, the most significant first; a start within a second counts."""
    body = b'{"max_loaded_loras": null, "random_seed": 7, "startup_time": {"scheduler_e2e": 0.5}}'
    info = sglang_wire.decode_server_info(body)

    assert isinstance(info, sglang_wire.ServerInfo)
    assert info.start_id == float(int(hashlib.sha256(b"[7,0.5]").hexdigest()[:12], 16))


def test_a_version_without_end_is_shown_in_part() -> None:
    """Whoever answers there may write anything."""
    found = identity_wire.by_version(json.dumps({"version": "1" * 99}).encode())

    assert found is not None
    assert found.evidence == f"/version answers {'1' * 64}"
