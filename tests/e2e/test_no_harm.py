"""A restore that makes nothing worse: what is resident after it, what is never sent, and files that vanish."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import PATIENCE, NewSidecar, answers, until_listed
from tests.support.adapters import WEIGHTS, write_adapter
from tests.support.cases import write_cases
from tests.support.http_client import Api
from tests.support.servers import RunningServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

LOAD = '"POST /v1/load_lora_adapter '


async def resident(api: Api) -> set[str]:
    """The adapters whose weights the engine holds.

    It numbers them in the order of their loads, from 1 in each life, and that is the order of the listing.
    """
    reply = await api.ask("POST", "/collective_rpc", body={"method": "list_loras"})
    assert reply.status == 200, reply.text
    names = list(await api.listed())
    return {names[int(number) - 1] for number in re.findall("[0-9]+", str(reply.json()["results"]))}


async def test_the_highest_priorities_are_resident_after_a_restore(
    own_vllm: Callable[..., Any],
    new_sidecar: NewSidecar,
    session: aiohttp.ClientSession,
    adapters: Sequence[Path],
    tmp_path: Path,
) -> None:
    """Of eight adapters for a cache of four, the four most important are in it, in the first life and in the second.

    That they are is asked of the engine, and shown: they answer as before though their folders are gone, where an
    adapter that has to be read again would kill the server.
    """
    server = await own_vllm(max_cpu_loras=4, dev_mode=True)
    api = Api(session, server.url)
    paths = {f"p{n}": Path(shutil.copytree(adapters[n], tmp_path / "own" / f"p{n}")) for n in range(8)}
    declared = [{"name": name, "path": str(path), "priority": int(name[1])} for name, path in paths.items()]
    guarded = [{"name": "vllm", "url": server.url, "max_cpu_loras": 4}]
    sidecar = new_sidecar(server.url, declared, servers=guarded)
    await sidecar.start()
    await until_listed(api, *paths)
    assert await resident(api) == {"p7", "p6", "p5", "p4"}

    await server.restart()
    await until_listed(api, *paths)
    assert await resident(api) == {"p7", "p6", "p5", "p4"}

    important = ("p7", "p6", "p5", "p4")
    before = await answers(api, important)
    for name in important:
        shutil.rmtree(paths[name])
    missing = await sidecar.event("condition.raised", condition="AdapterFilesMissing", within=60)
    assert "is gone" in missing["message"]
    assert "kills the server" in missing["hint"]
    assert await answers(api, important) == before
    assert server.returncode is None


async def test_only_what_a_limit_forbids_and_what_is_half_copied_is_not_sent(
    vllm: RunningServer, api: Api, new_sidecar: NewSidecar, broken: Mapping[str, Path], tmp_path: Path
) -> None:
    """The server says what it thinks of every other, unharmed; a half-copied one is sent once it is whole."""
    good, half = write_adapter(tmp_path / "own" / "good"), write_adapter(tmp_path / "own" / "half", seed=1)
    whole = (half / WEIGHTS).read_bytes()
    (half / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    held = ("rank_64", "truncated", "empty_weights")
    sent = ("dora", "no_weights", "garbage", "config_not_json", "without_r", "rank_zero", "a_file")
    paths = {fault: broken[fault] for fault in (*held, *sent)} | {"good": good, "half": half}
    declared = [{"name": name, "path": str(path)} for name, path in paths.items()]
    guarded = [{"name": "vllm", "url": vllm.url, "max_lora_rank": 16}]
    sidecar = new_sidecar(vllm.url, declared, servers=guarded)
    await sidecar.start()
    await until_listed(api, "good")
    for name in (*held, "half"):
        failed = await sidecar.event("restore.failed", adapter=name)
        assert failed["message"].startswith("preflight, not sent: "), failed
    for name in sent:
        failed = await sidecar.event("restore.failed", adapter=name)
        assert failed["status"] in (404, 500), failed
        assert "preflight" not in failed["message"], failed
    (half / WEIGHTS).write_bytes(whole)
    await until_listed(api, "good", "half")

    assert set(await answers(api, ["base", "good", "half"])) == {"base", "good", "half"}


async def test_a_rank_that_the_server_refuses_is_asked_for_each_adapter(
    vllm: RunningServer, api: Api, new_sidecar: NewSidecar, tmp_path: Path
) -> None:
    """What it said of one binds no other: it is asked three times, and each is parked with its words."""
    sent = vllm.log.read_text(errors="replace").count(LOAD)
    paths = {f"wide{n}": write_adapter(tmp_path / "own" / f"wide{n}", rank=64, layers=1) for n in range(3)}
    sidecar = new_sidecar(vllm.url, [{"name": name, "path": str(path)} for name, path in paths.items()])
    await sidecar.start()
    messages = [(await sidecar.event("restore.failed", adapter=name))["message"] for name in paths]

    assert all("LoRA rank 64 is greater than max_lora_rank 16." in message for message in messages)
    assert not any("preflight" in message for message in messages)
    assert vllm.log.read_text(errors="replace").count(LOAD) - sent == len(paths)
    assert await api.listed() == {}


async def test_every_adapter_that_the_server_loads_is_back_after_a_kill(
    vllm: RunningServer, api: Api, new_sidecar: NewSidecar, tmp_path: Path
) -> None:
    """Adapters as people have them, loaded by hand: whatever is thought of a folder, the server had taken it."""
    paths = {f"case{n}": path for n, path in enumerate(write_cases(tmp_path / "cases").values())}
    loaded = {name for name, path in paths.items() if (await api.load(name, path)).status == 200}
    sidecar = new_sidecar(vllm.url)
    await sidecar.start()
    await sidecar.event("server.up", within=PATIENCE)
    await sidecar.beats(3)
    adopted = {one["adapter"] for one in sidecar.named("adapter.adopted")}
    # A path that does not print may be left alone.
    assert loaded - adopted <= {name for name, path in paths.items() if not str(path).isprintable()}
    await vllm.restart()
    await until_listed(api, *adopted)

    assert sidecar.named("restore.failed") == []


async def test_unloading_defuses_an_adapter_whose_files_are_gone(
    vllm: RunningServer, api: Api, new_sidecar: NewSidecar, adapters: Sequence[Path], tmp_path: Path
) -> None:
    """It answers 404 instead of being a bomb, and is loaded again when its files are back."""
    one = Path(shutil.copytree(adapters[0], tmp_path / "own" / "one"))
    two = Path(shutil.copytree(adapters[1], tmp_path / "own" / "two"))
    assert (await api.load("one", one)).status == 200
    sidecar = new_sidecar(vllm.url, [{"name": "two", "path": str(two)}], policy={"on_files_gone": "unload"})
    await sidecar.start()
    await until_listed(api, "one", "two")
    before = await answers(api, ["one", "two"])
    await sidecar.beats(5)
    shutil.rmtree(one)
    await until_listed(api, "two", within=60)
    assert (await api.complete("one")).status == 404
    await sidecar.event("adapter.defused", adapter="one")
    shutil.copytree(adapters[0], one)
    await until_listed(api, "one", "two", within=PATIENCE)
    assert await answers(api, ["one", "two"]) == before
    assert sidecar.named("adapter.forgotten") == []
