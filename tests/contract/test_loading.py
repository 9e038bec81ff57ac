from __future__ import annotations

import asyncio
import json

import pytest

from tests.contract.asking import LOAD, eventually, lists, raw_connection
from tests.contract.conftest import Folders
from tests.contract.transcript import HeardApi, Transcript
from tests.support.servers import RunningServer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


async def test_load_answers_plain_text_without_a_content_type(api: HeardApi, folders: Folders, name: str) -> None:
    """A load that worked answers 200 with a sentence and no content type."""
    reply = await api.load(name, folders.whole)
    assert (reply.status, reply.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
    assert "content-type" not in reply.headers


@pytest.mark.parametrize("second", ["whole", "other"])
async def test_load_of_a_loaded_name(api: HeardApi, folders: Folders, name: str, second: str) -> None:
    """A name that is loaded is refused whatever the path, and the first path stays."""
    assert (await api.load(name, folders.whole)).status == 200
    again = await api.load(name, {"whole": folders.whole, "other": folders.other}[second])
    assert again.status == 400
    assert "has already been loaded" in again.text
    assert (await api.listed())[name] == str(folders.whole)


async def test_load_in_place_replaces_the_path(api: HeardApi, folders: Folders, name: str) -> None:
    """With `load_inplace`, where it is known, a loaded name is loaded again, and its root becomes the new path."""
    assert (await api.load(name, folders.whole)).status == 200
    reply = await api.load(name, folders.other, load_inplace=True)
    root = (await api.listed())[name]
    assert (reply.status, root) in ((200, str(folders.other)), (400, str(folders.whole)))
    # The flag would stick to the adapter and have every step read the files again.
    assert (await api.unload(name)).status == 200


@pytest.mark.parametrize("fault", ["missing", "empty", "no_config"])
async def test_load_without_an_adapter_there(api: HeardApi, folders: Folders, name: str, fault: str) -> None:
    """A path with no adapter_config.json answers 404 in the error frame."""
    reply = await api.load(name, folders.broken[fault])
    assert reply.status == 404
    assert f"Loading lora {name} failed: No adapter found for " in reply.json()["error"]["message"]
    assert name not in await api.listed()


@pytest.mark.parametrize("path", ["no/such-repository", "no-such-folder", "/nonexistent/adapter", "~/no-such-adapter"])
async def test_load_from_where_nothing_is(api: HeardApi, name: str, path: str) -> None:
    """A repository that cannot be fetched, and a path outside the hidden folders, are named in the 404 as sent."""
    reply = await api.load(name, path)
    assert reply.status == 404
    assert f"Loading lora {name} failed: No adapter found for {path}" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "fault",
    [
        "no_weights",
        "truncated",
        "garbage",
        "empty_weights",
        "config_not_json",
        "config_empty",
        "config_a_list",
        "without_r",
        "without_r_and_alpha",
        "rank_64",
        "rank_zero",
        "dora",
        "bias",
        "dora_and_rank",
        "a_file",
        "unknown_module",
    ],
)
async def test_load_of_a_broken_adapter(api: HeardApi, folders: Folders, name: str, fault: str) -> None:
    """What the worker refuses is answered with the worker's own words, and nothing stays behind."""
    reply = await api.load(name, folders.broken[fault])
    assert reply.status in (400, 500)
    assert reply.json()["error"]["message"]
    assert name not in await api.listed()
    assert (await api.get("/health")).status == 200
    assert (await api.load(name, folders.whole)).status == 200


@pytest.mark.parametrize(("lora_name", "lora_path"), [("", "/x"), ("x", ""), ("", "")])
async def test_load_with_an_empty_field(api: HeardApi, lora_name: str, lora_path: str) -> None:
    """An empty name or path is refused before anything is read."""
    reply = await api.load(lora_name, lora_path)
    assert reply.status == 400
    assert reply.json()["error"]["message"] == "Both 'lora_name' and 'lora_path' must be provided."


async def test_load_under_the_name_of_the_base_model(api: HeardApi, folders: Folders) -> None:
    """Where the base model's name is not refused, the adapter is listed beside it, and can be unloaded."""
    reply = await api.load("base", folders.whole)
    assert reply.status in (200, 400)
    await api.get("/v1/models")
    assert (await api.complete("base")).status == 200
    assert (await api.unload("base")).status == {200: 200, 400: 404}[reply.status]


async def test_load_ignores_fields_that_it_does_not_know(api: HeardApi, folders: Folders, name: str) -> None:
    """More fields than the server knows do no harm, nor does a character set in the content type."""
    body = {"lora_name": name, "lora_path": str(folders.whole), "is_3d_lora_weight": False, "more": [1]}
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert (await api.ask("POST", LOAD, body=body, headers=headers)).status == 200


async def test_load_goes_on_after_its_client_hung_up(
    api: HeardApi, server: RunningServer, folders: Folders, name: str
) -> None:
    """A client that is gone before the answer still gets its adapter loaded."""
    body = json.dumps({"lora_name": name, "lora_path": str(folders.whole)}).encode()
    head = (
        f"POST {LOAD} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    async with raw_connection(server) as (_, writer):
        writer.write(head.encode() + body)
        await writer.drain()
    await eventually(lambda: lists(api.quiet, name), within=20)


async def test_loads_of_one_name_at_once(api: HeardApi, transcript: Transcript, folders: Folders, name: str) -> None:
    """Of several loads of one name that run at once, exactly one is taken."""
    replies = await asyncio.gather(*(api.quiet.load(name, folders.whole) for _ in range(4)))
    transcript.note("the answers", sorted(reply.text for reply in replies))
    assert sorted(reply.status for reply in replies) == [200, 400, 400, 400]
