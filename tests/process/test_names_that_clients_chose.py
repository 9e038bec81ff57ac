from __future__ import annotations

import json

import aiohttp

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
