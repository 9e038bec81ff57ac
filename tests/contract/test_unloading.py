from __future__ import annotations

import pytest

from tests.contract.conftest import Folders
from tests.contract.transcript import HeardApi, Transcript, shape

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


async def test_unload_answers_plain_text(api: HeardApi, folders: Folders, name: str) -> None:
    """An unload answers 200 with a sentence and no content type, and the adapter leaves the listing."""
    assert (await api.load(name, folders.whole)).status == 200
    reply = await api.unload(name)
    assert (reply.status, reply.text) == (200, f"Success: LoRA adapter '{name}' removed successfully.")
    assert "content-type" not in reply.headers
    assert name not in await api.listed()


@pytest.mark.parametrize("unknown", ["never-loaded", "base"])
async def test_unload_of_what_is_not_loaded(api: HeardApi, unknown: str) -> None:
    """A name that is not an adapter's, the base model's included, cannot be found."""
    reply = await api.unload(unknown)
    assert (reply.status, reply.json()["error"]["type"]) == (404, "NotFoundError")


async def test_completion_of_base_and_adapter(
    api: HeardApi, transcript: Transcript, folders: Folders, name: str
) -> None:
    """The base model and a loaded adapter answer under their own names, in one shape."""
    assert (await api.load(name, folders.whole)).status == 200
    base, adapter = await api.complete("base"), await api.complete(name)
    assert (base.status, adapter.status) == (200, 200)
    assert (base.json()["model"], adapter.json()["model"]) == ("base", name)
    assert shape(base.json()) == shape(adapter.json())
    assert base.json()["usage"]["completion_tokens"] == 2
    transcript.note("a completion", shape(base.json()))


async def test_log_probabilities_of_one_token(api: HeardApi, folders: Folders, name: str) -> None:
    """One token with its likeliest alternatives, to many digits: the same twice, and others for an adapter."""
    assert (await api.load(name, folders.whole)).status == 200
    body = {"prompt": "The capital of", "max_tokens": 1, "temperature": 0, "logprobs": 5}
    replies = [
        await api.quiet.ask("POST", "/v1/completions", body=body | {"model": model}, within=120)
        for model in ("base", "base", name)
    ]
    assert [reply.status for reply in replies] == [200, 200, 200]
    first, again, adapter = (reply.json()["choices"][0]["logprobs"] for reply in replies)
    assert sorted(first) == ["text_offset", "token_logprobs", "tokens", "top_logprobs"]
    assert (len(first["top_logprobs"]), len(first["token_logprobs"]), len(first["tokens"])) == (1, 1, 1)
    assert first["top_logprobs"][0][first["tokens"][0]] == first["token_logprobs"][0] < 0
    assert first["top_logprobs"] == again["top_logprobs"]
    assert first["top_logprobs"] != adapter["top_logprobs"]


async def test_completion_of_an_unloaded_adapter(api: HeardApi, folders: Folders, name: str) -> None:
    """After an unload, a request for the adapter finds no such model."""
    assert (await api.load(name, folders.whole)).status == 200
    assert (await api.unload(name)).status == 200
    reply = await api.complete(name)
    assert (reply.status, reply.json()["error"]["type"]) == (404, "NotFoundError")
