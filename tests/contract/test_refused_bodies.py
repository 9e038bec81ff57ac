from __future__ import annotations

import json

import pytest

from tests.contract.asking import LOAD, UNLOAD
from tests.contract.conftest import Folders
from tests.contract.transcript import HeardApi

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]

BODIES = [
    b"",
    b"null",
    b"{}",
    b'{"lora_name":"x"}',
    b'{"lora_path":"x"}',
    b'{"lora_name":null,"lora_path":"x"}',
    b'{"lora_name":"x","lora_path":5}',
    b'{"lora_name":"x","lora_path":["y"]}',
    b"[]",
    b"nojson",
]
FLAGS = [b'"maybe"', b"null"]


@pytest.mark.parametrize("data", BODIES, ids=[data.decode() for data in BODIES])
async def test_load_with_a_wrong_body(api: HeardApi, data: bytes) -> None:
    """A body of the wrong form answers 400 and names the field, in the framework's words."""
    reply = await api.ask("POST", LOAD, data=data)
    assert (reply.status, reply.headers["content-type"]) == (400, "application/json")
    assert reply.json()["error"]["code"] == 400


@pytest.mark.parametrize("flag", FLAGS, ids=[flag.decode() for flag in FLAGS])
async def test_load_in_place_of_neither_true_nor_false(api: HeardApi, flag: bytes) -> None:
    """A value that is no boolean is refused where the field is known, and ignored where it is not."""
    reply = await api.ask("POST", LOAD, data=b'{"lora_name":"x","lora_path":"y","load_inplace":' + flag + b"}")
    assert reply.status in (400, 404)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/vnd.x+json"])
async def test_load_with_another_content_type(api: HeardApi, folders: Folders, content_type: str) -> None:
    """Only application/json is taken, whatever the body holds."""
    body = json.dumps({"lora_name": "x", "lora_path": str(folders.whole)}).encode()
    reply = await api.ask("POST", LOAD, data=body, headers={"Content-Type": content_type})
    assert reply.status == 400


async def test_unload_without_a_name(api: HeardApi) -> None:
    """An empty name and a missing one are refused in different frames."""
    assert (await api.unload("")).status == 400
    assert (await api.ask("POST", UNLOAD, body={})).status == 400
