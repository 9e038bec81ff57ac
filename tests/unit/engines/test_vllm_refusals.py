from __future__ import annotations

import json

import pytest

from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind
from lora_sidecar.engines.text import MESSAGE_LIMIT
from lora_sidecar.engines.vllm_refusals import classify_load, classify_unload

FRAME = "Call to add_lora method failed: "
WORKER = FRAME + "Worker failed with error '{}', please check the stack trace above for the root cause"


def flat(message: str, status: int) -> bytes:
    """An error body of vLLM 0.7 to 0.10.0."""
    error = {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": status}
    return json.dumps(error).encode()


def nested(message: str, status: int) -> bytes:
    """An error body of vLLM 0.10.1 and later."""
    return json.dumps({"error": {"message": message, "type": "E", "param": None, "code": status}}).encode()


def shapes(message: str, *, ours: int | None = None) -> list[tuple[int, bytes]]:
    """A failure of the engine as the versions tell it; `ours` where all of them use one status."""
    return [
        (ours or 400, flat(message, ours or 400)),
        (ours or 400, nested(message, ours or 400)),
        (ours or 500, nested(message, ours or 500)),
        (ours or 500, nested(FRAME + message, ours or 500)),
        (ours or 500, nested(WORKER.format(message), ours or 500)),
    ]


REFUSALS = [
    (FailureKind.FILES, "Loading lora n1 failed: No adapter found for /nonexistent/x", 404),
    (FailureKind.FILES, "<path> doesn't contain tensors", None),
    (FailureKind.FILES, "Error while deserializing header: incomplete metadata, file not fully covered", None),
    (FailureKind.FILES, "Error while deserializing header: header too large", None),
    (FailureKind.FILES, "Error while deserializing header: header too small", None),
    (FailureKind.FILES, "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)", None),
    (FailureKind.FILES, "Expecting value: line 1 column 1 (char 0)", None),
    (FailureKind.FILES, "[Errno 20] Not a directory: '<path>'", None),
    (FailureKind.FILES, "[Errno 2] No such file or directory: '<path>'", None),
    (FailureKind.FILES, "[Errno 13] Permission denied: '<path>'", None),
    (FailureKind.FILES, "The LoRA path must exist and be accessible", None),
    (FailureKind.ADAPTER, "LoRA rank 64 is greater than max_lora_rank 16.", None),
    (FailureKind.ADAPTER, "Missing required configuration fields: {'r'}", None),
    (FailureKind.ADAPTER, "r must be a positive integer", None),
    (FailureKind.ADAPTER, "vLLM does not yet support DoRA.", None),
    (FailureKind.ADAPTER, "Adapter bias is not supported.", None),
    (FailureKind.ADAPTER, "Adapter bias cannot be used without bias_enabled.", None),
    (FailureKind.ADAPTER, "vLLM only supports modules_to_save being None", None),
    (FailureKind.ADAPTER, "vLLM does not support init_lora_weights='eva'", None),
    (FailureKind.ADAPTER, "vLLM does not support use_bdlora", None),
    (FailureKind.ADAPTER, "lora_bias is set", None),
    (FailureKind.ADAPTER, "x.0 is unsupported LoRA weight", None),
    (
        FailureKind.ADAPTER,
        "While loading <path>, expected target modules in {'q_proj'} but received ['model.layers.0.self_attn.z_proj'].",
        None,
    ),
    (FailureKind.ADAPTER, "The lora adapter 'base' conflicts with a served base model.", 400),
    (FailureKind.ADAPTER, "Both 'lora_name' and 'lora_path' must be provided.", 400),
    (FailureKind.ADAPTER, "the adapter is incompatible with the memory pool", None),
    (FailureKind.ADAPTER, "path is outside the configured allowed prefixes", 400),
    (FailureKind.ADAPTER, "Local LoRA adapter paths require VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES", 400),
    (FailureKind.SERVER_SETUP, "LoRA is not enabled. Use --enable-lora to enable LoRA.", None),
    (FailureKind.SERVER_SETUP, "engine was not started with LoRA enabled", 400),
    (FailureKind.ENGINE, "EngineCore encountered an issue. See stack trace (above) for the root cause.", None),
    (FailureKind.ENGINE, "Server shutting down", None),
    (FailureKind.ENGINE, "Executor failed.", None),
    (FailureKind.ENGINE, "CUDA out of memory. Tried to allocate 20.00 MiB", None),
    (FailureKind.UNCLASSIFIED, "unsupported operand type(s) for *=: 'NoneType' and 'float'", None),
    (FailureKind.UNCLASSIFIED, "something that nobody has seen yet", None),
]


@pytest.mark.parametrize(("kind", "message", "status"), REFUSALS)
@pytest.mark.parametrize("shape", range(5))
def test_refusal_is_told_by_its_text_in_every_version(
    kind: FailureKind, message: str, status: int | None, shape: int
) -> None:
    """The same text means the same, whichever status and body a version of vLLM wraps it in."""
    given, body = shapes(message, ours=status)[shape]
    result = classify_load(given, body)

    assert isinstance(result, Failure)
    assert (result.kind, result.status) == (kind, given)
    assert message in result.message
    assert "stack trace above" not in result.message


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b'{"detail":"Not Found"}', FailureKind.SERVER_SETUP),
        (404, b"<html>404 page not found</html>", FailureKind.SERVER_SETUP),
        (404, b"", FailureKind.SERVER_SETUP),
        (405, b'{"detail":"Method Not Allowed"}', FailureKind.SERVER_SETUP),
        (404, nested("the like of it was never seen", 404), FailureKind.FILES),
        (404, flat("the like of it was never seen", 404), FailureKind.FILES),
        (401, b'{"error":"Unauthorized"}', FailureKind.UNAUTHORIZED),
        (403, b"", FailureKind.UNAUTHORIZED),
        (401, nested("LoRA is not enabled", 401), FailureKind.UNAUTHORIZED),
        (503, b'{"error":"The model is currently scaling. Please try again later."}', FailureKind.ENGINE),
        (503, b"", FailureKind.ENGINE),
        (429, b"slow down", FailureKind.ENGINE),
        (
            400,
            nested("1 validation error:\n  {'type': 'missing', 'loc': 'body.lora_path'}", 400),
            FailureKind.UNCLASSIFIED,
        ),
        (400, nested("1 validation error:\n  Unsupported Media Type", 400), FailureKind.UNCLASSIFIED),
        (415, b"", FailureKind.UNCLASSIFIED),
        (307, b"", FailureKind.UNCLASSIFIED),
        (502, b"<html>Bad Gateway</html>", FailureKind.UNCLASSIFIED),
        (500, b"Internal Server Error", FailureKind.UNCLASSIFIED),
        (500, b"\xff\xfe\x00", FailureKind.UNCLASSIFIED),
        (500, b"null", FailureKind.UNCLASSIFIED),
        (500, b'{"error":{"message":5}}', FailureKind.UNCLASSIFIED),
    ],
)
def test_refusal_without_a_known_text_is_told_by_its_status(status: int, body: bytes, kind: FailureKind) -> None:
    """Where no text says more, the status and the shape of the body decide; there is always a sentence to show."""
    result = classify_load(status, body)

    assert isinstance(result, Failure)
    assert result.kind is kind
    assert 0 < len(result.message) <= MESSAGE_LIMIT
    assert result.message.isprintable()


def test_success_is_any_body() -> None:
    """VLLM says it in plain text, its simulator with an empty body."""
    for body in (b"Success: LoRA adapter 'ok' added successfully.", b"", b"\xff"):
        assert classify_load(200, body) == Accepted()
        assert classify_unload(200, body) == Accepted()


@pytest.mark.parametrize(
    "message",
    [
        "The lora adapter 'ok' has already been loaded.",
        "The lora adapter 'ok' has already been loaded. If you want to load it in place, set 'load_inplace' to True.",
        "LoRA adapter `ok` is already loaded. If you want to load it in place",
    ],
)
def test_loaded_before_is_as_good_as_loaded(message: str) -> None:
    """Where somebody was faster, the listing will tell with which path."""
    for status, body in shapes(message, ours=400):
        assert classify_load(status, body) == Accepted(already=True)


def test_point_of_a_long_sentence_is_found() -> None:
    """What the server objects to may stand behind a list of a hundred module names."""
    modules = {f"model.layers.{n}.mlp.experts.gate_proj" for n in range(200)}
    body = nested(f"While loading <path>, expected target modules in {modules} but received ['z_proj'].", 500)
    result = classify_load(500, body)

    assert isinstance(result, Failure)
    assert result.kind is FailureKind.ADAPTER
    assert len(result.message) == MESSAGE_LIMIT
    assert result.message.endswith("…")


def test_point_of_a_broken_sentence_is_found() -> None:
    """Line breaks in the text do not hide it."""
    result = classify_load(500, nested("EngineCore\n   encountered\tan issue", 500))

    assert isinstance(result, Failure)
    assert (result.kind, result.message) == (FailureKind.ENGINE, "EngineCore encountered an issue")


@pytest.mark.parametrize(
    ("status", "body", "already"),
    [
        (404, nested("The lora adapter 'ok3' cannot be found.", 404), True),
        (404, flat("The lora adapter 'ok3' cannot be found.", 404), True),
        (404, b'{"error":{"message":"no such model","code":"model_not_found"}}', True),
    ],
)
def test_unload_of_what_is_not_loaded_has_succeeded(status: int, body: bytes, already: bool) -> None:
    """Nothing to unload is what was asked for, in every version's words."""
    assert classify_unload(status, body) == Accepted(already=already)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, b'{"detail":"Not Found"}', FailureKind.SERVER_SETUP),
        (401, b'{"error":"Unauthorized"}', FailureKind.UNAUTHORIZED),
        (500, nested("Failed to remove lora adapter x", 500), FailureKind.UNCLASSIFIED),
        (500, nested("EngineCore encountered an issue.", 500), FailureKind.ENGINE),
    ],
)
def test_refused_unload_is_a_failure(status: int, body: bytes, kind: FailureKind) -> None:
    """A route that is absent is not an adapter that is absent."""
    result = classify_unload(status, body)

    assert isinstance(result, Failure)
    assert (result.kind, result.status) == (kind, status)
