from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest

from tests.contract.transcript import version_key
from tests.e2e.conftest import PATIENCE, NewSidecar, answers, until_listed
from tests.support.http_client import Api
from tests.support.servers import RunningServer, real_version

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

    What is refused by preflight is not sent, and has the sentence that the server would have given it. Its status and
    type are those of vLLM since 0.18, as is the sentence of a name that is loaded those since 0.15.
    """
    sidecar = new_sidecar(vllm.url)
    await sidecar.start()
    await sidecar.event("server.up", within=PATIENCE)
    control = Api(session, await sidecar.control_url())
    folders = [adapters[0], adapters[0], *broken.values(), Path("/nonexistent/x")]
    unsent: dict[str, bool] = {}
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
        assert told.keys() == original.keys()
        assert told["code"] == through.status
        if past.status != 400:
            assert {**told, "message": ""} == {**original, "message": ""}
        # vLLM since 0.26 names no path in its answers.
        sentence, said = (re.sub("/[^ ']+", "<path>", each["message"]) for each in (told, original))
        unsent[folder.name] = sentence.removeprefix(UNSENT) in said
    # The server names missing settings in any order, and says of a config that is a list what Python says of it.
    otherwise = {"without_r_and_alpha", "config_a_list"}
    release = version_key(real_version() or "")
    if release < (0, 28):
        otherwise.add("rank_zero")
    if release < (0, 11, 1):
        otherwise |= {"bias", "dora_and_rank"}
    assert {name for name, verbatim in unsent.items() if not verbatim} <= otherwise
    assert len(unsent) > len(folders) / 2
    assert (await control.load("kept", adapters[0])).status == 200
    for path, body in (("load", {"lora_name": "kept", "lora_path": "/other"}), ("unload", {"lora_name": "nobody"})):
        through = await control.ask("POST", f"/v1/{path}_lora_adapter", body=body)
        past = await api.ask("POST", f"/v1/{path}_lora_adapter", body=body)
        assert through.status == past.status
        told, original = through.json()["error"], past.json()["error"]
        assert {**told, "message": ""} == {**original, "message": ""}
        assert told["message"].startswith(original["message"])
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
