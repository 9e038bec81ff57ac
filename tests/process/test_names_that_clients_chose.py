from __future__ import annotations

import json

import aiohttp
import pytest

from tests.process.conftest import NewSidecar, StartVllm
from tests.support.http_client import Api

LONG = "x" * 200_000
STRANGE = ["../../etc/passwd", "a b", "ünïcode 😀", 'quo"te\\', "{label=1}", "%2e%2e"]
REFUSED = [LONG, "two\nlines", "\x1b[31mred", "nul\x00", "\u2028"]


async def test_names_that_clients_chose_harm_nothing(
    start_vllm: StartVllm, new_sidecar: NewSidecar, session: aiohttp.ClientSession
) -> None:
    """Names of 200 kB, with line breaks or `../`: the log stays lines, the answers small, the memory bounded.

    What can be remembered is, and comes back after a restart; what cannot is said once, with the reason.
    """
    server = await start_vllm()
    api = Api(session, server.url)
    for name in STRANGE + REFUSED:
        assert (await api.load(name, "/adapters/x")).status == 200
    sidecar = new_sidecar(server.url, policy={"adopt": {"max": len(STRANGE) + 2}})
    await sidecar.start()
    raised = await sidecar.event("condition.raised", condition="AdoptionRefused")
    await sidecar.event("adapter.adopted", count=len(STRANGE))
    await sidecar.beats(20)
    assert [line["adapter"] for line in sidecar.named("adapter.adopted")] == STRANGE
    assert len(sidecar.named("condition.raised", condition="AdoptionRefused")) == 1
    assert "more than 256 characters" in raised["message"]
    assert all(len(line) < 8_000 for line in sidecar.log.splitlines())

    metrics, ready = (await sidecar.get("/metrics")).text, (await sidecar.get("/readyz?verbose")).text
    assert max(map(len, metrics.splitlines())) < 1_000
    assert "\x1b" not in ready + metrics
    assert len(ready) < 8_000
    checkpoints = sidecar.folder / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} <= {"vllm.json", "vllm.prev.json", "vllm.lock"}
    saved = json.loads((checkpoints / "vllm.json").read_text())
    assert {one["name"] for one in saved["adapters"]} == set(STRANGE)

    await server.restart()
    await sidecar.event("recovery.completed", lost=len(STRANGE), restored=len(STRANGE))
    assert set(await api.listed()) == set(STRANGE)


async def test_a_client_cannot_fill_the_memory(
    start_vllm: StartVllm, new_sidecar: NewSidecar, session: aiohttp.ClientSession
) -> None:
    """However many names are put into the listing, no more than `max` are remembered, and the reason is said once."""
    server = await start_vllm()
    api = Api(session, server.url)
    for number in range(60):
        await api.load(f"n{number:02}", "/adapters/x")
    sidecar = new_sidecar(server.url, policy={"adopt": {"max": 20}})
    await sidecar.start()
    raised = await sidecar.event("condition.raised", condition="AdoptionRefused")
    await sidecar.beats(20)
    assert len(sidecar.named("adapter.adopted")) == 20
    assert "policy.adopt.max of 20 is reached" in raised["message"]
    assert "and 21 more" in raised["message"]
    assert len(sidecar.named("condition.raised")) == 1


@pytest.mark.parametrize("path", ["/a" * 100_000, "/a\x00b", "/two\nlines", "/\x1b[31mred", "../../etc", "/\u2028"])
@pytest.mark.parametrize("policy", [{"replace": "never"}, {"replace": "always", "on_files_gone": "unload"}])
async def test_a_path_that_a_client_chose_harms_nothing(
    start_vllm: StartVllm, new_sidecar: NewSidecar, session: aiohttp.ClientSession, path: str, policy: dict[str, str]
) -> None:
    """A declared name that somebody loaded from a strange path: nothing ends over it, and every answer stays small."""
    server = await start_vllm()
    api = Api(session, server.url)
    assert (await api.load("sql", path)).status == 200
    sidecar = new_sidecar(server.url, [{"name": "sql", "path": "/adapters/sql"}], policy=policy)
    await sidecar.start()
    if policy["replace"] == "never":
        await sidecar.event("condition.raised", condition="AdapterPathDiffers")
    else:
        await sidecar.event("adapter.replaced", adapter="sql")
    await sidecar.beats(20)
    assert (await api.listed())["sql"] == (path if policy["replace"] == "never" else "/adapters/sql")
    assert all(len(line) < 17_000 and line.isprintable() for line in sidecar.log.splitlines())
    for place in ("/", "/status", "/metrics", "/readyz?verbose"):
        answer = await sidecar.get(place)
        assert answer.status == 200
        assert path not in answer.text or len(path) < 20
        assert "\x1b" not in answer.text
    saved = json.loads((sidecar.folder / "checkpoints" / "vllm.json").read_text())
    assert [one["path"] for one in saved["adapters"]] == ["/adapters/sql"]
