from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp import ClientConnectorError, ClientResponse, ServerDisconnectedError
from aiohttp.client_reqrep import ConnectionKey
from aioresponses import aioresponses
from yarl import URL

from lora_sidecar.config.load import parse
from lora_sidecar.core.model import Adapter, Origin
from lora_sidecar.core.observation import Observed
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind, LoadDeferred, SleepState
from lora_sidecar.engines.vllm import Vllm

SERVER = "http://127.0.0.1:8000"
LOAD = f"{SERVER}/v1/load_lora_adapter"
AWAKE = 'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 1.0\n'
ASLEEP = 'vllm:engine_sleep_state{engine="0",sleep_state="awake"} 0.0\n'
SQL = Adapter("sql", "/adapters/sql", Origin.DECLARED)
NO_ROUTE = {"detail": "Not Found"}


class _Response(ClientResponse):
    """aiohttp 3.14 requires an argument that aioresponses 0.7.9 does not pass; no request is ever written."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"stream_writer": SimpleNamespace(output_size=0)} | options)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses]:
    """The server, as far as its answers go."""
    monkeypatch.setattr("aioresponses.core.ClientResponse", _Response)
    with aioresponses() as answers:
        yield answers


@pytest_asyncio.fixture
async def vllm(tmp_path: Path) -> AsyncIterator[Vllm]:
    """A client with a key."""
    key = tmp_path / "key"
    key.write_text("secret\n")
    text = f"servers: [{{name: vllm, url: '{SERVER}', api_key_file: '{key}'}}]"
    config = parse(text.encode(), "sidecar.yaml")
    engine = Vllm(config.servers[0], config, asyncio.get_running_loop().time)
    yield engine
    await engine.close()


async def load(vllm: Vllm, incarnation: int = 1) -> Accepted | Failure | LoadDeferred:
    """Load an adapter as the loader does."""
    return await vllm.load_blocked(incarnation) or await vllm.load(SQL)


def posted(web: aioresponses, url: str = LOAD) -> list[dict[str, Any]]:
    """The bodies that were posted."""
    return [msgspec.json.decode(call.kwargs["data"]) for call in web.requests.get(("POST", URL(url)), [])]


async def test_a_load_names_the_adapter_and_its_path_alone(web: aioresponses, vllm: Vllm) -> None:
    """`load_inplace` is never sent: before vLLM 0.33 it sticks to the adapter and re-reads the disk at every step."""
    web.get(f"{SERVER}/metrics", body=AWAKE)
    web.get(f"{SERVER}/is_sleeping", status=404, payload=NO_ROUTE)
    web.post(LOAD, body="Success: LoRA adapter 'sql' added successfully.")
    assert await load(vllm) == Accepted()
    assert posted(web) == [{"lora_name": "sql", "lora_path": "/adapters/sql"}]


async def test_a_mixture_of_experts_adapter_says_so(web: aioresponses, vllm: Vllm) -> None:
    """A declared `is_3d_lora_weight` is passed on, since no listing shows it."""
    web.get(f"{SERVER}/metrics", body=AWAKE)
    web.get(f"{SERVER}/is_sleeping", status=404, payload=NO_ROUTE)
    web.post(LOAD, body="Success")
    await vllm.load(Adapter("moe", "/adapters/moe", Origin.DECLARED, is_3d_lora_weight=True))
    assert posted(web)[0]["is_3d_lora_weight"] is True


async def test_the_key_is_read_again_and_sent(web: aioresponses, vllm: Vllm, tmp_path: Path) -> None:
    """After the secret was rotated the next heartbeat uses the new key."""
    for _ in range(2):
        web.get(f"{SERVER}/health", status=200)
        web.get(f"{SERVER}/v1/models", status=401, payload={"error": "Unauthorized"})
    await vllm.observe(None)
    (tmp_path / "key").write_text("rotated")
    await vllm.observe(None)
    sent = [call.kwargs["headers"]["Authorization"] for call in web.requests["GET", URL(f"{SERVER}/v1/models")]]
    assert sent == ["Bearer secret", "Bearer rotated"]


@pytest.mark.parametrize(
    ("metrics", "sleeping", "expected"),
    [
        pytest.param(AWAKE, (404, NO_ROUTE), None, id="awake, and nothing could put it to sleep"),
        pytest.param(AWAKE, (200, {"is_sleeping": False}), None, id="awake, and it says so twice"),
        pytest.param("", (404, NO_ROUTE), None, id="an old vLLM without the metric, and no route to sleep"),
        pytest.param("", (200, {"is_sleeping": False}), None, id="no metric, and the route says awake"),
        pytest.param(AWAKE, (500, {}), None, id="the metric alone says awake"),
        pytest.param(ASLEEP, (404, NO_ROUTE), SleepState.ASLEEP, id="the metric says asleep"),
        pytest.param(AWAKE, (200, {"is_sleeping": True}), SleepState.ASLEEP, id="the route says asleep"),
        pytest.param("", (200, {"is_sleeping": True}), SleepState.ASLEEP, id="the route alone says asleep"),
        pytest.param("", (500, {}), SleepState.UNCLEAR, id="neither says anything"),
        pytest.param("", (200, {"other": 1}), SleepState.UNCLEAR, id="the route says something else"),
    ],
)
async def test_no_load_unless_known_to_be_awake(
    web: aioresponses, vllm: Vllm, metrics: str, sleeping: tuple[int, Any], expected: SleepState | None
) -> None:
    """A load into a sleeping engine destroys it (vLLM 0.24 on a GPU), so doubt withholds the load."""
    web.get(f"{SERVER}/metrics", body=metrics)
    web.get(f"{SERVER}/is_sleeping", status=sleeping[0], payload=sleeping[1])
    web.post(LOAD, body="Success")
    result = await load(vllm)
    if expected is None:
        assert result == Accepted()
    else:
        assert isinstance(result, LoadDeferred)
        assert result.wakefulness is expected
        assert posted(web) == []


async def test_a_server_that_can_sleep_is_asked_before_every_load(web: aioresponses, vllm: Vllm) -> None:
    """Only where no route could put the engine to sleep does one look serve for a whole life of the server."""
    web.get(f"{SERVER}/metrics", body=AWAKE, repeat=True)
    web.get(f"{SERVER}/is_sleeping", payload={"is_sleeping": False}, repeat=True)
    web.post(LOAD, body="Success", repeat=True)
    for _ in range(3):
        await load(vllm)
    assert len(web.requests["GET", URL(f"{SERVER}/metrics")]) == 3


async def test_the_youngest_answer_is_the_one_that_decides(web: aioresponses, vllm: Vllm) -> None:
    """The route is asked after the metrics: an answer grows old while another, slow one is waited for."""
    asked: list[str] = []
    web.get(f"{SERVER}/metrics", body=AWAKE, callback=lambda *_, **__: asked.append("metrics"))
    answer = {"is_sleeping": False}
    web.get(f"{SERVER}/is_sleeping", payload=answer, callback=lambda *_, **__: asked.append("is_sleeping"))
    web.post(LOAD, body="Success")
    await load(vllm)
    assert asked == ["metrics", "is_sleeping"]


async def test_no_load_where_the_question_broke_off(web: aioresponses, vllm: Vllm) -> None:
    """A question that was not answered leaves open whether the engine has fallen asleep since the metrics were read."""
    web.get(f"{SERVER}/metrics", body=AWAKE)
    web.get(f"{SERVER}/is_sleeping", exception=TimeoutError())
    result = await load(vllm)
    assert isinstance(result, LoadDeferred)
    assert result.wakefulness is SleepState.UNCLEAR


async def test_a_probe_that_was_sent_twice_proves_no_life(web: aioresponses, vllm: Vllm) -> None:
    """A connection that broke may be a restart: the identity is read anew, even where the listing is the same."""
    cards = {"object": "list", "data": [{"id": "base", "root": "/m"}]}
    web.get(f"{SERVER}/v1/models", payload=cards, repeat=True)
    web.get(f"{SERVER}/is_sleeping", status=404, payload=NO_ROUTE, repeat=True)
    web.get(LOAD, status=405, repeat=True)
    for start in (1.0, 2.0):
        web.get(f"{SERVER}/metrics", body=f"process_start_time_seconds {start}\n{AWAKE}")
    web.get(f"{SERVER}/health")
    first = await vllm.observe(None)
    assert isinstance(first, Observed)
    web.get(f"{SERVER}/health", exception=ServerDisconnectedError())
    web.get(f"{SERVER}/health")
    second = await vllm.observe(first)
    assert isinstance(second, Observed)
    assert (first.start_time, second.start_time) == (1.0, 2.0)


async def test_one_look_serves_one_life_of_a_server_that_cannot_sleep(web: aioresponses, vllm: Vllm) -> None:
    """In the next life of the server it is looked at again."""
    web.get(f"{SERVER}/metrics", body=AWAKE, repeat=True)
    web.get(f"{SERVER}/is_sleeping", status=404, payload=NO_ROUTE, repeat=True)
    web.post(LOAD, body="Success", repeat=True)
    for incarnation in (1, 1, 1, 2, 2):
        await load(vllm, incarnation)
    assert len(web.requests["GET", URL(f"{SERVER}/metrics")]) == 2


async def test_unloading_what_is_not_loaded_is_no_failure(web: aioresponses, vllm: Vllm) -> None:
    """The adapter is as good as unloaded."""
    missing = {"error": {"message": "The lora adapter 'sql' cannot be found.", "type": "NotFoundError", "code": 404}}
    web.post(f"{SERVER}/v1/unload_lora_adapter", status=404, payload=missing)
    web.post(f"{SERVER}/v1/unload_lora_adapter", body="Success")
    assert await vllm.unload("sql") == Accepted(already=True)
    assert await vllm.unload("sql") == Accepted()


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EMFILE, FailureKind.LOCAL), (errno.ENOMEM, FailureKind.LOCAL), (errno.ECONNREFUSED, FailureKind.ENGINE)],
)
async def test_a_load_that_never_left_is_nobodys_fault(
    web: aioresponses, vllm: Vllm, number: int, kind: FailureKind
) -> None:
    """A lack of descriptors or memory is ours, and a connection that is refused the server's."""
    web.get(f"{SERVER}/metrics", body=AWAKE)
    web.get(f"{SERVER}/is_sleeping", status=404, payload=NO_ROUTE)
    where = ConnectionKey(
        "127.0.0.1", 8000, is_ssl=False, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None
    )
    web.post(LOAD, exception=ClientConnectorError(where, OSError(number, os.strerror(number))))
    result = await load(vllm)

    assert isinstance(result, Failure)
    assert result.kind is kind
