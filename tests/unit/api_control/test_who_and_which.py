from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from lora_sidecar.api import token
from lora_sidecar.api.control import ControlServer
from lora_sidecar.config.process import ControlConfig
from lora_sidecar.core.errors import SidecarError
from tests.support.http_client import Api
from tests.support.sidecar import eventually
from tests.unit.api_control.conftest import Guarded, guarding

EVERYTHING = [
    ("POST", "/v1/load_lora_adapter", {"lora_name": "chat", "lora_path": "/a"}),
    ("POST", "/v1/unload_lora_adapter", {"lora_name": "kept"}),
    ("POST", "/v1/pause", {"reason": "x"}),
    ("POST", "/v1/resume", {}),
    ("GET", "/v1/adapters", None),
    ("GET", "/v1/pause", None),
    ("GET", "/v1/nothing", None),
    ("PATCH", "/v1/load_lora_adapter", None),
]


@pytest.fixture
async def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Guarded]:
    """One server with the adapter `kept`, and a token, which is read anew at every request."""
    monkeypatch.setattr(token, "_FRESH_SECONDS", 0.0)
    (tmp_path / "token").write_text("s3cret-token\n")
    (tmp_path / "checkpoints").mkdir()
    async with guarding(tmp_path / "checkpoints", ("vllm",), tmp_path / "token") as guarded:
        guarded.servers["vllm"].adapters["kept"] = "/kept"

        async def adopted() -> bool:
            return "kept" in guarded.desired()

        await eventually(adopted, "the adoption of an adapter")
        yield guarded


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer s3cret-toke", "Bearer s3cret-token2", "s3cret-token",
     "Basic s3cret-token", "Bearer S3CRET-TOKEN"],
)  # fmt: skip
async def test_without_the_token_nothing_is_changed(
    locked: Guarded, session: aiohttp.ClientSession, header: str | None
) -> None:
    """401 in the engine's words for every route, and neither the engine nor the memory hears of it."""
    api = Api(session, locked.url)
    headers = {} if header is None else {"Authorization": header}
    for method, path, body in EVERYTHING:
        reply = await api.ask(method, path, body=body, headers=headers)
        assert (reply.status, reply.text) == (401, '{"error":"Unauthorized"}'), path
    assert locked.desired() == locked.servers["vllm"].adapters == {"kept": "/kept"}
    assert not [request for request in locked.servers["vllm"].requests if request.method == "POST"]
    (status,) = locked.board.statuses()
    assert status.desired.paused is None


async def test_with_the_token_all_is_done(locked: Guarded, session: aiohttp.ClientSession) -> None:
    """The scheme's case does not matter, as with the engine."""
    for scheme, name in (("Bearer", "a"), ("bearer", "b")):
        body = {"lora_name": name, "lora_path": "/a"}
        headers = {"Authorization": f"{scheme} s3cret-token"}
        assert (await Api(session, locked.url).ask("POST", EVERYTHING[0][1], body=body, headers=headers)).status == 200


async def test_token_that_rotates_is_taken_over(
    locked: Guarded, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """The new one is let in and the old one is not, without a restart."""
    (tmp_path / "token").write_text("another")
    assert (await Api(session, locked.url, "s3cret-token").get("/v1/adapters")).status == 401
    assert (await Api(session, locked.url, "another").get("/v1/adapters")).status == 200


@pytest.mark.parametrize("content", [None, b"", b"\n", b"two\nlines", b"\xff\xfe", b"with space"])
async def test_token_that_cannot_be_read_lets_nobody_in(
    locked: Guarded, session: aiohttp.ClientSession, tmp_path: Path, content: bytes | None
) -> None:
    """Not even with an empty token: 503 says that the file is at fault, and not what it holds."""
    if content is None:
        (tmp_path / "token").unlink()
    else:
        (tmp_path / "token").write_bytes(content)
    for given in ("s3cret-token", "", "two"):
        reply = await Api(session, locked.url, given).load("chat", "/a")
        assert reply.status == 503
        assert "control.token_file cannot be used" in reply.json()["error"]["message"]
        assert "two" not in reply.text.replace("two-", "")
    assert "chat" not in locked.desired()


async def test_token_file_that_was_a_pipe_once_is_read_when_it_is_a_file(
    locked: Guarded, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Nobody waits for a writer that never comes, and the file that takes the pipe's place lets people in."""
    (tmp_path / "token").unlink()
    os.mkfifo(tmp_path / "token")
    refused = await Api(session, locked.url, "s3cret-token").get("/v1/adapters", within=5)
    assert (refused.status, "no regular file" in refused.text) == (503, True)
    (tmp_path / "new").write_text("another")
    (tmp_path / "new").rename(tmp_path / "token")
    assert (await Api(session, locked.url, "another").get("/v1/adapters", within=5)).status == 200


async def test_one_of_several_servers_is_named_by_path_or_query(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """Each load reaches the server that it names, and no other."""
    async with guarding(tmp_path, ("one", "two")) as guarded:
        by_path, by_query = Api(session, f"{guarded.url}/servers/one"), Api(session, guarded.url)
        assert (await by_path.load("a", "/a")).status == 200
        body = {"lora_name": "b", "lora_path": "/b"}
        assert (await by_query.ask("POST", "/v1/load_lora_adapter?server=two", body=body)).status == 200
        assert (guarded.servers["one"].adapters, guarded.servers["two"].adapters) == ({"a": "/a"}, {"b": "/b"})
        assert [one["name"] for one in (await by_path.get("/v1/adapters")).json()["adapters"]] == ["a"]
        assert len((await by_query.get("/v1/adapters")).json()["adapters"]) == 2
        assert (await by_path.ask("POST", "/v1/pause", body={"reason": "x"})).status == 200
        told = {one["server"]: one["paused"] for one in (await by_query.get("/v1/pause")).json()["servers"]}
        assert told == {"one": True, "two": False}
        await by_query.ask("POST", "/v1/pause", body={})
        told = {one["server"]: one["paused"] for one in (await by_query.get("/v1/pause")).json()["servers"]}
        assert told == {"one": True, "two": True}


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/v1/load_lora_adapter", 400, "one, two"),
        ("/v1/load_lora_adapter?server=three", 404, "one, two"),
        ("/servers/three/v1/load_lora_adapter", 404, "one, two"),
        ("/servers/one/v1/load_lora_adapter?server=two", 400, "different servers"),
    ],
)
async def test_unclear_server_is_refused(
    tmp_path: Path, session: aiohttp.ClientSession, path: str, status: int, says: str
) -> None:
    """With several servers a request says which it means, and the answer says which there are."""
    async with guarding(tmp_path, ("one", "two")) as guarded:
        reply = await Api(session, guarded.url).ask("POST", path, body={"lora_name": "a", "lora_path": "/a"})
        assert (reply.status, says in reply.json()["error"]["message"]) == (status, True)
        assert guarded.desired("one") == guarded.desired("two") == {}


async def test_port_that_is_taken_is_an_error_with_the_way_out(guarded: Guarded) -> None:
    """It names the address and the key to change."""
    loop = asyncio.get_running_loop()
    taken = ControlConfig(guarded.control.addresses[0])
    with pytest.raises(SidecarError, match=r"control\.bind"):
        await ControlServer(taken, lambda: guarded.board.snapshot(0.0, 1.0), {}, loop.time, lambda: 1.0).start()
