from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import PATIENCE, NewSidecar, answers, until_listed
from tests.support.http_client import Api
from tests.support.servers import RunningServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

UNSENT = "preflight, not sent: "


async def test_port_answers_as_the_server_itself(
    new_sidecar: NewSidecar,
    vllm: RunningServer,
    api: Api,
    session: aiohttp.ClientSession,
    adapters: Sequence[Path],
    broken: dict[str, Path],
) -> None:
    """Loads, refusals and unloads through the control port and past it: the same status, text and content type.

    What is half copied is not sent, and has the status that the server would have given it.
    """
    sidecar = new_sidecar(vllm.url)
    await sidecar.start()
    await sidecar.event("server.up", within=PATIENCE)
    control = Api(session, await sidecar.control_url())
    folders = [adapters[0], adapters[0], *broken.values(), Path("/nonexistent/x")]
    unsent: set[str] = set()
    for number, folder in enumerate(folders):
        name = f"n{max(number, 1)}"
        through = await control.load(name, folder, within=PATIENCE)
        if through.status == 200:
            await control.unload(name)
        past = await api.load(name, folder)
        if past.status == 200:
            await control.unload(name)
        assert through.headers.get("content-type") == past.headers.get("content-type")
        if UNSENT not in through.text:
            assert (through.status, through.text) == (past.status, past.text)
            continue
        told, original = through.json()["error"], past.json()["error"]
        assert {**told, "message": ""} == {**original, "message": ""}
        unsent.add(folder.name)
    assert unsent == {"truncated", "empty_weights"}
    assert (await control.load("kept", adapters[0])).status == 200
    for path, body in (("load", {"lora_name": "kept", "lora_path": "/other"}), ("unload", {"lora_name": "nobody"})):
        through = await control.ask("POST", f"/v1/{path}_lora_adapter", body=body)
        past = await api.ask("POST", f"/v1/{path}_lora_adapter", body=body)
        assert (through.status, through.text) == (past.status, past.text)
    kept = (await control.get("/v1/adapters")).json()["adapters"]
    assert [(one["name"], one["origin"], one["state"]) for one in kept] == [("kept", "requested", "listed")]


async def test_both_killed_under_the_load(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, session: aiohttp.ClientSession, adapters: Sequence[Path]
) -> None:
    """The engine holds the load, server and sidecar are killed; when both are back the adapter serves."""
    assert (await api.load("probe", adapters[1])).status == 200
    expected = (await answers(api, ["probe"]))["probe"]
    assert (await api.unload("probe")).status == 200
    sidecar = new_sidecar(vllm.url)
    await sidecar.start()
    await sidecar.event("server.up", within=PATIENCE)
    control = Api(session, await sidecar.control_url())
    vllm.stop_engine()
    asking = asyncio.create_task(control.load("chat", adapters[1], within=PATIENCE))
    await sidecar.event("restore.started", first="chat")
    await asyncio.sleep(1)
    assert not asking.done()
    await vllm.sigkill_all()
    await sidecar.kill()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await sidecar.start()
    while_down = await Api(session, await sidecar.control_url()).load("sql", adapters[2])
    assert (while_down.status, "not yet: the server is" in while_down.text) == (202, True)
    await vllm.restart()
    await until_listed(api, "chat", "sql")
    assert (await answers(api, ["chat"]))["chat"] == expected
    assert (await Api(session, await sidecar.control_url()).unload("chat")).status == 200
    await vllm.sigkill_all()
    await vllm.restart()
    await until_listed(api, "sql")
