from __future__ import annotations

from tests.process.conftest import NewSidecar, StartVllm
from tests.support.http_client import Api
from tests.support.servers import RunningServer

HEALTHY = "/serverz/vllm"


async def test_a_hung_engine_fails_serverz_and_nothing_else(new_sidecar: NewSidecar, start_vllm: StartVllm) -> None:
    """With a load that gets no answer /serverz turns 503 with the reason, and 200 by itself when the engine goes on."""
    vllm = await start_vllm()
    sidecar = new_sidecar(vllm.url, [{"name": "one", "path": "/adapters/one"}], server_health={"hung_after": "1s"})
    vllm.stop_engine()
    await sidecar.start()
    sick = await sidecar.answers(HEALTHY, 503, "has answered no load and no probe for 1s")
    assert sick.text.startswith("not ok\nvllm: ")
    assert (await sidecar.get("/livez")).status == 200
    assert "condition ServerHung" in (await sidecar.get("/readyz?verbose")).text
    vllm.continue_engine()
    assert (await sidecar.answers(HEALTHY, 200)).text == "ok\n"
    await sidecar.event("condition.cleared", condition="ServerHung")


async def test_serverz_is_well_where_nothing_is_known(new_sidecar: NewSidecar, vllm: RunningServer) -> None:
    """A server that has not answered yet, one that is away and a name that is not in the config end no container."""
    sidecar = new_sidecar("http://127.0.0.1:9")
    await sidecar.start()
    assert (await sidecar.answers(HEALTHY, 200)).text.startswith("ok\n")
    assert (await sidecar.get("/serverz/other")).status == 404
    other = new_sidecar(vllm.url)
    await other.start()
    await other.event("server.up")
    await vllm.sigkill_all()
    await other.event("server.down")
    assert (await other.get(HEALTHY)).status == 200


async def test_a_paused_engine_is_not_hung(new_sidecar: NewSidecar, start_vllm: StartVllm, api: Api) -> None:
    """An engine that says it is paused owes no answer, whatever waits for it."""
    vllm = await start_vllm(dev_mode=True)
    sidecar = new_sidecar(vllm.url, [{"name": "one", "path": "/adapters/one"}], server_health={"hung_after": "1s"})
    paused = Api(api._session, vllm.url)
    assert (await paused.ask("POST", "/pause")).json() == {"status": "paused"}
    vllm.stop_engine()
    await sidecar.start()
    await sidecar.event("server.up")
    await sidecar.beats(20)
    assert (await sidecar.get(HEALTHY)).status == 200
    assert sidecar.named("condition.raised", condition="ServerHung") == []
    assert (await paused.ask("POST", "/resume")).json() == {"status": "resumed"}
    await sidecar.answers(HEALTHY, 503)
    vllm.continue_engine()
    await sidecar.answers(HEALTHY, 200)
