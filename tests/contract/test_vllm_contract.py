from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from tests.contract.conftest import KEY, Folders, Opening
from tests.support.http_client import Api, Reply
from tests.support.servers import RunningServer

# A real server's start is part of the first test that needs it.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

LOAD = "/v1/load_lora_adapter"
UNLOAD = "/v1/unload_lora_adapter"
DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
NOT_FOUND = {"detail": "Not Found"}
MODULES = "down_proj|embed_tokens|gate_proj|k_proj|lm_head|o_proj|q_proj|up_proj|v_proj"


def error(status: int, kind: str, message: str, param: str | None = None) -> dict[str, object]:
    """The error frame of vLLM."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def worker_failed(why: str) -> str:
    """What the server says when the worker refused an adapter."""
    return (
        f"Call to add_lora method failed: Worker failed with error '{why}',"
        " please check the stack trace above for the root cause"
    )


def shape(value: object) -> object:
    """The keys and the types of a JSON value, without its contents."""
    match value:
        case dict():
            return {key: shape(part) for key, part in value.items()}
        case list():
            return [shape(part) for part in value]
        case _:
            return type(value).__name__


def expect(reply: Reply, status: int, body: object) -> None:
    """The reply has this status and exactly this JSON body, declared as JSON."""
    assert (reply.status, reply.json()) == (status, body)
    assert reply.headers["content-type"] == "application/json"


@asynccontextmanager
async def raw_connection(server: RunningServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare TCP connection to the server, closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def eventually(holds: Callable[[], Awaitable[bool]], within: float) -> None:
    """Return once it holds. Raises `TimeoutError` after `within` seconds."""
    async with asyncio.timeout(within):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.02)


async def lists(api: Api, name: str) -> bool:
    """Whether the server lists the adapter."""
    return name in await api.listed()


async def unhealthy(api: Api) -> bool:
    """Whether the server answers /health, and not with 200."""
    return (await api.get("/health")).status != 200


async def refuses(server: RunningServer) -> bool:
    """Whether the server's port takes no connection."""
    try:
        async with raw_connection(server):
            return False
    except ConnectionRefusedError:
        return True


# Opening


async def test_port_refuses_until_everything_answers_at_once(opened: tuple[RunningServer, Opening]) -> None:
    """The first accepted connection is the moment at which health, listing and loading all work."""
    _, opening = opened
    assert opening.refused > 0
    assert (opening.health, opening.models, opening.load) == (200, 200, 200)


# What tells about the server


async def test_health_is_empty(api: Api) -> None:
    """A living server answers /health with 200, no body and no content type."""
    reply = await api.get("/health")
    assert (reply.status, reply.text) == (200, "")
    assert "content-type" not in reply.headers
    assert reply.headers["server"] == "uvicorn"


async def test_version_is_a_string(api: Api) -> None:
    """/version names the version that this suite is about."""
    expect(await api.get("/version"), 200, {"version": "0.32.0"})


async def test_answers_of_http_1_1_have_no_connection_header(server: RunningServer) -> None:
    """A connection is kept without a word, and the headers are those of uvicorn."""
    async with raw_connection(server) as (reader, writer):
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    names = {line.partition(":")[0] for line in head.split("\r\n")[1:] if line}
    assert names == {"date", "server", "content-length", "content-type", "vary"}


async def test_metrics_name_the_start_of_the_process_once_and_for_good(api: Api) -> None:
    """`process_start_time_seconds` stands there once and does not change while the process lives."""
    samples = [
        re.findall(r"^process_start_time_seconds (\S+)$", (await api.get("/metrics")).text, re.MULTILINE)
        for _ in range(2)
    ]
    assert len(samples[0]) == 1
    assert samples[0] == samples[1]
    assert re.fullmatch(r"[1-9]\.\d{1,11}e\+09", samples[0][0])


async def test_metrics_count_the_requests_that_run_and_wait(api: Api) -> None:
    """A server without traffic says 0 to both: that is what allows several loads in flight."""
    text = (await api.get("/metrics")).text
    counts = re.findall(
        r'^vllm:num_requests_(running|waiting)\{engine="0",model_name="base"\} (\S+)$', text, re.MULTILINE
    )
    assert sorted(counts) == [("running", "0.0"), ("waiting", "0.0")]


async def test_metrics_say_that_the_engine_is_awake(api: Api) -> None:
    """The sleep state is one family with a series for each state, and `awake` is 1."""
    reply = await api.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
    lines = [line for line in reply.text.splitlines() if line.startswith("vllm:engine_sleep_state{")]
    labels = 'vllm:engine_sleep_state{engine="0",model_name="base",sleep_state='
    assert lines == [f'{labels}"awake"}} 1.0', f'{labels}"weights_offloaded"}} 0.0', f'{labels}"discard_all"}} 0.0']
    assert "# TYPE vllm:engine_sleep_state gauge" in reply.text


async def test_sleep_routes_are_absent_without_developer_mode(api: Api) -> None:
    """/is_sleeping, /sleep and /wake_up are unknown paths on a server that was not started in developer mode."""
    expect(await api.get("/is_sleeping"), 404, NOT_FOUND)
    expect(await api.ask("POST", "/sleep?level=1"), 404, NOT_FOUND)
    expect(await api.ask("POST", "/wake_up"), 404, NOT_FOUND)


# The listing


async def test_base_card(api: Api, model: Path) -> None:
    """The base model's card comes first, has no parent, and its root is the model as it was given."""
    listing = (await api.get("/v1/models")).json()
    assert listing["object"] == "list"
    card = listing["data"][0]
    assert (card["id"], card["root"], card["parent"], card["max_model_len"]) == ("base", str(model), None, 512)
    assert (card["object"], card["owned_by"]) == ("model", "vllm")


async def test_adapter_card_has_the_shape_of_the_base_card(api: Api, folders: Folders, name: str) -> None:
    """An adapter's card has the base card's keys and types, except for its parent and its missing length."""
    assert (await api.load(name, folders.whole)).status == 200
    base, *_, adapter = await api.cards()
    assert (adapter["id"], adapter["root"], adapter["parent"]) == (name, str(folders.whole), "base")
    assert adapter["max_model_len"] is None
    assert shape(base | {"parent": "base", "max_model_len": None}) == shape(adapter)
    assert list(base) == list(adapter)
    assert shape(adapter["permission"]) == [
        {
            "id": "str",
            "object": "str",
            "created": "int",
            "allow_create_engine": "bool",
            "allow_sampling": "bool",
            "allow_logprobs": "bool",
            "allow_search_indices": "bool",
            "allow_view": "bool",
            "allow_fine_tuning": "bool",
            "organization": "str",
            "group": "NoneType",
            "is_blocking": "bool",
        }
    ]
    assert isinstance(adapter["created"], int)
    assert adapter["permission"][0]["id"].startswith("modelperm-")


async def test_no_two_listings_are_equal(api: Api) -> None:
    """Permission ids are new in every listing, so bodies cannot be compared."""
    first, second = await api.cards(), await api.cards()
    assert [card["permission"][0]["id"] for card in first] != [card["permission"][0]["id"] for card in second]


async def test_root_is_the_path_as_it_was_sent(api: Api, folders: Folders, name: str) -> None:
    """The root in the listing keeps a trailing slash and a detour."""
    sent = f"{folders.other}/../whole/"
    assert (await api.load(name, sent)).status == 200
    assert (await api.listed())[name] == sent


async def test_adapters_are_listed_in_the_order_of_their_loads(api: Api, folders: Folders, name: str) -> None:
    """Later loads stand further down, and a reload moves an adapter to the end."""
    names = [f"{name}-{letter}" for letter in "cab"]
    for each in names:
        assert (await api.load(each, folders.whole)).status == 200
    assert [each for each in await api.listed() if each in names] == names
    assert (await api.unload(names[0])).status == 200
    assert (await api.load(names[0], folders.whole)).status == 200
    assert [each for each in await api.listed() if each in names] == [*names[1:], names[0]]


# Loading


async def test_load_answers_plain_text_without_a_content_type(api: Api, folders: Folders, name: str) -> None:
    """A load that worked answers 200 with a sentence and no content type."""
    reply = await api.load(name, folders.whole)
    assert (reply.status, reply.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
    assert "content-type" not in reply.headers


@pytest.mark.parametrize("second", ["whole", "other"])
async def test_load_of_a_loaded_name(api: Api, folders: Folders, name: str, second: str) -> None:
    """A name that is loaded is refused whatever the path, and the first path stays."""
    assert (await api.load(name, folders.whole)).status == 200
    sentence = (
        f"The lora adapter '{name}' has already been loaded."
        " If you want to load the adapter in place, set 'load_inplace' to True."
    )
    path = {"whole": folders.whole, "other": folders.other}[second]
    expect(await api.load(name, path), 400, error(400, "InvalidUserInput", sentence))
    assert (await api.listed())[name] == str(folders.whole)


async def test_load_in_place_replaces_the_path(api: Api, folders: Folders, name: str) -> None:
    """With `load_inplace` a loaded name is loaded again, and its root becomes the new path."""
    assert (await api.load(name, folders.whole)).status == 200
    assert (await api.load(name, folders.other, load_inplace=True)).status == 200
    assert (await api.listed())[name] == str(folders.other)
    # The flag would stick to the adapter and have every step read the files again.
    assert (await api.unload(name)).status == 200


@pytest.mark.parametrize("fault", ["missing", "empty", "no_config"])
async def test_load_without_an_adapter_there(api: Api, folders: Folders, name: str, fault: str) -> None:
    """A path with no adapter_config.json answers 404 in the error frame, with the path hidden."""
    sentence = f"Loading lora {name} failed: No adapter found for <path>"
    expect(await api.load(name, folders.broken[fault]), 404, error(404, "NotFoundError", sentence))
    assert name not in await api.listed()


@pytest.mark.parametrize("path", ["no/such-repository", "no-such-folder", "/nonexistent/adapter", "~/no-such-adapter"])
async def test_load_from_where_nothing_is(api: Api, name: str, path: str) -> None:
    """A repository that cannot be fetched, and a path outside the hidden folders, are named in the 404 as sent."""
    sentence = f"Loading lora {name} failed: No adapter found for {path}"
    expect(await api.load(name, path), 404, error(404, "NotFoundError", sentence))


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("no_weights", "<path> doesn't contain tensors"),
        ("truncated", "Error while deserializing header: incomplete metadata, file not fully covered"),
        ("garbage", "Error while deserializing header: header too large"),
        ("empty_weights", "Error while deserializing header: header too small"),
        ("config_not_json", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("config_empty", "Expecting value: line 1 column 1 (char 0)"),
        ("config_a_list", "list indices must be integers or slices, not str"),
        ("without_r", "Missing required configuration fields: {'r'}"),
        ("rank_64", "LoRA rank 64 is greater than max_lora_rank 16."),
        ("rank_zero", "LoRA rank `r` must be a positive integer, got 0."),
        ("dora", "vLLM does not yet support DoRA."),
        ("bias", "Adapter bias is not supported."),
        (
            "dora_and_rank",
            (
                "vLLM does not yet support DoRA. LoRA rank 64 is greater than max_lora_rank 16."
                " Adapter bias is not supported."
            ),
        ),
        ("a_file", "[Errno 20] Not a directory: '<path>'"),
    ],
)
async def test_load_of_a_broken_adapter(api: Api, folders: Folders, name: str, fault: str, why: str) -> None:
    """What the worker refuses answers 500 with the worker's own words, and nothing stays behind."""
    expect(await api.load(name, folders.broken[fault]), 500, error(500, "InternalServerError", worker_failed(why)))
    assert name not in await api.listed()
    assert (await api.get("/health")).status == 200
    assert (await api.load(name, folders.whole)).status == 200


async def test_load_of_an_unknown_target_module(api: Api, folders: Folders, name: str) -> None:
    """Weights for a layer that the model does not have are refused with both lists; their order is arbitrary."""
    reply = await api.load(name, folders.broken["unknown_module"])
    assert reply.status == 500
    said = reply.json()["error"]["message"]
    modules = re.search(r"expected target modules in \{([^}]*)\}", said)
    assert modules is not None
    assert set(modules[1].split(", ")) == {f"'{module}'" for module in MODULES.split("|")}
    received = ["model.layers.0.self_attn.z_proj"] * 2
    expected = (
        f"While loading <path>, expected target modules in {{{modules[1]}}} but received {received}."
        " Please verify that the loaded LoRA module is correct"
    )
    assert said == worker_failed(expected)


async def test_load_without_two_fields_of_the_config(api: Api, folders: Folders, name: str) -> None:
    """Missing fields are named together, in any order."""
    reply = await api.load(name, folders.broken["without_r_and_alpha"])
    orders = ("{'r', 'lora_alpha'}", "{'lora_alpha', 'r'}")
    sentences = [worker_failed(f"Missing required configuration fields: {order}") for order in orders]
    assert reply.json()["error"]["message"] in sentences


@pytest.mark.parametrize(("lora_name", "lora_path"), [("", "/x"), ("x", ""), ("", "")])
async def test_load_with_an_empty_field(api: Api, lora_name: str, lora_path: str) -> None:
    """An empty name or path is refused before anything is read."""
    sentence = "Both 'lora_name' and 'lora_path' must be provided."
    expect(await api.load(lora_name, lora_path), 400, error(400, "InvalidUserInput", sentence))


async def test_load_under_the_name_of_the_base_model(api: Api, folders: Folders) -> None:
    """The base model's name is taken."""
    sentence = "The lora adapter 'base' conflicts with a served base model."
    expect(await api.load("base", folders.whole), 400, error(400, "InvalidUserInput", sentence))


BODY_REFUSALS = [
    (b"", "body", "missing", "Field required", "None"),
    (b"null", "body", "missing", "Field required", "None"),
    (b'{"lora_name":"x"}', "body.lora_path", "missing", "Field required", "<dict of 1 items>"),
    (b'{"lora_path":"x"}', "body.lora_name", "missing", "Field required", "<dict of 1 items>"),
    (b'{"lora_name":null,"lora_path":"x"}', "body.lora_name", "string_type", "Input should be a valid string", "None"),
    (b'{"lora_name":"x","lora_path":5}', "body.lora_path", "string_type", "Input should be a valid string", "5"),
    (
        b'{"lora_name":"x","lora_path":["y"]}',
        "body.lora_path",
        "string_type",
        "Input should be a valid string",
        "<list of 1 items>",
    ),
    (
        b"[]",
        "body",
        "model_attributes_type",
        "Input should be a valid dictionary or object to extract fields from",
        "<list of 0 items>",
    ),
    (
        b'{"lora_name":"x","lora_path":"y","load_inplace":"maybe"}',
        "body.load_inplace",
        "bool_parsing",
        "Input should be a valid boolean, unable to interpret input",
        "maybe",
    ),
    (
        b'{"lora_name":"x","lora_path":"y","load_inplace":null}',
        "body.load_inplace",
        "bool_type",
        "Input should be a valid boolean",
        "None",
    ),
]


@pytest.mark.parametrize(
    ("data", "where", "kind_of", "said", "shown"), BODY_REFUSALS, ids=[data.decode() for data, *_ in BODY_REFUSALS]
)
async def test_load_with_a_wrong_body(api: Api, data: bytes, where: str, kind_of: str, said: str, shown: str) -> None:
    """A body of the wrong form answers 400 and names the field, in the framework's words."""
    problem = {"type": kind_of, "loc": where, "msg": said, "input": shown}
    message = f"1 validation error:\n  {problem}"
    expect(await api.ask("POST", LOAD, data=data), 400, error(400, "Bad Request", message, where))


async def test_load_without_any_field(api: Api) -> None:
    """Every missing field has a line of its own, and the first one is the parameter."""
    lines = "".join(
        f"\n  {{'type': 'missing', 'loc': 'body.{field}', 'msg': 'Field required', 'input': '<dict of 0 items>'}}"
        for field in ("lora_name", "lora_path")
    )
    expected = error(400, "Bad Request", f"2 validation errors:{lines}", "body.lora_name")
    expect(await api.ask("POST", LOAD, body={}), 400, expected)


async def test_load_with_a_body_that_is_not_json(api: Api) -> None:
    """Broken JSON answers 400 with the place at which it broke."""
    problem = {
        "type": "json_invalid",
        "loc": "body.0",
        "msg": "JSON decode error",
        "input": "<dict of 0 items>",
        "ctx": {"error": "Expecting value"},
    }
    expected = error(400, "Bad Request", f"1 validation error:\n  {problem}", "body.0")
    expect(await api.ask("POST", LOAD, data=b"nojson"), 400, expected)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/vnd.x+json"])
async def test_load_with_another_content_type(api: Api, folders: Folders, content_type: str) -> None:
    """Only application/json is taken, whatever the body holds."""
    body = json.dumps({"lora_name": "x", "lora_path": str(folders.whole)}).encode()
    reply = await api.ask("POST", LOAD, data=body, headers={"Content-Type": content_type})
    sentence = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    expect(reply, 400, error(400, "Bad Request", sentence))


async def test_load_ignores_fields_that_it_does_not_know(api: Api, folders: Folders, name: str) -> None:
    """More fields than the server knows do no harm, nor does a character set in the content type."""
    body = {"lora_name": name, "lora_path": str(folders.whole), "is_3d_lora_weight": False, "more": [1]}
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert (await api.ask("POST", LOAD, body=body, headers=headers)).status == 200


async def test_other_methods_on_the_load_route(api: Api) -> None:
    """The load and unload routes take POST alone."""
    for path in (LOAD, UNLOAD):
        reply = await api.get(path)
        expect(reply, 405, {"detail": "Method Not Allowed"})
        assert reply.headers["allow"] == "POST"


async def test_slash_at_the_end_of_a_path(api: Api) -> None:
    """A path with a slash too many is redirected to the right one."""
    reply = await api.get("/v1/models/")
    assert (reply.status, reply.text, reply.headers["location"]) == (307, "", f"{api.url}/v1/models")


async def test_load_goes_on_after_its_client_hung_up(
    api: Api, server: RunningServer, folders: Folders, name: str
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
    await eventually(lambda: lists(api, name), within=20)


async def test_loads_of_one_name_at_once(api: Api, folders: Folders, name: str) -> None:
    """Of several loads of one name that run at once, exactly one is taken."""
    replies = await asyncio.gather(*(api.load(name, folders.whole) for _ in range(4)))
    assert sorted(reply.status for reply in replies) == [200, 400, 400, 400]


# Unloading


async def test_unload_answers_plain_text(api: Api, folders: Folders, name: str) -> None:
    """An unload answers 200 with a sentence and no content type, and the adapter leaves the listing."""
    assert (await api.load(name, folders.whole)).status == 200
    reply = await api.unload(name)
    assert (reply.status, reply.text) == (200, f"Success: LoRA adapter '{name}' removed successfully.")
    assert "content-type" not in reply.headers
    assert name not in await api.listed()


@pytest.mark.parametrize("unknown", ["never-loaded", "base"])
async def test_unload_of_what_is_not_loaded(api: Api, unknown: str) -> None:
    """A name that is not an adapter's, the base model's included, cannot be found."""
    sentence = f"The lora adapter '{unknown}' cannot be found."
    expect(await api.unload(unknown), 404, error(404, "NotFoundError", sentence))


async def test_unload_without_a_name(api: Api) -> None:
    """An empty name and a missing one are refused in different frames."""
    sentence = "'lora_name' needs to be provided to unload a LoRA adapter."
    expect(await api.unload(""), 400, error(400, "InvalidUserInput", sentence))
    problem = {"type": "missing", "loc": "body.lora_name", "msg": "Field required", "input": "<dict of 0 items>"}
    expected = error(400, "Bad Request", f"1 validation error:\n  {problem}", "body.lora_name")
    expect(await api.ask("POST", UNLOAD, body={}), 400, expected)


# Answering


async def test_completion_of_base_and_adapter(api: Api, folders: Folders, name: str) -> None:
    """The base model and a loaded adapter answer under their own names, in one shape."""
    assert (await api.load(name, folders.whole)).status == 200
    base, adapter = await api.complete("base"), await api.complete(name)
    assert (base.status, adapter.status) == (200, 200)
    assert (base.json()["model"], adapter.json()["model"]) == ("base", name)
    assert shape(base.json()) == shape(adapter.json())
    assert shape(base.json()) == {
        "id": "str",
        "object": "str",
        "created": "int",
        "model": "str",
        "choices": [
            {
                "index": "int",
                "text": "str",
                "logprobs": "NoneType",
                "finish_reason": "str",
                "stop_reason": "NoneType",
                "token_ids": "NoneType",
                "prompt_logprobs": "NoneType",
                "prompt_token_ids": "NoneType",
                "routed_experts": "NoneType",
            }
        ],
        "service_tier": "NoneType",
        "system_fingerprint": "str",
        "usage": {
            "prompt_tokens": "int",
            "total_tokens": "int",
            "completion_tokens": "int",
            "prompt_tokens_details": "NoneType",
            "completion_tokens_details": "NoneType",
        },
        "kv_transfer_params": "NoneType",
        "ec_transfer_params": "NoneType",
        "metrics": "NoneType",
    }
    assert base.json()["usage"]["completion_tokens"] == 2


async def test_log_probabilities_of_one_token(api: Api, folders: Folders, name: str) -> None:
    """One token with its likeliest alternatives, to many digits: the same twice, and others for an adapter."""
    assert (await api.load(name, folders.whole)).status == 200
    body = {"prompt": "The capital of", "max_tokens": 1, "temperature": 0, "logprobs": 5}
    replies = [
        await api.ask("POST", "/v1/completions", body=body | {"model": model}) for model in ("base", "base", name)
    ]
    assert [reply.status for reply in replies] == [200, 200, 200]
    first, again, adapter = (reply.json()["choices"][0]["logprobs"] for reply in replies)
    assert sorted(first) == ["text_offset", "token_logprobs", "tokens", "top_logprobs"]
    assert (len(first["top_logprobs"]), len(first["token_logprobs"]), len(first["tokens"])) == (1, 1, 1)
    assert first["top_logprobs"][0][first["tokens"][0]] == first["token_logprobs"][0] < 0
    assert first["top_logprobs"] == again["top_logprobs"]
    assert first["top_logprobs"] != adapter["top_logprobs"]


async def test_tokens_are_counted(api: Api) -> None:
    """/metrics counts the tokens of an answer, within a moment: that is how a server between two requests is told."""

    async def counted() -> float:
        text = (await api.get("/metrics")).text
        found = re.findall(r"^vllm:generation_tokens_total\{[^}]*\} (\S+)", text, re.MULTILINE)
        assert len(found) == 1
        return float(found[0])

    before = await counted()
    assert (await api.complete("base")).status == 200

    async def more() -> bool:
        return await counted() > before

    await eventually(more, 5.0)


async def test_completion_of_an_unloaded_adapter(api: Api, folders: Folders, name: str) -> None:
    """After an unload, a request for the adapter finds no such model."""
    assert (await api.load(name, folders.whole)).status == 200
    assert (await api.unload(name)).status == 200
    sentence = f"The model `{name}` does not exist. Valid aliases: base."
    expect(await api.complete(name), 404, error(404, "NotFoundError", sentence, "model"))


# Connections


async def test_idle_connection_is_closed_after_five_seconds(server: RunningServer) -> None:
    """A connection that had an answer is closed by the server once it was idle for 5 s."""
    loop = asyncio.get_running_loop()
    async with raw_connection(server) as (reader, writer), asyncio.timeout(15):
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        answered = loop.time()
        assert await reader.read() == b""
        assert 4.5 < loop.time() - answered < 8


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: local"], ids=["silent", "half-a-request"])
async def test_silent_connection_stays_open(server: RunningServer, sent: bytes) -> None:
    """A connection on which no whole request was sent is not closed by a living server."""
    async with raw_connection(server) as (reader, writer):
        writer.write(sent)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await reader.read(1)


# A key, and no runtime loading


@pytest.mark.parametrize("key", [None, "wrong", ""])
async def test_guarded_paths_without_the_key(
    guarded: RunningServer, session: aiohttp.ClientSession, key: str | None
) -> None:
    """Without the right key all that lies under /v1 answers 401 with an error that is a string."""
    api = Api(session, guarded.url, key)
    replies = [
        await api.get("/v1/models"),
        await api.load("x", "/x"),
        await api.unload("x"),
        await api.complete("base"),
        await api.get("/v1/no-such-route"),
    ]
    for reply in replies:
        expect(reply, 401, {"error": "Unauthorized"})
        assert "www-authenticate" not in reply.headers


async def test_open_paths_of_a_guarded_server(guarded: RunningServer, session: aiohttp.ClientSession) -> None:
    """Health, version and metrics need no key."""
    api = Api(session, guarded.url)
    statuses = [(await api.get(path)).status for path in ("/health", "/version", "/metrics", "/ping", "/load")]
    assert statuses == [200] * 5


async def test_key_opens_the_guarded_paths(guarded: RunningServer, session: aiohttp.ClientSession) -> None:
    """The right key opens the listing, whatever the case of the scheme."""
    api = Api(session, guarded.url)
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert (await api.ask("GET", "/v1/models", headers={"Authorization": f"{scheme} {KEY}"})).status == 200
    for wrong in (KEY, f"Basic {KEY}", f"Bearer  {KEY}"):
        assert (await api.ask("GET", "/v1/models", headers={"Authorization": wrong})).status == 401


async def test_routes_are_absent_without_runtime_loading(
    guarded: RunningServer, session: aiohttp.ClientSession
) -> None:
    """Without runtime loading the two routes are unknown paths, in the framework's frame."""
    api = Api(session, guarded.url, KEY)
    expect(await api.load("x", "/x"), 404, NOT_FOUND)
    expect(await api.unload("x"), 404, NOT_FOUND)
    expect(await api.get(LOAD), 404, NOT_FOUND)


async def test_static_adapter_is_listed_from_the_start(
    guarded: RunningServer, session: aiohttp.ClientSession, folders: Folders
) -> None:
    """An adapter of --lora-modules looks like any other in the listing, also without runtime loading."""
    assert (await Api(session, guarded.url, KEY).listed()) == {"static": str(folders.whole)}


# Sleep, hanging and death


async def test_sleeping_engine(mortal_api: Api, folders: Folders, name: str) -> None:
    """Without a GPU, sleep only holds the scheduler: health and loads answer, and /is_sleeping tells."""
    expect(await mortal_api.get("/is_sleeping"), 200, {"is_sleeping": False})
    expect(await mortal_api.ask("POST", "/sleep?level=1"), 200, {"status": "sleeping", "level": 1})
    expect(await mortal_api.get("/is_sleeping"), 200, {"is_sleeping": True})
    assert (await mortal_api.get("/health")).status == 200
    states = re.findall(r'sleep_state="(\w+)"} (\S+)', (await mortal_api.get("/metrics")).text)
    assert (await mortal_api.load(name, folders.whole)).status == 200
    expect(await mortal_api.ask("POST", "/wake_up"), 200, {"status": "awake", "tags": None})
    expect(await mortal_api.get("/is_sleeping"), 200, {"is_sleeping": False})
    assert states == [("awake", "0.0"), ("weights_offloaded", "1.0"), ("discard_all", "0.0")]


async def test_paused_engine(mortal_api: Api, folders: Folders, name: str) -> None:
    """A paused engine holds completions and takes loads; /is_paused tells, and nothing else does."""
    expect(await mortal_api.get("/is_paused"), 200, {"is_paused": False})
    expect(await mortal_api.ask("POST", "/pause"), 200, {"status": "paused"})
    try:
        expect(await mortal_api.get("/is_paused"), 200, {"is_paused": True})
        assert (await mortal_api.get("/health")).status == 200
        assert 'sleep_state="awake"} 1.0' in (await mortal_api.get("/metrics")).text
        assert (await mortal_api.load(name, folders.whole)).status == 200
        with pytest.raises(TimeoutError):
            await mortal_api.complete("base", within=1)
    finally:
        expect(await mortal_api.ask("POST", "/resume"), 200, {"status": "resumed"})
    assert (await mortal_api.complete("base")).status == 200


async def test_hung_engine(mortal: RunningServer, mortal_api: Api, folders: Folders, name: str) -> None:
    """While the engine hangs, health and listing answer as ever and a load does not; later it takes effect."""
    mortal.stop_engine()
    try:
        with pytest.raises(TimeoutError):
            await mortal_api.load(name, folders.whole, within=2)
        with pytest.raises(TimeoutError):
            await mortal_api.complete("base", within=1)
        assert (await mortal_api.get("/health")).status == 200
        assert name not in await mortal_api.listed()
    finally:
        mortal.continue_engine()
    await eventually(lambda: lists(mortal_api, name), within=20)


async def test_death_of_the_engine(mortal: RunningServer, mortal_api: Api, folders: Folders, name: str) -> None:
    """When the engine dies: health turns 503, the listing stays, loads are 500, and the server exits with status 0."""
    assert (await mortal_api.load(name, folders.whole)).status == 200
    mortal.sigkill_engine()
    await eventually(lambda: unhealthy(mortal_api), within=15)
    health = await mortal_api.get("/health")
    assert (health.status, health.text) == (503, "")
    assert name in await mortal_api.listed()
    expect(await mortal_api.load(f"{name}-late", folders.whole), 500, error(500, "InternalServerError", DEAD))
    assert (await mortal_api.unload(name)).status == 200
    assert await mortal.ended(within=20) == 0
    assert not await mortal.answers()


async def test_load_in_flight_when_the_engine_dies(
    mortal: RunningServer, mortal_api: Api, folders: Folders, name: str
) -> None:
    """A load that the engine dies under is never answered, and keeps a server that is deaf to SIGTERM and closed."""
    mortal.stop_engine()
    load = asyncio.create_task(mortal_api.load(name, folders.whole, within=120))
    await asyncio.sleep(0.5)
    mortal.sigkill_engine()
    await eventually(lambda: refuses(mortal), within=30)
    mortal.terminate()
    os.kill(mortal.pid, signal.SIGINT)
    await asyncio.sleep(3)
    assert mortal.returncode is None
    assert not load.done()
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    await mortal.sigkill_all()


async def test_request_for_an_evicted_adapter_whose_folder_is_gone(
    mortal: RunningServer, mortal_api: Api, folders: Folders, name: str, tmp_path: Path
) -> None:
    """A listed adapter is served from memory without its folder, and kills the engine once it was evicted."""
    doomed = shutil.copytree(folders.whole, tmp_path / "doomed")
    assert (await mortal_api.load(name, doomed)).status == 200
    shutil.rmtree(doomed)
    assert (await mortal_api.complete(name)).status == 200
    for number in range(mortal.spec.max_cpu_loras):
        assert (await mortal_api.load(f"{name}-{number}", folders.other)).status == 200
    assert name in await mortal_api.listed()
    expect(await mortal_api.complete(name), 500, error(500, "InternalServerError", DEAD))
    assert await mortal.ended(within=20) == 0


async def test_sigterm_ends_an_idle_server(mortal: RunningServer) -> None:
    """A server with nothing in flight ends on SIGTERM with status 0, and says goodbye on a silent connection."""
    async with raw_connection(mortal) as (reader, _), asyncio.timeout(10):
        mortal.terminate()
        assert await reader.read() == b""
    assert await mortal.ended(within=20) == 0
