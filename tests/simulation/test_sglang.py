"""SGLang in the life of a pod; the fake answers as the source of 0.5.6 and 0.5.23 does, and no real one runs here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lora_sidecar.config.load import parse
from lora_sidecar.config.settings import Config
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.status.adapters import AdapterState
from lora_sidecar.status.board import adapters_of, unready
from tests.fakes.overrides import canned
from tests.fakes.sglang import FakeSglang, SglangConfig
from tests.simulation.conftest import Pod
from tests.support.drafts import Draft

pytestmark = [pytest.mark.asyncio, pytest.mark.looptime]

LOAD = ("POST", "/load_lora_adapter")
NAMES = [f"a{n:02}" for n in range(20)]
MANY = (
    "adapters: ["
    + ", ".join(f"{{name: {name}, path: /adapters/{name}, priority: {20 - n}}}" for n, name in enumerate(NAMES))
    + "]"
)
TWO = "adapters: [{name: sql, path: /adapters/sql, required: true}, {name: chat, path: /adapters/chat}]"


class SglangPod(Pod):
    """A pod whose server is a fake SGLang."""

    def __init__(self, server: FakeSglang, folder: Path, adapters: str, settings: str) -> None:
        anything: Any = server
        super().__init__(anything, folder, adapters, settings)
        self.sglang = server
        self.keys = ("", "")

    def config(self) -> Config:
        """The config as its file would be read, with the keys' files where there are some."""
        named = zip(("api_key_file", "admin_api_key_file"), self.keys, strict=True)
        keys = "".join(f", {key}: '{file}'" for key, file in named if file)
        server = f"servers: [{{name: vllm, url: '{self.sglang.url}'{keys}}}]"
        return parse(f"{server}\n{self._adapters}\n{self._settings}\n".encode(), "sidecar.yaml")

    def loads(self) -> list[str]:
        """The names in the load requests that the server received in this life, in order."""
        return [json.loads(request.body)["lora_name"] for request in self.sglang.requests if request[:2] == LOAD]

    async def somebody_loads(self, name: str, path: str | None = None) -> None:
        """Load an adapter past the sidecar."""
        await self.sglang.load(name, path or f"/adapters/{name}")

    def condition(self, kind: ConditionType) -> str | None:
        """The message of a condition that holds now."""
        return next((one.message for one in self.status.conditions if one.type is kind), None)

    def states(self) -> dict[str, AdapterState]:
        """The state of every desired adapter."""
        return {one.adapter.name: one.state for one in adapters_of(self.status)}


Making = Callable[..., AbstractAsyncContextManager[SglangPod]]


@pytest.fixture
def make_sglang(tmp_path: Path) -> Making:
    """Makes running pods with a fake SGLang."""

    @asynccontextmanager
    async def make(
        adapters: str = "", settings: str = "", keys: tuple[str, str] = ("", ""), **server: Any
    ) -> AsyncIterator[SglangPod]:
        # Time stands still while a socket is read: a load that took none would end as the listing was asked for.
        settled = {"load_delay": 0.01, "check_files": False} | server
        async with FakeSglang(SglangConfig(**settled)) as fake:
            pod = SglangPod(fake, tmp_path / "checkpoints", adapters, settings)
            (tmp_path / "checkpoints").mkdir()
            pod.keys = keys
            await pod.start()
            try:
                yield pod
            finally:
                await pod.die()

    return make


async def test_a_restart_of_sglang_restores_what_was_loaded(make_sglang: Making) -> None:
    """Declared and learned adapters are back after a restart, and the log says once which engine it is."""
    async with make_sglang(TWO, start_delay=20, warmup=5) as pod:
        await pod.until_listed("sql", "chat")
        await pod.somebody_loads("learned")
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_ADOPTED)), 6)
        await pod.sglang.kill()
        back = asyncio.create_task(pod.sglang.start())
        took = await pod.until(lambda: pod.sglang.running and not pod.sglang.starting, 40)
        assert 24 <= took <= 27
        assert await pod.until_listed("sql", "chat", "learned") < 1.0
        await back
        await pod.until(lambda: bool(pod.of(EventName.RECOVERY_COMPLETED)), 6)
        (identified,) = pod.of(EventName.SERVER_IDENTIFIED)
    assert identified.fields["engine"] == "sglang"
    assert pod.of(EventName.RECOVERY_COMPLETED)[0].fields["restored"] == 3
    assert len(pod.of(EventName.SERVER_DOWN)) == 1


async def test_nothing_is_loaded_while_sglang_warms_up(make_sglang: Making) -> None:
    """It listens and answers 503: that is no outage, and no load is sent."""
    async with make_sglang(TWO, warmup=30) as pod:
        await asyncio.sleep(25)
        assert pod.loads() == []
        assert pod.status.work.server.phase is Phase.STARTING
        await pod.until_listed("sql", "chat", within=7)
    assert pod.of(EventName.SERVER_DOWN) == []


async def test_a_pause_is_no_outage(make_sglang: Making) -> None:
    """A server that says that it is not ready, while it answers, is not down, and everything is as it was after it."""
    async with make_sglang(TWO) as pod:
        await pod.until_listed("sql", "chat")
        pod.sglang.override("GET", "/ready", canned(503))
        await asyncio.sleep(60)
        assert pod.status.work.server.phase is Phase.UNKNOWN
        pod.sglang.override("GET", "/ready", None)
        await asyncio.sleep(20)
        assert sorted(pod.loads()) == ["chat", "sql"]
    assert pod.of(EventName.SERVER_DOWN) == []
    assert pod.of(EventName.SERVER_RESTARTED) == []


async def test_more_adapters_than_the_limit_are_loaded_once_each(make_sglang: Making) -> None:
    """Of 20 adapters where 8 are kept, each is loaded once in a life, and the 8 most urgent are those that stay."""
    async with make_sglang(MANY, max_loaded_loras=8, load_delay=0.3) as pod:
        for _ in range(2):
            await pod.until(lambda: pod.sglang.running and len(pod.loads()) == 20, 60)
            await asyncio.sleep(600)
            assert sorted(pod.loads()) == NAMES
            assert sorted(pod.sglang.adapters) == NAMES[:8]
            assert pod.sglang.evictions == 12
            states = pod.states()
            assert [states[name] for name in NAMES] == [AdapterState.LISTED] * 8 + [AdapterState.EVICTED] * 12
            await pod.sglang.restart()
        failed = pod.of(EventName.RESTORE_FAILED)
    assert failed == []
    assert pod.of(EventName.ADAPTER_FORGOTTEN) == []


async def test_requests_for_evicted_adapters_cause_no_load_of_ours(make_sglang: Making) -> None:
    """While clients make the server exchange adapters all the time, the sidecar only looks on, and forgets nothing."""
    async with make_sglang(max_loaded_loras=4) as pod:
        for name in NAMES[:10]:
            await pod.somebody_loads(name)
            await asyncio.sleep(6)
        for turn in range(200):
            assert await pod.sglang.use(NAMES[turn * 7 % 10]) is None
            await asyncio.sleep(3)
        assert pod.loads() == []
        assert sorted(pod.status.desired.adapters) == NAMES[:10]
        await pod.die()
        await pod.start()
        await asyncio.sleep(60)
        assert pod.loads() == []
        await pod.sglang.restart()
        await pod.until(lambda: sorted(pod.loads()) == NAMES[:10], 30)
    assert pod.of(EventName.ADAPTER_FORGOTTEN) == []
    assert len(pod.of(EventName.SERVER_RESTARTED)) == 1


async def test_an_evicted_adapter_stays_evicted_when_there_is_room_again(make_sglang: Making) -> None:
    """Where somebody unloads what had pushed it out, the evicted adapter is not taken for unloaded."""
    settings = "policy: {adopt: {names: 'a.*'}}"
    async with make_sglang(settings=settings, max_loaded_loras=2) as pod:
        for name in NAMES[:2]:
            await pod.somebody_loads(name)
        await pod.until(lambda: len(pod.of(EventName.ADAPTER_ADOPTED)) == 2, 6)
        await pod.somebody_loads("stranger")
        await asyncio.sleep(20)
        del pod.sglang.registry["stranger"]
        await asyncio.sleep(60)
        assert pod.loads() == []
        assert pod.states() == {"a00": AdapterState.EVICTED, "a01": AdapterState.LISTED}
    assert pod.of(EventName.ADAPTER_FORGOTTEN) == []


async def test_a_deliberate_unload_is_respected_where_nothing_is_evicted(make_sglang: Making) -> None:
    """With room for all, an adapter that goes in the same life was unloaded; start-up times prove the life."""
    async with make_sglang(max_loaded_loras=8) as pod:
        for name in NAMES[:2]:
            await pod.somebody_loads(name)
        await pod.until(lambda: len(pod.of(EventName.ADAPTER_ADOPTED)) == 2, 6)
        del pod.sglang.registry["a00"]
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_FORGOTTEN)), 12)
        await asyncio.sleep(60)
        assert pod.loads() == []
    assert pod.of(EventName.ADAPTER_FORGOTTEN)[0].fields["evidence"] == "start_time"


async def test_a_restart_too_quick_to_see_is_told_by_the_start_up_times(make_sglang: Making) -> None:
    """One adapter lost between two heartbeats is restored: the new life took another time to start."""
    async with make_sglang(random_seed=7) as pod:
        await pod.somebody_loads("chat")
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_ADOPTED)), 6)
        await pod.sglang.restart()
        await pod.until_listed("chat", within=7)
    assert pod.of(EventName.ADAPTER_FORGOTTEN) == []
    assert pod.of(EventName.SERVER_RESTARTED)[0].fields["evidence"] == "start_time"


async def test_an_old_sglang_costs_few_health_checks(make_sglang: Making) -> None:
    """Without /ready a quiet hour costs one generated token, not one for each heartbeat."""
    async with make_sglang(TWO, version="0.5.6") as pod:
        await pod.until_listed("sql", "chat")
        await asyncio.sleep(10)
        before = pod.sglang.generated
        await asyncio.sleep(3600)
        assert pod.sglang.generated == before
        await pod.sglang.restart()
        await pod.until_listed("sql", "chat")
    assert pod.of(EventName.RESTORE_FAILED) == []


async def test_with_two_keys_each_request_carries_its_own(make_sglang: Making, tmp_path: Path) -> None:
    """The listing is asked for with the API key, and a load with the admin key, which the other does not replace."""
    (tmp_path / "api").write_text("secret-a\n")
    (tmp_path / "admin").write_text("secret-b\n")
    async with make_sglang(TWO, keys=(f"{tmp_path}/api", f"{tmp_path}/admin"), **KEYS) as pod:
        await pod.until_listed("sql", "chat")
        sent = {(request.path.split("?")[0], request.headers.get("Authorization")) for request in pod.sglang.requests}
    assert {key for path, key in sent if path == "/load_lora_adapter"} == {"Bearer secret-b"}
    assert {key for path, key in sent if path == "/v1/models"} == {"Bearer secret-a"}


KEYS: dict[str, Any] = {"api_key": "secret-a", "admin_api_key": "secret-b"}


async def test_a_missing_admin_key_is_named(make_sglang: Making, tmp_path: Path) -> None:
    """With the API key alone loads are refused: the condition says which key is missing, and no adapter is blamed."""
    (tmp_path / "api").write_text("secret-a\n")
    async with make_sglang(TWO, keys=(f"{tmp_path}/api", ""), **KEYS) as pod:
        await pod.until(lambda: bool(pod.of(EventName.CONDITION_RAISED)), 10)
        message = pod.condition(ConditionType.LOADING_REFUSED)
        assert message is not None
        assert "admin_api_key_file" in message
        assert pod.states() == dict.fromkeys(("chat", "sql"), AdapterState.HELD)


async def test_released_memory_cannot_be_seen_so_nothing_is_loaded(make_sglang: Making) -> None:
    """With --enable-memory-saver the server does not tell whether its memory is released: loads are withheld."""
    async with make_sglang(TWO, enable_memory_saver=True) as pod:
        await asyncio.sleep(60)
        assert pod.loads() == []
        message = pod.condition(ConditionType.ENGINE_STATE_UNKNOWN)
        assert message is not None
        assert "--enable-memory-saver" in message


async def test_replicas_are_named_instead_of_asked(make_sglang: Making) -> None:
    """With data-parallel replicas no load is sent that could only end in an internal error, and the reason is told."""
    async with make_sglang(TWO, dp_size=2) as pod:
        await pod.until(lambda: bool(pod.of(EventName.CONDITION_RAISED)), 10)
        assert pod.loads() == []
        message = pod.condition(ConditionType.LOADING_REFUSED)
        assert message is not None
        assert "2 data-parallel replicas" in message


async def test_adapters_from_tensors_are_not_adopted(make_sglang: Making) -> None:
    """An adapter that came from no path could not be loaded again."""
    async with make_sglang() as pod:
        await pod.somebody_loads("from-tensors", "__tensor__")
        await asyncio.sleep(7)
        assert pod.condition(ConditionType.ADOPTION_REFUSED) is not None
        assert pod.status.desired.adapters == {}


async def test_a_hung_engine_is_given_no_load(make_sglang: Making) -> None:
    """With the engine standing still the settings are not to be had, so nothing is known and nothing is loaded."""
    async with make_sglang(TWO) as pod:
        await pod.until_listed("sql", "chat")
        pod.sglang.hung = True
        del pod.sglang.registry["sql"]
        await asyncio.sleep(60)
        assert sorted(pod.loads()) == ["chat", "sql"]
        assert pod.status.work.server.phase is not Phase.UP
        pod.sglang.hung = False
        await pod.until_listed("sql", "chat")


async def test_a_required_adapter_that_was_evicted_keeps_the_pod_ready(make_sglang: Making) -> None:
    """The server serves it at the next request, so readiness does not flap with its cache."""
    adapters = TWO.replace("path: /adapters/chat}", "path: /adapters/chat, required: true}")
    async with make_sglang(adapters, max_loaded_loras=1) as pod:
        await pod.until(lambda: len(pod.loads()) == 2, 10)
        await asyncio.sleep(10)
        assert sorted(pod.states().values()) == [AdapterState.EVICTED, AdapterState.LISTED]
        assert unready(pod.status) == ()


async def test_what_would_kill_sglang_at_its_first_use_is_held_back(make_sglang: Making, tmp_path: Path) -> None:
    """SGLang would take it: it is not sent, a condition says why and how to send it all the same, and a key does."""
    bad, good = Draft().widen(2).write(tmp_path / "a" / "bad"), Draft().write(tmp_path / "a" / "good")
    declared = f"adapters: [{{name: bad, path: '{bad}'}}, {{name: good, path: '{good}'}}]"
    async with make_sglang(declared, check_files=True) as pod:
        await pod.until_listed("good")
        await asyncio.sleep(60)
        assert pod.loads() == ["good"]
        assert pod.states()["bad"] is AdapterState.PARKED
        said = pod.condition(ConditionType.ADAPTER_FAILING)
        assert said is not None
        assert "has rank 16, and the config says 8: SGLang would accept it and die of the first request for it" in said
        assert "preflight.hold_deadly" in said
        pod._settings = "preflight: {hold_deadly: false}"
        pod.reconfigure(declared)
        await pod.until_listed("good", "bad", within=10)


async def test_what_sglang_listed_and_would_die_of_is_not_brought_back(make_sglang: Making, tmp_path: Path) -> None:
    """It lists whatever it was given: adopted, it dies of it once, and is not given it again."""
    bad = Draft().keep(lambda name: "lora_A" in name).write(tmp_path / "a" / "bad")
    async with make_sglang(check_files=True) as pod:
        await pod.somebody_loads("bad", str(bad))
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_ADOPTED)), 6)
        await asyncio.sleep(20)
        for _ in range(2):
            await pod.sglang.restart()
            await asyncio.sleep(30)
            assert pod.loads() == []
        assert "has no lora_B beside it" in (pod.condition(ConditionType.ADAPTER_FAILING) or "")


async def test_rules_of_vllm_say_nothing_of_an_adapter_on_sglang(make_sglang: Making, tmp_path: Path) -> None:
    """What vLLM lacks may be served there: nothing is held back, and nothing is said of it."""
    path = Draft().say(bias="all", modules_to_save=["lm_head"], init_lora_weights="pissa").write(tmp_path / "a")
    async with make_sglang(f"adapters: [{{name: a, path: '{path}'}}]", check_files=True) as pod:
        await pod.until_listed("a")
        await pod.until(lambda: bool(pod.of(EventName.RESTORE_SUCCEEDED)), 6)
        (succeeded,) = pod.of(EventName.RESTORE_SUCCEEDED)
    assert "doubts" not in succeeded.fields
