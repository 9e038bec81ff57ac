"""The fakes of engines of which no real one runs here, held to what was read in the source.

SGLang: `entrypoints/http_server.py`, `managers/tokenizer_control_mixin.py`, `lora/lora_manager.py`,
`lora/lora_registry.py` and `utils/auth.py` of 0.5.23 and their like in 0.5.6. vLLM's Rust frontend:
`rust/src/server/src/lora.rs`, `error.rs` and `routes/lora.rs`. Written from the source and not from the fake; what is
not here, the fakes may get wrong.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.fakes.sglang import FakeSglang, SglangConfig
from tests.fakes.vllm import FakeConfig, FakeVllm
from tests.support.adapters import write_adapter
from tests.support.drafts import Draft
from tests.support.http_client import Api

LOAD, UNLOAD = "/load_lora_adapter", "/unload_lora_adapter"


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that keeps no connection."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


async def load(api: Api, name: str, path: object) -> tuple[int, dict[str, object]]:
    """Status and body of a load by SGLang's route."""
    reply = await api.ask("POST", LOAD, body={"lora_name": name, "lora_path": str(path)})
    return reply.status, reply.json()


async def test_sglang_answers_loads_with_success_and_a_sentence(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """200 or 400, always the same fields; an error that came before the ranks were asked has no adapters."""
    folder = write_adapter(tmp_path / "whole")
    async with FakeSglang() as fake:
        api = Api(session, fake.url)
        status, body = await load(api, "sql", folder)
        assert (status, body["success"], body["error_message"]) == (200, True, "")
        assert body["loaded_adapters"] == {"sql": str(folder)}
        status, body = await load(api, "sql", folder)
        assert (status, body["success"]) == (400, False)
        assert body["error_message"] == "Failed to load LoRA adapter sql because it is already loaded"
        status, body = await load(api, "gone", "/no/such/folder")
        assert status == 400
        assert str(body["error_message"]).startswith("Repo id must be in the form")
        reply = await api.ask("POST", UNLOAD, body={"lora_name": "gone"})
        assert reply.status == 400
        assert "LoRA with name gone does not exist. Loaded LoRAs: " in reply.json()["error_message"]
        assert reply.json()["loaded_adapters"] is None


async def test_sglang_lists_its_adapters_in_the_order_of_use(session: aiohttp.ClientSession) -> None:
    """A request moves an adapter to the end; the first goes when one too many comes, and is back when asked for."""
    async with FakeSglang(SglangConfig(check_files=False, max_loaded_loras=2)) as fake:
        api = Api(session, fake.url)
        for name in ("a", "b"):
            assert (await load(api, name, f"/adapters/{name}"))[0] == 200
        assert (await api.ask("POST", "/v1/completions", body={"model": "base:a", "prompt": "x"})).status == 200
        assert [card["id"] for card in await api.cards()] == ["base", "b", "a"]
        assert (await load(api, "c", "/adapters/c"))[1]["loaded_adapters"] == {"a": "/adapters/a", "c": "/adapters/c"}
        assert (await api.ask("POST", "/v1/completions", body={"model": "base:b", "prompt": "x"})).status == 200
        cards = await api.cards()
    assert [(card["id"], card["root"], card["parent"], card["owned_by"]) for card in cards] == [
        ("base", "base", None, "sglang"),
        ("c", "/adapters/c", "base", "sglang"),
        ("b", "/adapters/b", "base", "sglang"),
    ]


@pytest.mark.parametrize(
    "draft",
    [
        Draft().widen(2),
        Draft().keep(lambda name: "lora_A" in name),
        Draft().rename(lambda name: name.replace("q_proj", "z_proj")),
    ],
    ids=["another rank", "only lora_A", "another module"],
)
async def test_sglang_accepts_bad_weights_and_dies_of_them_at_their_first_use(
    session: aiohttp.ClientSession, tmp_path: Path, draft: Draft
) -> None:
    """As a real 0.5.21 did; until then, and of others, it lives."""
    async with FakeSglang() as fake:
        api = Api(session, fake.url)
        assert (await load(api, "bad", draft.write(tmp_path / "bad")))[0] == 200
        assert (await load(api, "good", write_adapter(tmp_path / "good")))[0] == 200
        asked = {"model": "base:good", "prompt": "x"}
        assert (await api.ask("POST", "/v1/completions", body=asked)).status == 200
        with pytest.raises(aiohttp.ClientError):
            await api.ask("POST", "/v1/completions", body=asked | {"model": "base:bad"})
        assert not fake.running


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.weights(lambda _: b"\xff" * 64), "header too large"),
        (lambda d: d.weights(lambda _: b""), "header too small"),
        (lambda d: d.rename(lambda name: name.replace("layers.1.", "layers.9.")), "index 9 is out of range"),
        (lambda d: d.file("added_tokens.json", b'{"<x>": 260}'), "LoRA adapter has 1 added tokens"),
        (lambda d: d.say(use_dora=True), "doesn't support DoRA adapters"),
    ],
    ids=["garbage", "empty", "a layer too many", "added tokens", "dora"],
)
async def test_sglang_refuses_some_folders(
    session: aiohttp.ClientSession, tmp_path: Path, change: Callable[[Draft], Draft], said: str
) -> None:
    """In the words of a real 0.5.21; an older one took DoRA."""
    path = change(Draft()).write(tmp_path / "a")
    async with FakeSglang() as fake:
        status, body = await load(Api(session, fake.url), "a", path)
        assert status == 400
        assert said in str(body["error_message"])
    async with FakeSglang(SglangConfig(version="0.5.10")) as fake:
        assert ((await load(Api(session, fake.url), "a", path))[0] == 200) is ("DoRA" in said)


@pytest.mark.parametrize(("version", "ready"), [("0.5.23", 503), ("0.5.6", 404)])
async def test_sglang_listens_before_it_is_ready(session: aiohttp.ClientSession, version: str, ready: int) -> None:
    """While it warms up the health routes answer 503 and the listing answers; /ready is in 0.5.23 and not in 0.5.6."""
    async with FakeSglang(SglangConfig(warmup=60, version=version)) as fake:
        api = Api(session, fake.url)
        assert (await api.get("/health")).status == 503
        assert (await api.get("/ready")).status == ready
        assert (await api.get("/v1/models")).status == 200


async def test_sglang_health_generates_a_token_and_waits_a_second(session: aiohttp.ClientSession) -> None:
    """Unlike vLLM's, it goes through the engine."""
    async with FakeSglang() as fake:
        began = asyncio.get_running_loop().time()
        assert (await Api(session, fake.url).get("/health")).status == 200
        assert asyncio.get_running_loop().time() - began >= 1.0
        assert fake.generated == 1


@pytest.mark.parametrize(
    ("keys", "given", "listing", "loading"),
    [
        ((None, None), None, 200, 200),
        (("a", None), None, 401, 401),
        (("a", None), "a", 200, 200),
        (("a", "b"), "a", 200, 401),
        (("a", "b"), "b", 401, 200),
        ((None, "b"), None, 200, 401),
    ],
)
async def test_sglang_has_two_keys(
    session: aiohttp.ClientSession,
    keys: tuple[str | None, str | None],
    given: str | None,
    listing: int,
    loading: int,
) -> None:
    """With an admin key only that one loads, and the API key does all the rest; the probes are open."""
    config = SglangConfig(check_files=False, api_key=keys[0], admin_api_key=keys[1])
    async with FakeSglang(config) as fake:
        api = Api(session, fake.url, given)
        assert (await api.get("/v1/models")).status == listing
        assert (await api.ask("POST", LOAD, body={"lora_name": "a", "lora_path": "/a"})).status == loading
        assert (await Api(session, fake.url).get("/ready")).status == 200


async def test_rust_frontend_answers_as_its_source_says(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    """Real paths, allowed prefixes, string codes, no permission in the cards, no start time, empty refusals."""
    folder = write_adapter(tmp_path / "store" / "v1")
    (tmp_path / "link").symlink_to(folder)
    async with FakeVllm(FakeConfig(rust=True, allowed_path_prefixes=(str(tmp_path / "store"),))) as fake:
        api = Api(session, fake.url)
        assert (await api.load("sql", tmp_path / "link")).status == 200
        base, card = await api.cards()
        assert base.keys() == card.keys() == {"id", "object", "created", "owned_by", "root", "parent", "max_model_len"}
        assert (card["root"], card["parent"], card["owned_by"]) == (str(folder), "base", "vllm-frontend-rs")
        again = await api.load("sql", tmp_path / "link")
        assert (again.status, again.json()["error"]["code"]) == (400, "invalid_request_error")
        outside = await api.load("other", tmp_path)
        assert outside.status == 400
        assert (
            outside.json()["error"]["message"] == "Local LoRA adapter path is outside the configured allowed prefixes."
        )
        unknown = await api.unload("nobody")
        assert (unknown.status, unknown.json()["error"]["code"]) == (404, "model_not_found")
        absent, wrong = await api.get("/no-such-route"), await api.get("/v1/load_lora_adapter")
        assert (absent.status, absent.text, wrong.status, wrong.text) == (404, "", 405, "")
        assert "process_start_time_seconds" not in (await api.get("/metrics")).text


async def test_rust_frontend_takes_no_local_path_unless_prefixes_are_set(session: aiohttp.ClientSession) -> None:
    """A hub id is not concerned."""
    async with FakeVllm(FakeConfig(rust=True, check_files=False)) as fake:
        api = Api(session, fake.url)
        refused = await api.load("sql", "/adapters/sql")
        assert refused.status == 400
        assert "VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES" in refused.json()["error"]["message"]
        assert (await api.load("hub", "org/sql")).status == 200


@pytest.mark.looptime
async def test_rust_frontend_closes_a_silent_connection_and_the_python_one_does_not() -> None:
    """Its end says nothing of the server's."""
    for rust, closed in ((True, True), (False, False)):
        async with FakeVllm(FakeConfig(rust=rust)) as fake:
            reader, writer = await asyncio.open_connection("127.0.0.1", fake.port)
            await asyncio.sleep(6)
            assert reader.at_eof() is closed
            writer.close()


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("fake", [FakeVllm, FakeSglang])
async def test_a_connection_that_comes_as_the_server_dies_ends_with_it(
    fake: type[FakeVllm | FakeSglang], turns: int
) -> None:
    """As the kernel sees to it for a process: no connection is left open by a life that is over."""
    with socket.socket() as caller:
        caller.settimeout(0)
        server = fake()
        await server.start()
        # It is in the backlog now: the server's loop hears of it while it is being killed.
        caller.connect_ex(("127.0.0.1", server.port))
        for _ in range(turns):
            await asyncio.sleep(0)
        await server.kill()
        async with asyncio.timeout(5):
            with suppress(ConnectionResetError):
                assert await asyncio.get_running_loop().sock_recv(caller, 1) == b""
