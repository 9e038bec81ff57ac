"""Requests through the control port where the server is SGLang, or vLLM with its Rust frontend; both are fakes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from lora_sidecar.control.requests import Load, Pause, Unload
from lora_sidecar.status.adapters import AdapterState
from lora_sidecar.status.board import adapters_of
from tests.fakes.overrides import canned
from tests.fakes.vllm import FakeConfig
from tests.simulation.conftest import Pod, PodMaker
from tests.simulation.test_requests import ask
from tests.simulation.test_sglang import LOAD, Making, make_sglang
from tests.support.adapters import SMALL, write_adapter

__all__ = ["make_sglang"]

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

ADDED = "Success: LoRA adapter 'sql' added successfully."


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """An adapter's folder as a symbolic link to a version of it."""
    write_adapter(tmp_path / "v1", **SMALL)
    path = tmp_path / "current"
    path.symlink_to("v1")
    return path


def rust(folder: Path) -> FakeConfig:
    """A server that lists real paths."""
    return FakeConfig(rust=True, check_files=False, allowed_path_prefixes=(str(folder),))


def listed_as(pod: Pod) -> list[tuple[str, str | None]]:
    """The paths of the desired adapters and what the server made of them."""
    return [(one.path, one.listed_as) for one in pod.status.desired.adapters.values()]


async def test_requested_link_is_answered_as_loaded(make_pod: PodMaker, link: Path, tmp_path: Path) -> None:
    """A link that is listed with its target is what was asked for, and is asked for again by the link."""
    async with make_pod(server=rust(tmp_path)) as pod:
        await pod.until(lambda: pod.status.beats > 0, 2)
        answer = await ask(pod, Load("sql", str(link)))
        assert (answer.status, answer.message) == (200, ADDED)
        assert listed_as(pod) == [(str(link), f"{tmp_path}/v1")]

        again = await ask(pod, Load("sql", str(link)))
        assert (again.status, again.kind) == (400, "InvalidUserInput")
        assert listed_as(pod) == [(str(link), f"{tmp_path}/v1")]
        assert pod.loads() == ["sql"]


async def test_declared_link_stays_withdrawn(make_pod: PodMaker, link: Path, tmp_path: Path) -> None:
    """What the server made of a path is no change of the config's entry, after a restart of the sidecar either."""
    async with make_pod(f"adapters: [{{name: sql, path: {link}}}]", server=rust(tmp_path)) as pod:
        await pod.until_listed("sql")
        await asyncio.sleep(10)
        assert (await ask(pod, Unload("sql"))).status == 200
        await pod.die()
        await pod.start()
        await asyncio.sleep(60)
        assert pod.server.adapters == {}
        assert list(pod.status.desired.withdrawn) == ["sql"]

        assert (await ask(pod, Load("sql", str(link)))).status == 200
        assert pod.server.adapters == {"sql": f"{tmp_path}/v1"}
        assert listed_as(pod) == [(str(link), f"{tmp_path}/v1")]


async def test_sglang_is_asked_and_its_refusal_passed_on(make_sglang: Making) -> None:
    """A request to SGLang is carried out, and what it refuses is answered with its very answer and not remembered."""
    async with make_sglang() as pod:
        await pod.until(lambda: pod.status.beats > 0, 2)
        assert (await ask(pod, Load("sql", "/adapters/sql"))).message == ADDED
        assert pod.sglang.adapters == {"sql": "/adapters/sql"}

        said = {"success": False, "error_message": "Failed to load odd because it is an unsupported LoRA"}
        pod.sglang.override(*LOAD, canned(400, said))
        answer = await ask(pod, Load("odd", "/adapters/odd"))
        assert (answer.status, json.loads(answer.body)) == (400, said)
        assert "odd" not in pod.status.desired.adapters

        assert (await ask(pod, Unload("sql"))).status == 200
        assert pod.sglang.adapters == {}


async def test_request_for_an_evicted_adapter_is_answered_at_once(make_sglang: Making) -> None:
    """The server has it and made room in its listing: that is loaded, also while paused."""
    async with make_sglang(max_loaded_loras=1) as pod:
        await pod.until(lambda: pod.status.beats > 0, 2)
        for name in ("sql", "chat"):
            assert (await ask(pod, Load(name, f"/adapters/{name}"))).status == 200
        await asyncio.sleep(20)
        assert list(pod.sglang.adapters) == ["chat"]

        began = pod.now
        answer = await ask(pod, Load("sql", "/adapters/sql"))
        assert (answer.status, answer.message) == (200, ADDED)
        assert pod.now - began < 1
        await ask(pod, Pause())
        await asyncio.sleep(6)
        states = {one.adapter.name: one.state for one in adapters_of(pod.status)}
        assert states == {"sql": AdapterState.EVICTED, "chat": AdapterState.LISTED}
        assert pod.loads() == ["sql", "chat"]
