from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.contract.transcript import version_key
from tests.e2e.conftest import NewSidecar, until_listed
from tests.support.http_client import Api
from tests.support.servers import RunningServer, real_version
from tests.support.sidecar import Sidecar

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = "the same long prompt, which fills several blocks of the prefix cache, " * 3


async def numbers(api: Api, model: str) -> list[dict[str, float]]:
    """The log-probabilities that a model gives to one prompt, which the prefix cache holds after the first time."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "logprobs": 5}
    reply = await api.ask("POST", "/v1/completions", body=body, within=60)
    assert reply.status == 200, reply.text
    top: list[dict[str, float]] = reply.json()["choices"][0]["logprobs"]["top_logprobs"]
    return top


def keyed_by_name() -> bool:
    """Whether this vLLM looks up in its prefix cache what any adapter of that name computed (0.11.1 to 0.30)."""
    return (0, 11, 1) <= version_key(real_version() or "") < (0, 31)


async def is_refused(sidecar: Sidecar, api: Api, path: Path) -> None:
    """The path that the config gives is not loaded, the one before stays, and it is told why."""
    told = await sidecar.answers("/readyz?verbose", 200, "AdapterPathDiffers")
    assert "keys its prefix cache by name" in told.text
    assert (await api.listed())["sql"] == str(path)


def sql(path: Path) -> list[dict[str, Any]]:
    """The config's adapters."""
    return [{"name": "sql", "path": str(path), "required": True}]


async def test_a_replaced_path_serves_the_new_weights(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path]
) -> None:
    """Shown by log-probabilities: those of the new adapter, as it gives them under a name of its own.

    Where the server would look up what the old one computed, nothing is replaced.
    """
    sidecar = new_sidecar(vllm.url, sql(adapters[0]))
    await sidecar.start()
    await sidecar.answers("/readyz", 200)
    for name, path in (("old", adapters[0]), ("new", adapters[1])):
        assert (await api.load(name, path)).status == 200
    old, new = await numbers(api, "old"), await numbers(api, "new")
    assert old != new
    assert await numbers(api, "sql") == old
    sidecar.declare(sql(adapters[1]))
    if keyed_by_name():
        await is_refused(sidecar, api, adapters[0])
        assert await numbers(api, "sql") == old
        return
    await sidecar.event("adapter.replaced", adapter="sql", within=60)
    assert await numbers(api, "sql") == new
    assert (await api.listed())["sql"] == str(adapters[1])


async def test_a_path_that_does_not_load_is_undone(
    new_sidecar: NewSidecar,
    vllm: RunningServer,
    api: Api,
    adapters: Sequence[Path],
    broken: Mapping[str, Path],
) -> None:
    """The former weights serve again, and the reason is the server's own; or they never ceased to."""
    sidecar = new_sidecar(vllm.url, sql(adapters[0]))
    await sidecar.start()
    await sidecar.event("restore.completed")
    old = await numbers(api, "sql")
    since = sidecar.mark()
    sidecar.declare(sql(broken["rank_64"]))
    if keyed_by_name():
        await is_refused(sidecar, api, adapters[0])
        return
    await sidecar.event("restore.failed", since=since, adapter="sql", within=60)
    await sidecar.event("restore.succeeded", since=since, adapter="sql", within=60)
    assert await numbers(api, "sql") == old
    assert "max_lora_rank" in (await sidecar.answers("/readyz?verbose", 200, "AdapterPathDiffers")).text


async def test_what_the_config_removes_is_pruned(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path]
) -> None:
    """The declared one that was removed is unloaded; the one that somebody loaded stays."""
    both = [*sql(adapters[0]), {"name": "chat", "path": str(adapters[1])}]
    sidecar = new_sidecar(vllm.url, both, policy={"prune": True})
    await sidecar.start()
    await until_listed(api, "sql", "chat")
    assert (await api.load("learned", adapters[2])).status == 200
    await sidecar.event("adapter.adopted", adapter="learned")
    sidecar.declare(sql(adapters[0]))
    await until_listed(api, "sql", "learned", within=60)
