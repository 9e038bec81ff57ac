from __future__ import annotations

import asyncio
import gzip
import json
import resource

import pytest

from lora_sidecar.controller import ServerController
from lora_sidecar.core.observation import Reason, Unknown
from lora_sidecar.reconcile.state import Verdict
from tests.faults.rude import Behaviour, RudeServer, drips, floods, hangs, http, listing, resets, says

MODELS = "/v1/models"
JSON = "Content-Type: application/json"
WHOLE = http(200, listing("sql"), JSON)
TWICE = listing("sql")[:-2] + b', {"id": "sql", "root": "/adapters/other", "parent": "base"}]}'
BOMB = gzip.compress(b" " * 50_000_000 + listing("sql"))

CASES: dict[str, tuple[str, Behaviour, Reason]] = {
    "health says 503, as with a dead engine": ("/health", says(http(503, b"")), Reason.ENGINE_DEAD),
    "health says 500, as vLLM 0.9 did": ("/health", says(http(500, b"")), Reason.ENGINE_DEAD),
    "the whole server is scaling": (
        "/health",
        says(http(503, b'{"error":"The model is currently scaling. Please try again later."}')),
        Reason.STARTING,
    ),
    "health is absent": ("/health", says(http(404, b'{"detail":"Not Found"}')), Reason.WRONG_SERVER),
    "a redirect": ("/health", says(http(302, b"", "Location: /v1/models")), Reason.WRONG_SERVER),
    "health hangs": ("/health", hangs(), Reason.TIMEOUT),
    "the listing hangs": (MODELS, hangs(), Reason.TIMEOUT),
    "headers drip": (MODELS, drips(WHOLE, 0.05), Reason.TIMEOUT),
    "unauthorized": (MODELS, says(http(401, b'{"error":"Unauthorized"}')), Reason.UNAUTHORIZED),
    "forbidden": (MODELS, says(http(403, b"no")), Reason.UNAUTHORIZED),
    "no such route": (MODELS, says(http(404, b'{"detail":"Not Found"}')), Reason.WRONG_SERVER),
    "a server error": (MODELS, says(http(500, b"oops")), Reason.SERVER_ERROR),
    "too many requests": (MODELS, says(http(429, b"", "Retry-After: -1")), Reason.SERVER_ERROR),
    "a redirected listing": (MODELS, says(http(307, b"", "Location: http://127.0.0.1:1/")), Reason.WRONG_SERVER),
    "an empty body": (MODELS, says(http(200, b"", JSON)), Reason.MALFORMED),
    "an HTML page": (MODELS, says(http(200, b"<html></html>", "Content-Type: text/html")), Reason.MALFORMED),
    "garbage": (MODELS, says(http(200, bytes(range(256)), JSON)), Reason.MALFORMED),
    "half of the JSON": (MODELS, says(http(200, listing("sql")[:60], JSON)), Reason.MALFORMED),
    "NaN": (MODELS, says(http(200, b'{"object":"list","data":NaN}', JSON)), Reason.MALFORMED),
    "a nesting bomb": (MODELS, says(http(200, b"[" * 100_000, JSON)), Reason.MALFORMED),
    "another shape": (MODELS, says(http(200, b'{"object":"list","data":{}}', JSON)), Reason.MALFORMED),
    "no data": (MODELS, says(http(200, b'{"object":"list"}', JSON)), Reason.MALFORMED),
    "a name that is a number": (
        MODELS,
        says(http(200, b'{"object":"list","data":[{"id":7}]}', JSON)),
        Reason.MALFORMED,
    ),
    "a name listed with two paths": (MODELS, says(http(200, TWICE, JSON)), Reason.MALFORMED),
    "an empty list": (MODELS, says(http(200, b'{"object":"list","data":[]}', JSON)), Reason.BASE_MODEL_ABSENT),
    "adapters without a base": (MODELS, says(http(200, listing("sql", base=None), JSON)), Reason.BASE_MODEL_ABSENT),
    "a gzip bomb": (MODELS, says(http(200, BOMB, JSON, "Content-Encoding: gzip")), Reason.MALFORMED),
    "a body without an end": (
        MODELS,
        floods(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x" * 65536),
        Reason.TOO_LARGE,
    ),
    "a body shorter than promised": (
        MODELS,
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + listing("sql")),
        Reason.RESET,
    ),
    "a chunk that ends early": (
        MODELS,
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFF\r\n{"),
        Reason.RESET,
    ),
    "a reset": (MODELS, resets(), Reason.RESET),
    "closed without a word": (MODELS, says(b""), Reason.RESET),
    "another protocol": (MODELS, says(b"SSH-2.0-OpenSSH_9.7\r\n"), Reason.WRONG_SERVER),
    "a header without an end": (MODELS, floods(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 4096), Reason.WRONG_SERVER),
    "a flood of headers": (MODELS, floods(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 500), Reason.WRONG_SERVER),
}


@pytest.mark.parametrize("name", CASES)
async def test_it_is_unknown_and_nothing_is_done(name: str, rude: RudeServer, watch: ServerController) -> None:
    """A wrong answer is unknown for its reason: no load, nothing forgotten, nothing written, however often."""
    before = (await watch.heartbeat()).desired
    assert set(before.adapters) == {"sql", "chat"}
    path, behaviour, reason = CASES[name]
    rude.misbehave(path, behaviour)
    rude.requests.clear()
    for _ in range(3):
        plan = await watch.heartbeat()
        assert plan.verdict is Verdict.UNKNOWN
        assert plan.restores == ()
        assert plan.desired is before
        assert plan.state.server.reason is reason, plan.state.server.detail
        assert len(plan.state.server.detail) <= 400
    assert {method for method, _ in rude.requests} == {"GET"}


async def test_nobody_listens(watch: ServerController, rude: RudeServer) -> None:
    """A refused connection is the server being away."""
    before = (await watch.heartbeat()).desired
    await rude.__aexit__(None, None, None)
    plan = await watch.heartbeat()
    assert (plan.verdict, plan.state.server.reason) == (Verdict.UNKNOWN, Reason.REFUSED)
    assert plan.desired is before


async def test_a_broken_connection_is_tried_again_within_one_probe(rude: RudeServer, watch: ServerController) -> None:
    """One connection that breaks during a GET changes nothing, since the GET is sent again."""
    await watch.heartbeat()
    broke: list[bool] = []

    async def once(writer: asyncio.StreamWriter) -> None:
        if broke:
            writer.write(http(200, listing("sql", "chat"), JSON))
        else:
            broke.append(True)
            writer.transport.abort()

    rude.misbehave(MODELS, once)
    assert (await watch.heartbeat()).verdict is Verdict.STEADY


async def test_memory_stays_flat_under_an_endless_body(rude: RudeServer, watch: ServerController) -> None:
    """A body without an end is read to the cap and no further."""
    await watch.heartbeat()
    rude.misbehave(MODELS, floods(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x" * 65536))
    await watch.heartbeat()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5):
        await watch.heartbeat()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48 * 1024


async def test_the_right_server_with_another_base_model(rude: RudeServer, watch: ServerController) -> None:
    """Adapters learned on one base model are not loaded into another."""
    await watch.heartbeat()
    other = [{"id": "base", "root": "/models/other", "parent": None}]
    rude.misbehave(MODELS, says(http(200, json.dumps({"object": "list", "data": other}).encode(), JSON)))
    rude.misbehave("/metrics", says(http(200, b"process_start_time_seconds 1.6e+09\n")))
    plan = await watch.heartbeat()
    assert [adapter.name for adapter in plan.restores] == ["sql"]
    assert "chat" in plan.desired.adapters
    assert [c.type.value for c in plan.state.conditions] == ["BaseModelChanged"]


async def test_unknown_is_a_value(rude: RudeServer, watch: ServerController) -> None:
    """An unknown observation has no adapters to be mistaken for none."""
    del rude, watch
    assert not hasattr(Unknown(0.0, Reason.TIMEOUT, ""), "adapters")
