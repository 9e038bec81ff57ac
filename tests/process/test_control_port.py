from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_sidecar.cli.client import NO_PERMISSION, REFUSED, UNAVAILABLE
from tests.process.conftest import NewSidecar, StartVllm
from tests.support import programs
from tests.support.http_client import Api
from tests.support.servers import RunningServer
from tests.support.sidecar import Sidecar, eventually

# What people have for vLLM's endpoints, to the letter; only the port is another.
SCRIPT = """
import json, sys, urllib.request

def post(path, body):
    request = urllib.request.Request(
        sys.argv[1] + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]

print(*post("/v1/load_lora_adapter", {"lora_name": "chat", "lora_path": "/adapters/chat"}))
print(*post("/v1/load_lora_adapter", {"lora_name": "chat", "lora_path": "/adapters/chat"}))
print(*post("/v1/unload_lora_adapter", {"lora_name": "chat"}))
print(*post("/v1/unload_lora_adapter", {"lora_name": "chat"}))
print(*post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": "/adapters/sql"}))
"""


async def run(*arguments: str) -> tuple[int, str, str]:
    """Run Python to its end; its status and what it said."""
    return await programs.run(sys.executable, *arguments)


async def command(sidecar: Sidecar, *arguments: str) -> tuple[int, str, str]:
    """Run one command of ours against a sidecar."""
    return await run("-m", "lora_sidecar", *arguments, "--url", await sidecar.control_url())


async def until_listed(api: Api, *names: str) -> None:
    """Wait until the server lists exactly these."""

    async def look() -> bool:
        return set(await api.listed()) == set(names)

    await eventually(look, f"the server lists {names}")


async def test_script_for_vllms_endpoints_works_unchanged(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api
) -> None:
    """It says the same through the control port as it does to the server itself."""
    sidecar = new_sidecar(vllm.url)
    await sidecar.start()
    past = await run("-c", SCRIPT, vllm.url)
    await api.unload("sql")
    await sidecar.beats(4)
    through = await run("-c", SCRIPT, await sidecar.control_url())

    assert through == past
    assert [line.split()[0] for line in through[1].splitlines()] == ["200", "400", "200", "404", "200"]
    await vllm.restart()
    await until_listed(api, "sql")


@pytest.mark.parametrize("first", ["server", "sidecar"])
async def test_what_was_asked_for_is_back_after_both_were_killed_under_the_load(
    new_sidecar: NewSidecar, start_vllm: StartVllm, session: Any, first: str
) -> None:
    """SIGKILL for both while the load is under way and nobody was answered; both come back, and so does the adapter."""
    vllm = await start_vllm("--load-delay", "3")
    api = Api(session, vllm.url)
    sidecar = new_sidecar(vllm.url)
    await sidecar.start()
    await sidecar.event("server.up")
    control = Api(session, await sidecar.control_url())
    asking = asyncio.create_task(control.load("chat", "/adapters/chat"))
    await sidecar.event("restore.started", first="chat")
    await asyncio.sleep(0.5)
    assert not asking.done()
    if first == "server":
        await vllm.sigkill_all()
        await sidecar.kill()
    else:
        await sidecar.kill()
        await vllm.sigkill_all()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await sidecar.start()
    await vllm.restart()
    await until_listed(api, "chat")
    assert '"origin":"requested"' in (await Api(session, await sidecar.control_url()).get("/v1/adapters")).text


async def test_end_of_the_sidecar_answers_whoever_waits(
    new_sidecar: NewSidecar, start_vllm: StartVllm, session: Any
) -> None:
    """SIGTERM with a load under way: the client is told that it is remembered, and the process ends in time."""
    vllm = await start_vllm("--load-delay", "30")
    sidecar = new_sidecar(vllm.url)
    await sidecar.start()
    await sidecar.event("server.up")
    asking = asyncio.create_task(Api(session, await sidecar.control_url()).load("chat", "/adapters/chat"))
    await sidecar.event("restore.started", first="chat")
    ending = await sidecar.terminate(signal.SIGTERM)
    assert (await asking).status == 202
    assert (ending.status, ending.seconds < 5) == (0, True)


async def test_commands_load_list_show_and_unload(new_sidecar: NewSidecar, vllm: RunningServer, api: Api) -> None:
    """What the port can do a command can, with the answer for a person and a status for a script."""
    sidecar = new_sidecar(vllm.url)
    await sidecar.start()
    await sidecar.event("server.up")
    assert await command(sidecar, "adapters", "load", "chat", "/adapters/chat") == (
        0,
        "Success: LoRA adapter 'chat' added successfully.\n",
        "",
    )
    code, out, err = await command(sidecar, "adapters", "load", "chat", "/adapters/chat")
    assert (code, out, "already been loaded" in err) == (REFUSED, "", True)
    code, out, _ = await command(sidecar, "adapters", "list")
    heading, row = out.splitlines()
    assert (code, heading.split()) == (0, ["NAME", "STATE", "ORIGIN", "SINCE", "PATH", "REASON"])
    assert row.split()[:3] == ["chat", "listed", "requested"]
    code, out, _ = await command(sidecar, "pause", "moving the disk")
    assert (code, out) == (0, "vllm: paused\n")
    code, out, _ = await command(sidecar, "status")
    assert code == 0
    assert out.startswith("vllm: up for ")
    assert "Paused: nothing is loaded or unloaded: moving the disk" in out
    ready = await sidecar.get("/readyz")
    assert (ready.status, "moving the disk" in ready.text) == (200, True)
    assert 'lora_sidecar_condition{server="vllm",type="Paused"} 1.0' in (await sidecar.get("/metrics")).text
    assert (await command(sidecar, "resume"))[:2] == (0, "vllm: not paused\n")
    code, out, _ = await command(sidecar, "adapters", "unload", "chat")
    assert (code, out) == (0, "Success: LoRA adapter 'chat' removed successfully.\n")
    assert await api.listed() == {}
    code, out, _ = await command(sidecar, "status", "--json")
    assert (code, yaml.safe_load(out)["adapters"]) == (0, [])


async def test_commands_find_port_and_token_in_the_config(
    new_sidecar: NewSidecar, vllm: RunningServer, tmp_path: Path
) -> None:
    """In the container a command needs nothing but the mounted config; without the token it says what is missing."""
    (tmp_path / "token").write_text("s3cret")
    from tests.support.servers import free_port  # noqa: PLC0415 - for one address that is known beforehand

    bind = f"127.0.0.1:{free_port()}"
    sidecar = new_sidecar(vllm.url, control={"bind": bind, "token_file": str(tmp_path / "token")})
    await sidecar.start()
    await sidecar.event("server.up")
    config = ("--config", str(sidecar.config_file))
    code, out, _ = await run("-m", "lora_sidecar", "adapters", "load", "chat", "/adapters/chat", *config)
    assert (code, "added successfully" in out) == (0, True)
    code, _, err = await run("-m", "lora_sidecar", "status", "--url", f"http://{bind}")
    assert (code, "token" in err) == (NO_PERMISSION, True)
    assert (await sidecar.terminate()).status == 0
    code, _, err = await run("-m", "lora_sidecar", "status", *config)
    assert (code, "does lora-sidecar run" in err) == (UNAVAILABLE, True)


async def test_status_is_shown_again_and_again(new_sidecar: NewSidecar, vllm: RunningServer) -> None:
    """`--watch` goes on until it is interrupted, and that is no failure."""
    sidecar = new_sidecar(vllm.url)
    await sidecar.start()
    await sidecar.event("server.up")
    arguments = ("-m", "lora_sidecar", "status", "--watch", "0.1", "--url", await sidecar.control_url())
    seen = 0
    async with programs.started(sys.executable, *arguments) as process, asyncio.timeout(20):
        assert process.stdout is not None
        assert process.stderr is not None
        while seen < 3:
            seen += (await process.stdout.readline()).startswith(b"vllm: up for ")
        os.kill(process.pid, signal.SIGINT)
        await process.stdout.read()
        assert await process.stderr.read() == b""
        assert await process.wait() == 0


@pytest.mark.parametrize("wrong", [["status", "--watch", "0"], ["adapters"], ["adapters", "load", "x"], ["pause"]])
async def test_wrong_usage_is_64(wrong: Sequence[str]) -> None:
    """A command that is not understood does nothing."""
    assert (await run("-m", "lora_sidecar", *wrong))[0] == 64
