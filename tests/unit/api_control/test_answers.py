from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import aiohttp
import pytest

from lora_sidecar.api import control
from tests.support.http_client import Api, Reply
from tests.support.sidecar import eventually
from tests.unit.api_control.conftest import Guarded

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"

BODIES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("not-json", b"lora_name=chat"),
    ("cut-short", b'{"lora_name": "chat", "lora_pa'),
    ("not-utf-8", b'{"lora_name": "\xff"}'),
    ("null", b"null"),
    ("array", b'["chat"]'),
    ("text", b'"chat"'),
    ("number", b"5"),
    ("no-fields", b"{}"),
    ("no-path", b'{"lora_name": "chat"}'),
    ("no-name", b'{"lora_path": "/a"}'),
    ("null-fields", b'{"lora_name": null, "lora_path": null}'),
    ("number-fields", b'{"lora_name": 5, "lora_path": 1.5}'),
    ("list-fields", b'{"lora_name": ["chat"], "lora_path": {"a": 1}}'),
    ("empty-name", b'{"lora_name": "", "lora_path": "/a"}'),
    ("empty-path", b'{"lora_name": "chat", "lora_path": ""}'),
    ("flag-maybe", b'{"lora_name": "chat", "lora_path": "/a", "load_inplace": "maybe"}'),
    ("flag-number", b'{"lora_name": "chat", "lora_path": "/a", "is_3d_lora_weight": 7}'),
    ("flag-null", b'{"lora_name": "chat", "lora_path": "/a", "load_inplace": null}'),
    ("base-name", b'{"lora_name": "base", "lora_path": "/a"}'),
    ("taken-name", b'{"lora_name": "taken", "lora_path": "/elsewhere"}'),
]


def same(one: Reply, other: Reply) -> None:
    """Two answers are the same in all that a script reads."""
    assert (one.status, one.text) == (other.status, other.text)
    assert one.headers.get("content-type") == other.headers.get("content-type")


def alike(one: Reply, other: Reply) -> None:
    """Two refusals are the same in status, shape and type of error, and the first has a sentence of its own."""
    assert (one.status, one.headers["content-type"]) == (other.status, other.headers["content-type"])
    ours, theirs = one.json()["error"], other.json()["error"]
    assert ours.keys() == theirs.keys()
    assert (ours["type"], ours["code"]) == (theirs["type"], theirs["code"])
    assert ours["message"]
    if re.search(r"[a-z]$", theirs["param"] or ""):  # for broken JSON it is a place in it
        assert ours["param"] == theirs["param"]


@pytest.fixture
def engine(guarded: Guarded, session: aiohttp.ClientSession) -> Api:
    """A client of the fake server itself, which a contract holds to the real one."""
    guarded.servers["vllm"].adapters["taken"] = "/adapters/taken"
    return Api(session, guarded.servers["vllm"].url)


@pytest.mark.parametrize("body", [body for _, body in BODIES], ids=[name for name, _ in BODIES])
async def test_bad_body_of_a_load_is_answered_as_the_engine_answers_it(
    guarded: Guarded, engine: Api, body: bytes
) -> None:
    """Status, shape and type of error are the engine's own, and nothing is remembered."""
    api = Api(engine._session, guarded.url)
    headers = {"Content-Type": "application/json"}
    reply = await api.ask("POST", LOAD, data=body, headers=headers)

    alike(reply, await engine.ask("POST", LOAD, data=body, headers=headers))
    assert 400 <= reply.status < 500
    assert "chat" not in guarded.desired()


@pytest.mark.parametrize(
    "body", [body for _, body in BODIES if b"lora_name" not in body or b"[" in body or b"null" in body]
)
async def test_bad_body_of_an_unload_is_answered_as_the_engine_answers_it(
    guarded: Guarded, engine: Api, body: bytes
) -> None:
    """The same for unloads."""
    api = Api(engine._session, guarded.url)
    alike(await api.ask("POST", UNLOAD, data=body), await engine.ask("POST", UNLOAD, data=body))


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "nonsense"],
)
async def test_other_content_type_is_refused(guarded: Guarded, engine: Api, content_type: str) -> None:
    """Only JSON is taken, as the engine does; a web page cannot send that to another origin unasked."""
    body = b'{"lora_name": "chat", "lora_path": "/a"}'
    api, headers = Api(engine._session, guarded.url), {"Content-Type": content_type}
    reply = await api.ask("POST", LOAD, data=body, headers=headers)

    alike(reply, await engine.ask("POST", LOAD, data=body, headers=headers))
    assert reply.status == 400
    assert "chat" not in guarded.desired()


@pytest.mark.parametrize("path", [LOAD, UNLOAD, "/v1/pause", "/v1/resume"])
async def test_every_post_says_that_it_is_json(api: Api, guarded: Guarded, path: str) -> None:
    """A form of a web page can send neither of them, and a pause that holds is not lifted."""
    assert (await api.ask("POST", "/v1/pause", body={"reason": "moving the disk"})).status == 200
    headers = {"Content-Type": "text/plain"}
    body = b'{"lora_name": "chat", "lora_path": "/a", "reason": "another"}'
    reply = await api.ask("POST", path, data=body, headers=headers)

    assert (reply.status, reply.json()["error"]["type"]) == (400, "Bad Request")
    assert (await api.get("/v1/pause")).json()["servers"][0]["reason"] == "moving the disk"
    assert guarded.desired() == {}


@pytest.mark.parametrize("flag", [False, True, 0, 1, "no", "yes", "True", "off"])
async def test_flag_is_whatever_the_engine_takes_for_one(guarded: Guarded, engine: Api, flag: object) -> None:
    """A script that writes `yes` or 1 where the engine takes it is understood."""
    api = Api(engine._session, guarded.url)
    body = {"lora_name": "chat", "lora_path": "/a", "is_3d_lora_weight": flag}
    assert (await api.ask("POST", LOAD, body=body)).status == 200
    assert (await engine.load("past", "/a", is_3d_lora_weight=flag)).status == 200
    (status,) = guarded.board.statuses()
    meant = flag in (True, 1, "yes", "True")
    assert status.desired.adapters["chat"].is_3d_lora_weight is meant


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", LOAD), ("PUT", LOAD), ("DELETE", UNLOAD), ("POST", LOAD + "/"), ("GET", "/"), ("POST", "/v1/nothing")],
)
async def test_wrong_method_or_path_is_answered_as_the_engine_answers_it(
    guarded: Guarded, engine: Api, method: str, path: str
) -> None:
    """405, 404 and the redirect of a slash too many."""
    reply = await Api(engine._session, guarded.url).ask(method, path)
    other = await engine.ask(method, path)

    assert (reply.status, reply.text) == (other.status, other.text)
    assert reply.headers.get("allow") == other.headers.get("allow")


async def test_good_answers_are_the_engines_too(api: Api, guarded: Guarded, session: aiohttp.ClientSession) -> None:
    """A load and an unload through the port and past it give the same answers, header by header that matters."""
    engine = Api(session, guarded.servers["vllm"].url)
    extra: dict[str, Any] = {
        "load_inplace": False,
        "lora_int_id": 7,
        "unknown": {"field": []},
        "is_3d_lora_weight": "no",
    }
    through = await api.load("one", "/a", **extra)
    await api.unload("one")
    past = await engine.load("one", "/a", **extra)
    same(through, past)
    assert through.status == 200
    same(await api.load("one", "/a"), await engine.load("one", "/a"))
    removed = await api.unload("one")
    await engine.load("one", "/a")
    same(removed, await engine.unload("one"))
    same(await api.unload("one"), await engine.unload("one"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"lora_name": "a\nb"}, "lora_name"),
        ({"lora_name": "a\x00"}, "lora_name"),
        ({"lora_name": "\u202eevil"}, "lora_name"),
        ({"lora_name": "a" * 257}, "lora_name"),
        ({"lora_path": "/a\x1b[2J"}, "lora_path"),
        ({"lora_path": "/" + "a" * 4096}, "lora_path"),
        ({"load_inplace": True}, "load_inplace"),
        ({"load_inplace": "yes"}, "load_inplace"),
    ],
)
async def test_what_is_not_remembered_is_refused_with_the_reason(
    api: Api, guarded: Guarded, fields: dict[str, Any], param: str
) -> None:
    """Names that harm a log, texts without end and loads in place: 400 in the engine's frame, naming the field."""
    reply = await api.ask("POST", LOAD, body={"lora_name": "chat", "lora_path": "/a"} | fields)

    assert reply.status == 400
    assert (reply.json()["error"]["param"], reply.json()["error"]["type"]) == (param, "InvalidUserInput")
    assert param in reply.json()["error"]["message"]
    assert guarded.desired() == {}
    assert guarded.servers["vllm"].adapters == {}


async def test_body_that_is_too_large_is_refused(api: Api, guarded: Guarded) -> None:
    """Neither its length as declared nor what comes without one is read beyond the limit."""

    async def endless() -> Any:
        for _ in range(1000):
            yield b" " * 1024

    big = b'{"lora_name": "' + b"a" * control.BODY_CAP + b'"}'
    assert (await api.ask("POST", LOAD, data=big)).status == 413
    assert str(control.BODY_CAP) in (await api.ask("POST", LOAD, data=big)).json()["error"]["message"]
    async with aiohttp.ClientSession() as session:
        try:
            headers = {"Content-Type": "application/json"}
            async with session.post(guarded.url + LOAD, data=endless(), headers=headers) as response:
                assert response.status == 413
        except aiohttp.ClientConnectionError:
            pass  # closed while still being written to: refused all the same
    assert (await api.load("chat", "/a")).status == 200


async def test_packed_body_is_not_unpacked(api: Api) -> None:
    """A few bytes that would unpack to gigabytes are read as they are, and are no JSON."""
    reply = await api.ask("POST", LOAD, data=b"\x1f\x8b" + b"x" * 50, headers={"Content-Encoding": "gzip"})
    assert reply.status == 400


@pytest.mark.parametrize("depth", [100, 20_000])
async def test_deeply_nested_body_is_refused(api: Api, depth: int) -> None:
    """No document ends the port."""
    assert (await api.ask("POST", LOAD, data=b"[" * depth)).status == 400
    assert (await api.load("chat", "/a")).status == 200


async def test_slow_body_is_given_up(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not come is answered 408, and the port is free again."""
    monkeypatch.setattr(control, "BODY_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection(*guarded.control.addresses[0].split(":"))
    head = f"POST {LOAD} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    writer.write(head.encode() + b"{")
    assert b" 408 " in await reader.readline()
    writer.close()


async def test_silent_connections_are_closed(guarded: Guarded, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects and says nothing is shown out; whoever waits for an answer is not."""
    monkeypatch.setattr("lora_sidecar.api.listener.IDLE_SECONDS", 0.2)
    guarded.servers["vllm"].load_delay = 4
    waiting = asyncio.create_task(api.load("chat", "/a"))
    reader, writer = await asyncio.open_connection(*guarded.control.addresses[0].split(":"))
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()
    assert (await waiting).status == 200


@pytest.fixture
def few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control port that takes four connections."""
    monkeypatch.setattr(control, "CONNECTIONS", 4)


@pytest.mark.usefixtures("few_connections")
async def test_only_so_many_connections_and_requests(api: Api, guarded: Guarded) -> None:
    """Beyond the limits one is told so; who asks is let in before who says nothing; afterwards all is as before."""
    guarded.servers["vllm"].load_delay = 1
    waiting = [asyncio.create_task(api.load(f"a{n}", "/a")) for n in range(2)]
    await asyncio.sleep(0.3)
    busy = await api.load("b", "/a")
    assert (busy.status, busy.headers["retry-after"]) == (503, "1")
    silent = [await asyncio.open_connection(*guarded.control.addresses[0].split(":")) for _ in range(2)]
    assert (await api.get("/v1/adapters")).status == 503
    async with asyncio.timeout(5):
        assert await silent[0][0].read() == b""
    for _, writer in silent:
        writer.close()
    assert [(await one).status for one in waiting] == [200, 200]
    assert (await api.load("b", "/a")).status == 200


async def test_adapters_are_told_with_state_origin_and_since(api: Api, guarded: Guarded) -> None:
    """Everything that is remembered, and what was withdrawn, with the time as a date."""
    guarded.servers["vllm"].adapters["adopted"] = "/adapters/adopted"
    await api.load("chat", "/a")
    state = await guarded.state(api)
    found = {one["name"]: one for one in state["adapters"]}

    assert {name: (one["origin"], one["path"], one["state"], one["reason"]) for name, one in found.items()} == {
        "chat": ("requested", "/a", "listed", ""),
        "adopted": ("adopted", "/adapters/adopted", "listed", ""),
    }
    assert found["chat"]["since"].startswith("20")
    (server,) = state["servers"]
    assert (server["server"], server["state"], server["paused"], server["conditions"]) == ("vllm", "up", False, [])


async def test_pause_and_resume(api: Api, guarded: Guarded) -> None:
    """Paused with a reason, shown wherever one looks; loads are remembered meanwhile."""
    assert (await api.get("/v1/pause")).json() == {"servers": [{"server": "vllm", "paused": False, "reason": ""}]}
    paused = await api.ask("POST", "/v1/pause", body={"reason": "moving the disk"})
    assert paused.json() == {"servers": [{"server": "vllm", "paused": True, "reason": "moving the disk"}]}
    reply = await api.load("chat", "/a")
    assert (reply.status, "moving the disk" in reply.text) == (202, True)
    assert guarded.servers["vllm"].adapters == {}
    assert (await api.ask("POST", "/v1/resume", body={})).json()["servers"][0]["paused"] is False

    async def loaded() -> bool:
        return "chat" in guarded.servers["vllm"].adapters

    await eventually(loaded, "the load that was remembered")


@pytest.mark.parametrize(
    "body", [{"reason": 5}, {"reason": "a\nb"}, {"reason": "half \ud83d"}, {"reason": "a" * 501}, [], None]
)
async def test_bad_pause_is_refused(api: Api, body: object) -> None:
    """A reason that cannot be shown is no reason."""
    assert (await api.ask("POST", "/v1/pause", data=json.dumps(body).encode())).status == 400
    assert (await api.get("/v1/pause")).json()["servers"][0]["paused"] is False
