from __future__ import annotations

import re

import pytest

from tests.contract.asking import eventually, raw_connection
from tests.contract.conftest import Opening, Subject
from tests.contract.transcript import HeardApi, Transcript
from tests.support.servers import RunningServer

# A real server's start is part of the first test that needs it.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


async def test_port_refuses_until_everything_answers_at_once(opened: tuple[RunningServer, Opening]) -> None:
    """The first accepted connection is the moment at which health, listing and loading all work."""
    _, opening = opened
    assert opening.refused > 0
    assert (opening.health, opening.models, opening.load) == (200, 200, 200)


async def test_health_is_empty(api: HeardApi) -> None:
    """A living server answers /health with 200, no body and no content type."""
    reply = await api.get("/health")
    assert (reply.status, reply.text) == (200, "")
    assert "content-type" not in reply.headers
    assert reply.headers["server"] == "uvicorn"


async def test_version_is_a_string(api: HeardApi, subject: Subject) -> None:
    """/version names the version."""
    reply = await api.get("/version")
    assert reply.status == 200
    assert reply.json()["version"].partition("+")[0] == subject.version


async def test_answers_of_http_1_1_have_no_connection_header(server: RunningServer, transcript: Transcript) -> None:
    """A connection is kept without a word, and the headers are those of uvicorn."""
    async with raw_connection(server) as (reader, writer):
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    names = {line.partition(":")[0] for line in head.split("\r\n")[1:] if line}
    transcript.note("headers of a listing", sorted(names))
    assert names >= {"date", "server", "content-length", "content-type"}
    assert "connection" not in names


async def test_metrics_name_the_start_of_the_process_once_and_for_good(api: HeardApi) -> None:
    """`process_start_time_seconds` stands there once and does not change while the process lives."""
    samples = [
        re.findall(r"^process_start_time_seconds (\S+)$", (await api.get("/metrics")).text, re.MULTILINE)
        for _ in range(2)
    ]
    assert len(samples[0]) == 1
    assert samples[0] == samples[1]
    assert re.fullmatch(r"[1-9]\.\d{1,11}e\+09", samples[0][0])


async def test_metrics_count_the_requests_that_run_and_wait(api: HeardApi) -> None:
    """A server without traffic says 0 to both: that is what allows several loads in flight."""
    text = (await api.get("/metrics")).text
    counts = re.findall(r"^vllm:num_requests_(running|waiting)\{[^}]*\} (\S+)$", text, re.MULTILINE)
    assert sorted(counts) == [("running", "0.0"), ("waiting", "0.0")]


async def test_metrics_say_that_the_engine_is_awake(api: HeardApi) -> None:
    """The sleep state, where there is one, is a family with a series for each state, and `awake` is 1."""
    reply = await api.get("/metrics")
    states = re.findall(r'^vllm:engine_sleep_state\{.*sleep_state="(\w+)"\} (\S+)$', reply.text, re.MULTILINE)
    assert states in ([], [("awake", "1.0"), ("weights_offloaded", "0.0"), ("discard_all", "0.0")])


async def test_routes_of_the_developer_mode_without_it(api: HeardApi) -> None:
    """Without developer mode there is no /is_sleeping; whether pausing is there depends on the version."""
    assert (await api.get("/is_sleeping")).status == 404
    assert (await api.ask("POST", "/sleep?level=1")).status == 404
    assert (await api.ask("POST", "/wake_up")).status == 404
    await api.get("/is_paused")


async def test_tokens_are_counted(api: HeardApi) -> None:
    """/metrics counts the tokens of an answer, within a moment: that is how a server between two requests is told."""

    async def counted() -> float:
        text = (await api.quiet.get("/metrics")).text
        found = re.findall(r"^vllm:generation_tokens_total\{[^}]*\} (\S+)", text, re.MULTILINE)
        assert len(found) == 1
        return float(found[0])

    before = await counted()
    assert (await api.complete("base")).status == 200

    async def more() -> bool:
        return await counted() > before

    await eventually(more, 5.0)


async def test_other_methods_on_the_load_route(api: HeardApi) -> None:
    """The load and unload routes take POST alone."""
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        reply = await api.get(path)
        assert (reply.status, reply.headers["allow"]) == (405, "POST")


async def test_slash_at_the_end_of_a_path(api: HeardApi) -> None:
    """A path with a slash too many is redirected to the right one."""
    reply = await api.get("/v1/models/")
    assert (reply.status, reply.text, reply.headers["location"]) == (307, "", f"{api.url}/v1/models")
