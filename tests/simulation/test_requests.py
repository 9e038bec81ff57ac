from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path
from typing import Any

import pytest

from lora_sidecar.checkpoint.decode import Checkpoint, decode
from lora_sidecar.checkpoint.store import read_file
from lora_sidecar.control.requests import Answer, Load, Pause, Request, Resume, Unload
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Desired, Origin
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.status.adapters import AdapterState
from tests.fakes.vllm import FakeConfig, canned, hang
from tests.simulation.conftest import LOAD, UNLOAD, Pod, PodMaker

pytestmark = pytest.mark.looptime

DECLARED = "adapters: [{name: sql, path: /adapters/sql, required: true}]"
ADDED = "Success: LoRA adapter 'chat' added successfully."
REMOVED = "Success: LoRA adapter '{}' removed successfully."
CHAT = Load("chat", "/adapters/chat")


async def ask(pod: Pod, intent: Request, within: float = 300.0) -> Answer:
    """Put a request down at the desk, and wait for its answer."""
    return await pod.watch.requests.submit(intent, within)


def on_disk(folder: Path) -> Desired:
    """What the checkpoint says."""
    found = decode(read_file(str(folder / "vllm.json")))
    assert isinstance(found, Checkpoint)
    return found.desired


def error(status: int, message: str, kind: str = "InternalServerError") -> dict[str, Any]:
    """The engine's frame of a refusal."""
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


async def test_requested_adapter_is_listed_when_it_is_answered(make_pod: PodMaker) -> None:
    """200 with the engine's words comes once the listing shows the adapter, and after a restart it is there again."""
    async with make_pod(server=FakeConfig(check_files=False, load_delay=2)) as pod:
        await pod.until(lambda: pod.status.beats > 0, 2)
        began = pod.now
        answer = await ask(pod, Load("chat", "/adapters/chat", is_3d_lora_weight=True))
        assert (answer.status, answer.message) == (200, ADDED)
        assert pod.now - began == pytest.approx(2.0, abs=0.5)
        assert pod.server.adapters == {"chat": "/adapters/chat"}
        assert pod.status.desired.adapters["chat"].origin is Origin.REQUESTED
        (sent,) = [json.loads(r.body) for r in pod.server.requests if r[:2] == LOAD]
        assert sent == {"lora_name": "chat", "lora_path": "/adapters/chat", "is_3d_lora_weight": True}
        await pod.server.restart()
        await pod.until_listed("chat")


async def test_engine_is_called_after_the_intent_is_on_disk(make_pod: PodMaker, tmp_path: Path) -> None:
    """At the moment the engine receives a load or an unload, the checkpoint already holds what was asked for."""
    seen: list[Desired] = []

    async def look(request: Any) -> Any:
        seen.append(on_disk(tmp_path))
        said = error(500, "LoRA rank 64 is greater than max_lora_rank 16.")
        return await canned(500, said, delay=0.05)(request)

    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        pod.server.override(*LOAD, look)
        pod.server.override(*UNLOAD, look)
        await ask(pod, CHAT)
        await ask(pod, Unload("sql"))
    assert seen[0].adapters["chat"].path == "/adapters/chat"
    assert "sql" not in seen[1].adapters
    assert seen[1].withdrawn["sql"].pending


@pytest.mark.parametrize("also_the_sidecar", [False, True])
async def test_load_asked_for_while_the_server_is_down(make_pod: PodMaker, *, also_the_sidecar: bool) -> None:
    """It is answered 202 at once, and carried out when the server is back, whoever died meanwhile."""
    async with make_pod() as pod:
        await pod.until(lambda: pod.status.beats > 0, 2)
        await pod.server.kill()
        await pod.until(lambda: pod.status.work.server.phase is Phase.DOWN, 6)
        began = pod.now
        answer = await ask(pod, CHAT)
        assert answer.status == 202
        assert "the server is down" in answer.message
        assert pod.now - began < 1
        if also_the_sidecar:
            await pod.die()
            await pod.start()
        await pod.server.start()
        await pod.until_listed("chat")


async def test_both_die_while_the_load_is_under_way(make_pod: PodMaker) -> None:
    """Nobody heard an answer, and the adapter is there when both are back."""
    async with make_pod(server=FakeConfig(check_files=False, load_delay=60)) as pod:
        await pod.until(lambda: pod.status.beats > 0, 2)
        waiting = asyncio.create_task(ask(pod, CHAT))
        await pod.until(lambda: pod.loads() == ["chat"], 6)
        await pod.die()
        await pod.server.kill()
        waiting.cancel()
        await pod.server.start()
        pod.server.load_delay = 0
        await pod.start()
        await pod.until_listed("chat")


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (500, "Call to add_lora method failed: LoRA rank 64 is greater than max_lora_rank 16.", "InternalServerError"),
        (404, "Loading lora chat failed: No adapter found for /adapters/chat", "NotFoundError"),
        (500, "something that nobody has ever read", "InternalServerError"),
    ],
)
async def test_refusal_is_passed_on_and_nothing_is_remembered(
    make_pod: PodMaker, tmp_path: Path, status: int, message: str, kind: str
) -> None:
    """The engine's own answer to a bad adapter comes through, and it is not tried again behind the client's back."""
    async with make_pod() as pod:
        pod.server.override(*LOAD, canned(status, error(status, message, kind), delay=0.05))
        answer = await ask(pod, CHAT)
        assert answer.status == status
        assert json.loads(answer.body) == error(status, message, kind)
        assert "chat" not in on_disk(tmp_path).adapters
        await asyncio.sleep(1300)
        assert pod.loads() == ["chat"]
        assert pod.of(EventName.CONDITION_RAISED) == []
        assert (await ask(pod, CHAT)).status == 200


async def test_refusal_leaves_what_was_desired_before(make_pod: PodMaker) -> None:
    """A declared adapter that a request tried in vain is still declared, and tried again in its own time."""
    async with make_pod(DECLARED) as pod:
        rank = error(500, "LoRA rank 64 is greater than max_lora_rank 16.")
        pod.server.override(*LOAD, canned(500, rank), times=2)
        await pod.until(lambda: bool(pod.of(EventName.RESTORE_FAILED)), 6)
        began = pod.now
        answer = await ask(pod, Load("sql", "/adapters/sql"))
        assert (answer.status, pod.now - began < 5) == (500, True)
        await pod.until_listed("sql", within=700)
        assert pod.status.desired.adapters["sql"].origin is Origin.DECLARED


async def test_faults_of_the_server_are_no_refusal(make_pod: PodMaker) -> None:
    """A server started without LoRA answers 202 with its own sentence; restarted with it, it gets the adapter."""
    async with make_pod() as pod:
        said = "Call to add_lora method failed: LoRA is not enabled. Use --enable-lora to enable LoRA."
        pod.server.override(*LOAD, canned(500, error(500, said)), times=None)
        for _ in range(2):
            answer = await ask(pod, CHAT)
            assert (answer.status, "LoRA is not enabled" in answer.message) == (202, True)
        await pod.server.restart()
        await pod.until_listed("chat")


async def test_sleeping_engine_gets_the_load_when_it_wakes(make_pod: PodMaker) -> None:
    """202 says that it sleeps; nothing reaches it before it is awake."""
    async with make_pod(server=FakeConfig(check_files=False, dev_mode=True, gpu=True)) as pod:
        pod.server.asleep = 1
        answer = await ask(pod, CHAT)
        assert (answer.status, "sleeps" in answer.message) == (202, True)
        assert pod.loads() == []
        pod.server.asleep = None
        await pod.until_listed("chat", within=7)


async def test_hung_load_is_answered_at_the_deadline(make_pod: PodMaker) -> None:
    """Nobody waits for ever: after the deadline the answer is 202, and the listing decides later."""
    async with make_pod(server=FakeConfig(check_files=False, load_delay=500)) as pod:
        began = pod.now
        answer = await ask(pod, CHAT, 300)
        assert (answer.status, pod.now - began) == (202, pytest.approx(300, abs=2))
        await pod.until_listed("chat", within=400)


async def test_request_that_no_heartbeat_takes_in_changes_nothing(make_pod: PodMaker, tmp_path: Path) -> None:
    """Where the server hangs for longer than the client may wait, the answer is 503 and nothing is done later."""
    async with make_pod(settings="heartbeat: {probe_timeout: 50s, list_timeout: 50s, liveness: 3m}") as pod:
        await pod.until(lambda: pod.status.beats > 0, 2)
        pod.server.override("GET", "/health", hang, times=1)
        await asyncio.sleep(6)
        answer = await ask(pod, CHAT, 10)
        assert (answer.status, "Nothing was changed" in answer.message) == (503, True)
        pod.server.behave()
        await asyncio.sleep(120)
        assert pod.loads() == []
        assert "chat" not in on_disk(tmp_path).adapters


@pytest.mark.parametrize(
    ("path", "origin"), [("/adapters/chat", Origin.REQUESTED), ("/elsewhere/chat", Origin.ADOPTED)]
)
async def test_loaded_already(make_pod: PodMaker, path: str, origin: Origin) -> None:
    """As vLLM answers, whatever the path; and an adapter that was asked for by its own path is remembered as such."""
    async with make_pod() as pod:
        await pod.somebody_loads("chat")
        answer = await ask(pod, Load("chat", path))
        assert (answer.status, answer.kind) == (400, "InvalidUserInput")
        assert "'chat' has already been loaded. If you want" in answer.message
        await asyncio.sleep(20)
        assert pod.status.desired.adapters["chat"].origin is origin
        assert pod.server.adapters == {"chat": "/adapters/chat"}


async def test_declared_name_with_another_path_is_the_configs(make_pod: PodMaker) -> None:
    """The config has the last word on a name that it declares: the answer says where to change it."""
    async with make_pod(DECLARED) as pod:
        pod.server.override(*LOAD, canned(404, error(404, "No adapter found for /adapters/sql", "NotFoundError")))
        answer = await ask(pod, Load("sql", "/other/sql"))
        assert (answer.status, "'/adapters/sql'" in answer.message) == (400, True)
        await pod.until_listed("sql")


async def test_base_models_name_is_refused(make_pod: PodMaker) -> None:
    """As vLLM 0.31 and later answer."""
    async with make_pod() as pod:
        assert (await ask(pod, Load("base", "/a"))).message == (
            "The lora adapter 'base' conflicts with a served base model."
        )
        assert pod.status.desired.adapters == {}


@pytest.mark.parametrize("name", ["sql", "learned", "asked"])
async def test_unload_is_never_undone_by_a_restore(make_pod: PodMaker, name: str) -> None:
    """Declared, learned or requested: unloaded by request it stays away, over restarts of the server and our own."""
    async with make_pod(DECLARED) as pod:
        await pod.somebody_loads("learned")
        await ask(pod, Load("asked", "/adapters/asked"))
        await pod.until_listed("sql", "learned", "asked")
        answer = await ask(pod, Unload(name))
        assert (answer.status, answer.message) == (200, REMOVED.format(name))
        left = {"sql", "learned", "asked"} - {name}
        assert set(pod.server.adapters) == left
        await asyncio.sleep(60)
        await pod.server.restart()
        await pod.until_listed(*left)
        await pod.die()
        await pod.server.restart()
        await pod.start()
        await pod.until_listed(*left)
        await asyncio.sleep(60)
        assert set(pod.server.adapters) == left
        answer = await ask(pod, Unload(name))
        assert (answer.status, answer.kind) == (404, "NotFoundError")
        assert answer.message == f"The lora adapter '{name}' cannot be found."


async def test_unload_while_the_server_is_down(make_pod: PodMaker) -> None:
    """202, remembered; what the server then has loaded by itself is unloaded, what it lost is not restored."""
    server = FakeConfig(check_files=False, lora_modules=(("static", "/static"),))
    async with make_pod(DECLARED, server=server) as pod:
        await pod.until_listed("sql", "static")
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_ADOPTED)), 6)
        await pod.server.kill()
        await pod.until(lambda: pod.status.work.server.phase is Phase.DOWN, 6)
        for name in ("sql", "static", "never-heard-of"):
            assert (await ask(pod, Unload(name))).status == 202
        await pod.die()
        await pod.start()
        await pod.server.start()
        await pod.until_listed(within=10)
        await asyncio.sleep(60)
        assert pod.server.adapters == {}
        assert set(pod.status.desired.withdrawn) == {"sql"}
        assert not pod.status.desired.withdrawn["sql"].pending


async def test_withdrawn_declared_adapter_loaded_by_hand_is_declared_again(make_pod: PodMaker) -> None:
    """Somebody wanted it back: from then on it is restored as the config says."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        await ask(pod, Unload("sql"))
        await pod.somebody_loads("sql")
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_REINSTATED)), 6)
        await pod.server.restart()
        await pod.until_listed("sql")


async def test_withdrawn_declared_adapter_comes_back_by_request(make_pod: PodMaker) -> None:
    """Loaded again through the control port it is declared as before."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        await ask(pod, Unload("sql"))
        assert (await ask(pod, Load("sql", "/adapters/sql"))).status == 200
        assert pod.status.desired.adapters["sql"].origin is Origin.DECLARED
        assert pod.status.desired.adapters["sql"].required


async def test_withdrawn_lasts_until_the_config_entry_changes(make_pod: PodMaker) -> None:
    """Another adapter's entry is no reason; its own is."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        await ask(pod, Unload("sql"))
        pod.reconfigure("adapters: [{name: sql, path: /adapters/sql, required: true}, {name: b, path: /b}]")
        await pod.until_listed("b")
        await asyncio.sleep(30)
        pod.reconfigure("adapters: [{name: sql, path: /adapters/sql-2, required: true}, {name: b, path: /b}]")
        await pod.until_listed("sql", "b")
        assert pod.server.adapters["sql"] == "/adapters/sql-2"


async def test_unload_during_the_load_of_that_name(make_pod: PodMaker) -> None:
    """The unload waits for the load under way and then takes it back: the adapter does not come up after it."""
    async with make_pod(server=FakeConfig(check_files=False, load_delay=20)) as pod:
        loading = asyncio.create_task(ask(pod, CHAT))
        await pod.until(lambda: pod.loads() == ["chat"], 6)
        unloading = asyncio.create_task(ask(pod, Unload("chat"), 60))
        loaded, unloaded = await asyncio.gather(loading, unloading)
        assert loaded.status in (200, 409)
        assert unloaded.status == 200
        await asyncio.sleep(120)
        assert pod.server.adapters == {}
        assert pod.loads() == ["chat"]


async def test_unload_that_the_server_refuses_changes_nothing(make_pod: PodMaker, tmp_path: Path) -> None:
    """Its own words come through, and the adapter is as remembered as before."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        said = error(500, "Failed to remove lora adapter sql")
        pod.server.override(*UNLOAD, canned(500, said))
        answer = await ask(pod, Unload("sql"))
        assert (answer.status, json.loads(answer.body)) == (500, said)
        assert "sql" in on_disk(tmp_path).adapters
        await asyncio.sleep(60)
        assert "sql" in pod.server.adapters


async def test_unload_that_nobody_answers_is_repeated(make_pod: PodMaker) -> None:
    """202 after the unload timed out; it is told again until the server has heard it."""
    async with make_pod() as pod:
        await ask(pod, CHAT)
        pod.server.override(*UNLOAD, hang, times=1)
        answer = await ask(pod, Unload("chat"), 60)
        assert (answer.status, "timeout" in answer.message) == (202, True)
        await pod.until_listed(within=20)


async def test_load_after_an_unload_that_is_still_to_be_told(make_pod: PodMaker) -> None:
    """Of two requests for one name the later wins, each in its turn, as with the engine's own lock."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        answers = await asyncio.gather(ask(pod, Unload("sql")), ask(pod, Load("sql", "/adapters/sql")))
        assert [answer.status for answer in answers] == [200, 200]
        await asyncio.sleep(60)
        assert "sql" in pod.server.adapters


async def test_pause_keeps_hands_still_over_our_own_restart(make_pod: PodMaker) -> None:
    """Nothing is loaded or unloaded until resume; the reason is told, and memory goes on."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        assert (await ask(pod, Pause("moving the disk"))).status == 200
        load, unload = await asyncio.gather(ask(pod, CHAT), ask(pod, Unload("sql")))
        await asyncio.sleep(60)
        assert set(pod.server.adapters) == {"sql"}
        await pod.server.restart()
        assert (load.status, unload.status) == (202, 202)
        assert "moving the disk" in load.message
        await pod.die()
        await pod.start()
        await asyncio.sleep(120)
        assert pod.loads() == []
        assert pod.server.adapters == {}
        (condition,) = pod.status.conditions
        assert (condition.type, "moving the disk" in condition.message) == (ConditionType.PAUSED, True)
        (chat,) = pod.status.adapters
        assert (chat.state, "moving the disk" in chat.reason) == (AdapterState.HELD, True)
        assert (await ask(pod, Resume())).status == 200
        await pod.until_listed("chat")
        assert pod.status.conditions == ()


async def test_adapters_loaded_by_hand_during_a_pause_are_remembered(make_pod: PodMaker) -> None:
    """A pause stills the hands and not the eyes."""
    async with make_pod() as pod:
        await ask(pod, Pause())
        await pod.somebody_loads("chat")
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_ADOPTED)), 6)
        await pod.server.restart()
        await asyncio.sleep(30)
        assert pod.loads() == []
        await ask(pod, Resume())
        await pod.until_listed("chat")


async def test_disk_that_cannot_be_written_refuses_requests(
    make_pod: PodMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What cannot be remembered is neither done nor answered with a promise: 503, and the engine is not called."""
    async with make_pod(DECLARED) as pod:
        await pod.until_listed("sql")
        await asyncio.sleep(10)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr("lora_sidecar.checkpoint.disk.os.fsync", full)
            for intent in (CHAT, Unload("sql"), Pause("x")):
                answer = await ask(pod, intent, 60)
                assert (answer.status, "No space left" in answer.message) == (503, True), answer
                assert "Nothing was changed" in answer.message
        assert pod.server.adapters == {"sql": "/adapters/sql"}
        assert pod.loads() == ["sql"]
        answer = await ask(pod, CHAT)
        assert answer.status == 200
        assert set(on_disk(tmp_path).adapters) == {"sql", "chat"}


async def test_many_requests_at_once_are_each_answered(make_pod: PodMaker) -> None:
    """Two hundred loads put down together are all carried out, one at a time."""
    async with make_pod(server=FakeConfig(check_files=False, load_delay=0.05)) as pod:
        answers = await asyncio.gather(*(ask(pod, Load(f"a{n}", f"/a/{n}")) for n in range(200)))
        assert {answer.status for answer in answers} == {200}
        assert sorted(pod.loads()) == sorted(f"a{n}" for n in range(200))


async def test_state_and_since_of_each_adapter(make_pod: PodMaker) -> None:
    """`since` is when the state began, and an unchanged state keeps it."""
    async with make_pod(DECLARED) as pod:
        await pod.until(lambda: pod.status.adapters[0].state is AdapterState.LISTED, 6)
        (first,) = pod.status.adapters
        await asyncio.sleep(60)
        assert pod.status.adapters == (first,)
        await pod.server.kill()
        await pod.until(lambda: pod.status.adapters[0].state is AdapterState.UNKNOWN, 6)
        (down,) = pod.status.adapters
        assert down.since == pytest.approx(pod.now, abs=0.5)
        await asyncio.sleep(30)
        assert pod.status.adapters == (down,)


async def test_what_was_promised_is_kept_though_it_is_refused_later(make_pod: PodMaker, tmp_path: Path) -> None:
    """After a 202 a refusal shows in the adapter's state, and the adapter stays remembered until it is unloaded."""
    rank = error(500, "LoRA rank 64 is greater than max_lora_rank 16.")
    async with make_pod() as pod:
        pod.server.override(*LOAD, canned(500, rank, delay=30), times=None)
        assert (await ask(pod, CHAT, 10)).status == 202
        await pod.until(lambda: bool(pod.of(EventName.RESTORE_FAILED)), 60)
        await asyncio.sleep(1)
        (chat,) = pod.status.adapters
        assert (chat.state, "max_lora_rank" in chat.reason) == (AdapterState.PARKED, True)
        assert "chat" in on_disk(tmp_path).adapters
        assert (await ask(pod, Unload("chat"))).status == 200
        assert on_disk(tmp_path).adapters == {}


async def test_one_load_asked_for_twice_and_refused_is_forgotten(make_pod: PodMaker, tmp_path: Path) -> None:
    """Both clients get the refusal, and nothing is left of either request."""
    async with make_pod() as pod:
        rank = error(500, "LoRA rank 64 is greater than max_lora_rank 16.")
        pod.server.override(*LOAD, canned(500, rank, delay=1), times=None)
        first, second = await asyncio.gather(ask(pod, CHAT), ask(pod, CHAT))
        assert (first.status, second.status) == (500, 500)
        assert on_disk(tmp_path).adapters == {}


async def test_load_of_a_quarantined_adapter(make_pod: PodMaker) -> None:
    """Asked for again, an adapter that killed the server twice is remembered and not loaded; 202 says why."""
    server = FakeConfig(check_files=False, load_delay=0.05, deadly=("/adapters/chat",))
    async with make_pod(DECLARED, server=server) as pod:
        await pod.until_listed("sql")
        asked = asyncio.create_task(ask(pod, CHAT))
        for _ in range(2):
            await pod.server.engine.death()
            await asyncio.sleep(5)
            await pod.server.restart()
        await pod.until(lambda: bool(pod.of(EventName.RESTORE_QUARANTINED)), 30)
        assert (await asked).status == 202
        answer = await ask(pod, CHAT)
        assert answer.status == 202
        assert "the server died twice while it was being loaded or probed; held back for 1h" in answer.message
        await asyncio.sleep(60)
        assert pod.loads() == ["sql"]
