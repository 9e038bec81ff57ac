"""`engine: auto`: what serves there is found out by GETs, in each life of the server, and told once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lora_sidecar.core.events import EventName
from lora_sidecar.core.observation import Reason
from tests.fakes.overrides import canned
from tests.fakes.sglang import FakeSglang, SglangConfig
from tests.fakes.vllm import FakeConfig
from tests.simulation.conftest import Pod, PodMaker

pytestmark = pytest.mark.looptime

ONE = "adapters: [{name: sql, path: org/sql}]"
STRANGER: dict[str, Any] = {
    "object": "list",
    "data": [{"id": "base", "object": "model", "owned_by": "someone", "root": "base", "parent": None}],
}


@pytest.mark.parametrize(
    ("server", "evidence"),
    [
        (FakeConfig(check_files=False), "/v1/models is owned by vllm"),
        (FakeConfig(check_files=False, rust=True), "/v1/models is owned by vllm-frontend-rs"),
    ],
    ids=["python", "rust"],
)
async def test_vllm_is_recognised_whichever_frontend_it_has(
    make_pod: PodMaker, server: FakeConfig, evidence: str
) -> None:
    """Both frontends are vLLM, and the log says once by which word."""
    async with make_pod(ONE, server=server) as pod:
        await pod.until_listed("sql")
        await pod.server.restart()
        await pod.until_listed("sql")
        await asyncio.sleep(30)
        told = [one.fields for one in pod.of(EventName.SERVER_IDENTIFIED)]
    assert told == [{"engine": "vllm", "evidence": evidence}]


def posts(pod: Pod) -> list[str]:
    """The paths of the POSTs that the server received in this life."""
    return [request.path for request in pod.server.requests if request.method == "POST"]


def version_alone(pod: Pod) -> None:
    """A vLLM whose cards have another owner."""
    pod.server.override("GET", "/v1/models", canned(200, STRANGER), times=None)


def nothing(pod: Pod) -> None:
    """A server that says neither."""
    version_alone(pod)
    pod.server.override("GET", "/version", canned(404, {"detail": "Not Found"}), times=None)


def both(pod: Pod) -> None:
    """A proxy in front of both."""
    version_alone(pod)
    pod.server.override("GET", "/model_info", canned(200, {"model_path": "/m", "is_generation": True}), times=None)


@pytest.mark.parametrize("unclear", [nothing, both])
async def test_nothing_is_sent_to_a_server_that_is_not_known(
    make_pod: PodMaker, unclear: Callable[[Pod], None]
) -> None:
    """While the server does not say what it is, nothing is known and no POST is sent; then all is made good."""
    async with make_pod(ONE, server=FakeConfig(check_files=False)) as pod:
        unclear(pod)
        await asyncio.sleep(120)
        assert posts(pod) == []
        assert pod.status.work.server.reason is Reason.WRONG_SERVER
        assert "servers[].engine" in pod.status.work.server.detail
        pod.server.behave()
        await pod.until_listed("sql", within=7)


async def test_the_version_route_tells_vllm_where_the_owner_does_not(make_pod: PodMaker) -> None:
    """A distribution that names itself as the owner is still recognised."""
    async with make_pod(ONE, server=FakeConfig(check_files=False)) as pod:
        version_alone(pod)
        await pod.until(lambda: bool(pod.of(EventName.SERVER_IDENTIFIED)), 7)
        assert pod.of(EventName.SERVER_IDENTIFIED)[0].fields == {
            "engine": "vllm",
            "evidence": "/version answers 0.32.0",
        }


async def test_another_engine_on_the_same_port_is_noticed(make_pod: PodMaker) -> None:
    """A container that comes back with SGLang in the place of vLLM gets its adapters by SGLang's routes."""
    async with make_pod(ONE, server=FakeConfig(check_files=False)) as pod:
        await pod.until_listed("sql")
        await asyncio.sleep(10)
        await pod.server.kill()
        async with FakeSglang(SglangConfig(port=pod.server.port, check_files=False)) as other:
            await pod.until(lambda: list(other.adapters) == ["sql"], 7)
            assert [request.path for request in other.requests if request.method == "POST"] == ["/load_lora_adapter"]
            told = [one.fields["engine"] for one in pod.of(EventName.SERVER_IDENTIFIED)]
        assert told == ["vllm", "sglang"]
