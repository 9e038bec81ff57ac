from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from tests.platform.image.conftest import Container, eventually, settings
from tests.support.http_client import Api
from tests.support.servers import RunningServer, free_port

LEARNED = {"support-bot": "/adapters/support-bot", "translator": "/adapters/translator"}
DECLARED = {"sql": "/adapters/sql"}


def _config(vllm: RunningServer) -> dict[str, object]:
    return settings(
        vllm.url,
        Path("/"),
        [{"name": name, "path": path, "required": True} for name, path in DECLARED.items()],
        ops={"bind": f"127.0.0.1:{free_port()}"},
    )


async def _remembered(container: Container, api: Api, config: dict[str, object]) -> None:
    """Start the container, load adapters behind its back, and wait until its checkpoint holds them."""
    container.start(config)
    for name, path in LEARNED.items():
        assert (await api.load(name, path)).status == 200

    async def kept() -> bool:
        return all(f'"adapter.adopted","adapter":"{name}"' in _compact(container.log) for name in LEARNED)

    await eventually(kept, "both learned adapters are adopted")


def _compact(log: str) -> str:
    """The log with event and adapter side by side, whatever stands between them."""
    lines = [json.loads(line) for line in log.splitlines()]
    return "\n".join(f'"{line["event"]}","adapter":"{line.get("adapter")}"' for line in lines)


async def _all_listed(api: Api) -> None:
    async def listed() -> bool:
        return await api.listed() == DECLARED | LEARNED

    await eventually(listed, "every adapter is listed again")


async def test_the_server_is_killed(container: Container, vllm: RunningServer, session: aiohttp.ClientSession) -> None:
    """From a container without rights and with a read-only root, everything is loaded again when the server died."""
    api = Api(session, vllm.url)
    await _remembered(container, api, _config(vllm))

    await vllm.restart()

    await _all_listed(api)


async def test_both_are_killed(container: Container, vllm: RunningServer, session: aiohttp.ClientSession) -> None:
    """A container that takes the place of a killed one on the same volume loads what that one had learned."""
    api = Api(session, vllm.url)
    config = _config(vllm)
    await _remembered(container, api, config)

    container.signal("KILL")
    assert container.exit_status() == 137
    container.remove()
    await vllm.restart()
    assert await api.listed() == {}
    container.start(config)

    await _all_listed(api)


async def test_what_it_may_do(container: Container, vllm: RunningServer) -> None:
    """It is the first process of its container, is not root, has no capability, and seccomp filters its calls."""
    container.start(_config(vllm))

    status = await asyncio.to_thread(Path(f"/proc/{container.pid}/status").read_text)

    told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert told["NSpid"].split()[-1] == "1"
    assert set(told["Uid"].split()) == {"65532"}
    assert set(told["Gid"].split()) == {"65532"}
    assert told["CapEff"].strip("0") == ""
    assert told["CapBnd"].strip("0") == ""
    assert told["NoNewPrivs"] == "1"
    assert told["Seccomp"] == "2"


@pytest.mark.parametrize("number", ["TERM", "INT"])
async def test_told_to_stop(container: Container, vllm: RunningServer, number: str) -> None:
    """The first process of a container hears of a signal that has no default effect there, and ends with status 0."""
    container.start(_config(vllm))

    async def started() -> bool:
        return "restore.completed" in container.log

    await eventually(started, "it has restored what is declared")
    began = asyncio.get_running_loop().time()
    container.signal(number)

    assert container.exit_status() == 0
    assert asyncio.get_running_loop().time() - began < 3


@pytest.mark.parametrize("delay", [0.1, 0.2, 0.3, 0.5])
async def test_told_to_stop_while_it_starts(container: Container, vllm: RunningServer, delay: float) -> None:
    """Told to stop while it imports itself or opens its parts, it ends too; only Python's own start is deaf."""
    container.start(_config(vllm))
    await asyncio.sleep(delay)
    began = asyncio.get_running_loop().time()

    container.signal("TERM")

    assert container.exit_status() in {0, 143}
    assert asyncio.get_running_loop().time() - began < 5


async def test_the_health_check(container: Container, vllm: RunningServer) -> None:
    """What Docker asks says that it is alive, and needs no shell."""
    container.start(_config(vllm))

    async def alive() -> bool:
        return "config.loaded" in container.log

    await eventually(alive, "it listens")

    assert container.execute("lora-sidecar", "healthcheck") == "ok"
