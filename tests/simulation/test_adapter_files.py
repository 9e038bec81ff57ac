"""Adapter folders that are bad, mended, half copied, gone and back, in front of a server that would take anything."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_sidecar.control.requests import Load
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.files import preflight
from lora_sidecar.files import watcher as survey
from lora_sidecar.files.folder import warm
from lora_sidecar.reconcile.state import Verdict
from lora_sidecar.status.adapters import AdapterState
from lora_sidecar.status.board import adapters_of
from tests.fakes.folder import AdapterRefusedError, read_adapter
from tests.fakes.vllm import FakeConfig, canned
from tests.simulation.conftest import LOAD, Pod, PodMaker
from tests.support.adapters import CONFIG, WEIGHTS, adapter_config, write_adapter
from tests.support.cases import write_cases
from tests.support.disk_errors import failing
from tests.support.drafts import Draft

pytestmark = pytest.mark.looptime

# Time passes during a load, so that a listing is asked for before or after it and never at the same instant.
SLOW = FakeConfig(check_files=False, load_delay=0.05)
UNLOAD = ("POST", "/v1/unload_lora_adapter")


def declaring(**paths: Path) -> str:
    """The config's adapters."""
    return "adapters: [" + ", ".join(f"{{name: {name}, path: '{path}'}}" for name, path in paths.items()) + "]"


def state(pod: Pod, name: str) -> tuple[AdapterState, str]:
    """The state of an adapter, and the reason."""
    (one,) = [one for one in adapters_of(pod.status) if one.adapter.name == name]
    return one.state, one.reason


def files_missing(pod: Pod) -> str:
    """The message of the condition, empty while it does not hold."""
    of = [one.message for one in pod.status.conditions if one.type is ConditionType.ADAPTER_FILES_MISSING]
    return of[0] if of else ""


def unloads(pod: Pod) -> list[str]:
    """The names that the server was asked to unload."""
    return [json.loads(request.body)["lora_name"] for request in pod.server.requests if request[:2] == UNLOAD]


def pickled(folder: Path) -> Path:
    """An adapter whose weights are a pickle, which is not sent unless the config allows it."""
    return Draft().as_torch("adapter_model.bin").write(folder)


async def test_what_a_limit_forbids_is_never_sent(make_pod: PodMaker, tmp_path: Path) -> None:
    """It is parked with the reason, the others are loaded; mended, it is loaded in two heartbeats."""
    bad, good = pickled(tmp_path / "a" / "bad"), write_adapter(tmp_path / "a" / "good")
    async with make_pod(declaring(bad=bad, good=good)) as pod:
        await pod.until_listed("good")
        await asyncio.sleep(200)
        assert pod.loads() == ["good"]
        reason = "its weights are a pickle, adapter_model.bin, and preflight.allow_pickle is false"
        assert state(pod, "bad") == (AdapterState.PARKED, f"preflight, not sent: {reason}")
        write_adapter(bad, layers=1)
        assert await pod.until_listed("good", "bad") <= 10


async def test_a_broken_adapter_is_sent_and_refused_in_the_engines_own_words(
    make_pod: PodMaker, tmp_path: Path
) -> None:
    """What we had found stands beside them; it is tried no more often for it, and mended it is loaded at once."""
    dora, strange = write_adapter(tmp_path / "a" / "dora", layers=1, use_dora=True), tmp_path / "a" / "strange"
    Draft().rename(lambda name: name.replace("lora_A", "lora_down")).write(strange)
    async with make_pod(declaring(dora=dora, strange=strange), server=FakeConfig(load_delay=0.05)) as pod:
        await pod.until(lambda: len(pod.of(EventName.RESTORE_FAILED)) == 2, 10)
        failed = {one.fields["adapter"]: one.fields for one in pod.of(EventName.RESTORE_FAILED)}
        assert failed["dora"]["message"].startswith("Call to add_lora method failed")
        assert failed["dora"]["doubts"] == ["vLLM does not yet support DoRA."]
        assert "is unsupported LoRA weight" in failed["strange"]["message"]
        await asyncio.sleep(300)
        assert sorted(pod.loads()) == ["dora", "strange"]
        assert state(pod, "dora")[0] is AdapterState.PARKED
        write_adapter(dora, layers=1)
        Draft().write(strange.with_name("mended")).rename(tmp_path / "mended")
        shutil.rmtree(strange)
        (tmp_path / "mended").rename(strange)
        assert await pod.until_listed("dora", "strange") <= 10


async def test_whatever_the_engine_takes_is_restored(make_pod: PodMaker, tmp_path: Path) -> None:
    """Adapters as people have them, loaded by hand: all that it accepted are back after a kill, whatever we think."""
    paths = write_cases(tmp_path / "cases")
    async with make_pod(server=FakeConfig(load_delay=0.01)) as pod:
        for name, path in paths.items():
            try:
                read_adapter(str(path), max_rank=16)
            except AdapterRefusedError:
                continue
            await pod.somebody_loads(name, str(path))
        accepted = set(pod.server.adapters)
        assert len(accepted) == 52
        await asyncio.sleep(20)
        adopted = {one.adapter.name for one in adapters_of(pod.status)}
        await pod.server.restart()
        await pod.until_listed(*adopted, within=60)
        # A name that does not print may be left alone.
        assert {name for name in accepted - adopted if name.isprintable()} == set()
        assert not pod.of(EventName.RESTORE_FAILED)


async def test_a_half_copied_adapter_is_loaded_when_it_is_whole(make_pod: PodMaker, tmp_path: Path) -> None:
    """While the copy runs nothing is sent; the backoff that it ran up does not hold the whole one up."""
    folder = write_adapter(tmp_path / "a", layers=1)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:1000])
    async with make_pod(declaring(a=folder)) as pod:
        await asyncio.sleep(300)
        assert pod.loads() == []
        assert "not fully covered" in state(pod, "a")[1] or "header" in state(pod, "a")[1]
        (folder / WEIGHTS).write_bytes(whole)
        assert await pod.until_listed("a", within=70) <= 65


async def test_a_path_that_cannot_be_seen_is_passed_on(make_pod: PodMaker, tmp_path: Path) -> None:
    """Not mounted here, or a hub id: the server decides, and the log says that nobody checked."""
    async with make_pod(declaring(far=tmp_path / "nowhere", hub=Path("org/name")), server=SLOW) as pod:
        await pod.until_listed("far", "hub")
        await pod.until(lambda: len(pod.of(EventName.RESTORE_SUCCEEDED)) == 2, 6)
        said = {one.fields["adapter"]: one.fields["unchecked"] for one in pod.of(EventName.RESTORE_SUCCEEDED)}
    assert said["far"] == "it cannot be seen from here: No such file or directory"
    assert said["hub"] == "it is a hub id, which only the server resolves"


async def test_a_rank_that_one_adapter_was_refused_for_binds_no_other(make_pod: PodMaker, tmp_path: Path) -> None:
    """The second adapter of that rank is sent, and may be accepted: the sentence spoke of the first."""
    one, two = write_adapter(tmp_path / "a" / "one", rank=64), write_adapter(tmp_path / "a" / "two", rank=64)
    text = "LoRA rank 64 is greater than max_lora_rank 16."
    async with make_pod(declaring(one=one, two=two), server=SLOW) as pod:
        pod.server.override(*LOAD, canned(500, {"error": {"message": text}}), times=1)
        await pod.until_listed("two", within=10)
        assert pod.loads() == ["one", "two"]
        assert state(pod, "one") == (AdapterState.PARKED, text)


@pytest.mark.parametrize("limit", ["preflight: {allow_pickle: false}", "preflight: {roots: [/elsewhere]}"])
async def test_what_was_listed_is_restored_from_the_same_files_whatever_forbids_it(
    make_pod: PodMaker, tmp_path: Path, limit: str
) -> None:
    """A declared adapter that a limit forbids, loaded by somebody: back in every life, until its bytes are others."""
    folder = pickled(tmp_path / "a")
    async with make_pod(declaring(a=folder), limit, SLOW) as pod:
        await asyncio.sleep(10)
        assert state(pod, "a")[0] is AdapterState.PARKED
        await pod.somebody_loads("a", str(folder))
        await asyncio.sleep(20)
        for _ in range(2):
            await pod.server.restart()
            await pod.until_listed("a", within=10)
        (folder / "adapter_model.bin").write_bytes(b"PK another program")
        await pod.server.restart()
        await asyncio.sleep(60)
        assert pod.loads() == []


async def test_files_changed_all_the_time_make_no_storm(make_pod: PodMaker, tmp_path: Path) -> None:
    """A refused adapter whose files change at every heartbeat is tried at the plain backoff, a minute at most."""
    folder = write_adapter(tmp_path / "a", layers=1)
    async with make_pod(declaring(a=folder)) as pod:
        pod.server.override(*LOAD, canned(500, {"error": {"message": "but received ['z_proj']"}}), times=None)
        for beat in range(120):
            (folder / CONFIG).write_text(json.dumps(adapter_config(lora_dropout=beat / 1000)))
            await asyncio.sleep(5)
        assert 10 <= len(pod.loads()) <= 20


async def test_files_touched_all_the_time_are_the_same_files(make_pod: PodMaker, tmp_path: Path) -> None:
    """As on a file system that gives them new inodes and times at each look: a refused adapter stays parked."""
    folder = write_adapter(tmp_path / "a", layers=1)
    async with make_pod(declaring(a=folder)) as pod:
        pod.server.override(*LOAD, canned(500, {"error": {"message": "but received ['z_proj']"}}), times=None)
        for beat in range(100):
            os.utime(folder / WEIGHTS, ns=(beat, beat))
            await asyncio.sleep(5)
        assert len(pod.loads()) == 1


async def test_vanished_files_of_a_listed_adapter_are_warned_of(make_pod: PodMaker, tmp_path: Path) -> None:
    """The condition says which and what will happen, nothing is unloaded, and it clears when they are back."""
    one, two = write_adapter(tmp_path / "a" / "one", layers=1), write_adapter(tmp_path / "a" / "two", layers=1)
    async with make_pod(declaring(one=one, two=two)) as pod:
        await pod.until_listed("one", "two")
        await asyncio.sleep(10)
        shutil.rmtree(one)
        await pod.until(lambda: files_missing(pod) == f"one: {one} is gone", 20)
        (condition,) = [c for c in pod.status.conditions if c.type is ConditionType.ADAPTER_FILES_MISSING]
        assert "the next request for it kills the server" in condition.hint
        await asyncio.sleep(60)
        assert unloads(pod) == []
        write_adapter(one, layers=1)
        await pod.until(lambda: not files_missing(pod), 20)


async def test_unloading_defuses_and_the_files_bring_it_back(make_pod: PodMaker, tmp_path: Path) -> None:
    """A learned adapter whose folder is gone is unloaded once, not forgotten, and loaded when its files are back."""
    one, two = write_adapter(tmp_path / "a" / "one", layers=1), write_adapter(tmp_path / "a" / "two", layers=1)
    async with make_pod(declaring(two=two), "policy: {on_files_gone: unload}") as pod:
        await pod.somebody_loads("one", str(one))
        await pod.until_listed("one", "two")
        await asyncio.sleep(10)
        shutil.rmtree(one)
        await pod.until_listed("two", within=20)
        await asyncio.sleep(120)
        assert unloads(pod) == ["one"]
        assert pod.loads() == ["two"]
        assert state(pod, "one") == (AdapterState.PARKED, f"{one} is gone")
        write_adapter(one, layers=1)
        await pod.until_listed("one", "two", within=15)


async def test_a_folder_that_is_exchanged_is_no_bomb(make_pod: PodMaker, tmp_path: Path) -> None:
    """Files that are away for less than two looks unload nothing."""
    one, two = write_adapter(tmp_path / "a" / "one", layers=1), write_adapter(tmp_path / "a" / "two", layers=1)
    async with make_pod(declaring(one=one, two=two), "policy: {on_files_gone: unload}") as pod:
        await pod.until_listed("one", "two")
        await asyncio.sleep(10)
        for _ in range(5):
            shutil.rmtree(one)
            await asyncio.sleep(3)
            write_adapter(one, layers=1)
            await asyncio.sleep(17)
        assert unloads(pod) == []


@pytest.mark.parametrize("how", ["wiped", "renamed"])
async def test_a_volume_that_goes_away_unloads_nothing(make_pod: PodMaker, tmp_path: Path, how: str) -> None:
    """Everything gone at once is the volume's doing: no adapter is unloaded, and all are as before when it is back."""
    names = [f"a{n}" for n in range(5)]
    paths = {name: write_adapter(tmp_path / "volume" / name, layers=1) for name in names}
    async with make_pod(declaring(**paths), "policy: {on_files_gone: unload}") as pod:
        await pod.until_listed(*names)
        await asyncio.sleep(10)
        if how == "renamed":
            (tmp_path / "volume").rename(tmp_path / "elsewhere")
        else:
            for path in paths.values():
                shutil.rmtree(path)
        await asyncio.sleep(120)
        assert unloads(pod) == []
        assert set(pod.server.adapters) == set(names)
        assert bool(files_missing(pod)) == (how == "wiped")


@pytest.mark.parametrize("what", ["", CONFIG, WEIGHTS])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
async def test_a_folder_that_answers_with_an_error_unloads_nothing(
    make_pod: PodMaker, tmp_path: Path, number: int, what: str
) -> None:
    """However long: a healthy adapter is neither unloaded nor warned of, and after a restart the server is asked."""
    one, two = write_adapter(tmp_path / "a" / "one", layers=1), write_adapter(tmp_path / "a" / "two", layers=1)
    async with make_pod(declaring(one=one, two=two), "policy: {on_files_gone: unload}", SLOW) as pod:
        await pod.until_listed("one", "two")
        await asyncio.sleep(20)
        with failing(one / what, number):
            await asyncio.sleep(60)
            assert (unloads(pod), files_missing(pod)) == ([], "")
            assert state(pod, "one")[0] is AdapterState.LISTED
            await pod.server.restart()
            await pod.until_listed("one", "two", within=15)
        await asyncio.sleep(30)
        assert unloads(pod) == []


async def test_links_into_a_volume_that_only_the_server_mounts_are_passed_on(
    make_pod: PodMaker, tmp_path: Path
) -> None:
    """The folder, or its weights alone: loaded, listed, never called gone, and loaded again after a restart."""
    there = write_adapter(tmp_path / "a" / "there", layers=1)
    weights = write_adapter(tmp_path / "a" / "weights", layers=1)
    (weights / WEIGHTS).unlink()
    (weights / WEIGHTS).symlink_to("/volume-of-the-server/weights")
    (tmp_path / "a" / "folder").symlink_to("/volume-of-the-server/a")
    paths = {"there": there, "weights": weights, "folder": tmp_path / "a" / "folder"}
    async with make_pod(declaring(**paths), "policy: {on_files_gone: unload}", SLOW) as pod:
        for _ in range(2):
            await pod.until_listed(*paths, within=15)
            await asyncio.sleep(60)
            assert (unloads(pod), files_missing(pod)) == ([], "")
            await pod.server.restart()


async def test_files_that_rot_under_a_listed_adapter_are_warned_of(make_pod: PodMaker, tmp_path: Path) -> None:
    """Weights that were cut short could not be read again after an eviction: said, and never unloaded."""
    one, two = write_adapter(tmp_path / "a" / "one", layers=1), write_adapter(tmp_path / "a" / "two", layers=1)
    async with make_pod(declaring(one=one, two=two), "policy: {on_files_gone: unload}") as pod:
        await pod.until_listed("one", "two")
        await asyncio.sleep(10)
        os.truncate(one / WEIGHTS, 5000)
        await pod.until(lambda: "its header speaks of" in files_missing(pod), 20)
        await asyncio.sleep(60)
        assert unloads(pod) == []


async def test_every_loaded_adapter_has_its_turn(make_pod: PodMaker, tmp_path: Path) -> None:
    """With more adapters than are looked at in a heartbeat, the last one is looked at a few heartbeats later."""
    sample = write_adapter(tmp_path / "a" / "b00", layers=1)
    names = [f"b{n:02}" for n in range(60)]
    for name in names[1:]:
        shutil.copytree(sample, tmp_path / "a" / name)
    server = FakeConfig(check_files=False)
    async with make_pod(declaring(**{name: tmp_path / "a" / name for name in names}), server=server) as pod:
        await pod.until_listed(*names)
        await asyncio.sleep(20)
        shutil.rmtree(tmp_path / "a" / "b59")
        await pod.until(lambda: "b59" in files_missing(pod), 30)


async def test_changed_files_end_a_quarantine(make_pod: PodMaker, tmp_path: Path) -> None:
    """An adapter that killed the server twice is tried again when its weights are others."""
    folder = write_adapter(tmp_path / "a", layers=1)
    server = FakeConfig(check_files=False, deadly=(str(folder),), load_delay=0.05)
    async with make_pod(declaring(a=folder), server=server) as pod:
        for _ in range(2):
            await pod.server.engine.death()
            await asyncio.sleep(5)
            await pod.server.restart()
        await pod.until(lambda: bool(pod.of(EventName.RESTORE_QUARANTINED)), 30)
        await asyncio.sleep(300)
        assert pod.loads() == []
        pod.server.engine.deadly = frozenset()
        write_adapter(folder, layers=1, seed=1)
        await pod.until_listed("a", within=15)


async def test_files_copied_anew_do_not_end_a_quarantine(make_pod: PodMaker, tmp_path: Path) -> None:
    """The same bytes kill the server again: it dies of them twice, however often a sync copies them."""
    folder = write_adapter(tmp_path / "a", layers=1)
    server = FakeConfig(check_files=False, deadly=(str(folder),), load_delay=0.05)
    async with make_pod(declaring(a=folder), server=server) as pod:
        for life in range(4):
            shutil.copytree(folder, tmp_path / "copy")
            shutil.rmtree(folder)
            (tmp_path / "copy").rename(folder)
            await asyncio.sleep(30)
            assert pod.server.engine.dead is (life < 2)
            await pod.server.restart()


async def test_what_was_seen_of_files_is_forgotten_when_nobody_looks_any_more(
    make_pod: PodMaker, tmp_path: Path
) -> None:
    """With preflight switched off, a folder that was gone holds nobody back: the server is asked."""
    paths = {name: write_adapter(tmp_path / "adapters" / name, layers=1) for name in ("a", "b")}
    gone = "policy: {on_files_gone: unload}"
    async with make_pod(declaring(**paths), gone, SLOW) as pod:
        await pod.until_listed("a", "b")
        await asyncio.sleep(10)
        shutil.rmtree(paths["a"])
        await pod.until_listed("b")
        pod._settings = f"{gone}\npreflight: {{enabled: false}}"
        pod.reconfigure(declaring(**paths))
        await pod.until_listed("a", "b")


async def test_a_request_for_what_is_held_back_is_answered_with_the_reason(make_pod: PodMaker, tmp_path: Path) -> None:
    """It is remembered, and nobody waits for as long as a load may take."""
    paths = {name: write_adapter(tmp_path / "adapters" / name, layers=1) for name in ("a", "b")}
    async with make_pod("", "policy: {on_files_gone: unload}", SLOW) as pod:
        for name, path in paths.items():
            assert (await pod.watch.requests.submit(Load(name, str(path)), 60.0)).status == 200
        await asyncio.sleep(10)
        shutil.rmtree(paths["a"])
        await pod.until_listed("b")
        began = pod.now
        answer = await pod.watch.requests.submit(Load("a", str(paths["a"])), 300.0)
        assert answer.status == 202
        assert f"not yet: {paths['a']} is gone" in answer.message
        assert pod.now - began < 1.0


async def test_a_mended_config_ends_the_wait_of_what_it_refused(make_pod: PodMaker, tmp_path: Path) -> None:
    """A pickle that was parked is sent within seconds once the config allows pickles."""
    folder = pickled(tmp_path / "a")
    async with make_pod(declaring(a=folder), server=SLOW) as pod:
        await asyncio.sleep(100)
        assert state(pod, "a")[0] is AdapterState.PARKED
        pod.reconfigure(declaring(a=folder) + "\npreflight: {allow_pickle: true}")
        await pod.until_listed("a", within=6)


async def test_the_weights_are_not_read_over_and_over_while_the_engine_sleeps(
    make_pod: PodMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes of sleep cost a look at the header a heartbeat, and the first load after it finds the disk cold."""
    one, two = write_adapter(tmp_path / "a" / "one", layers=1), write_adapter(tmp_path / "a" / "two", layers=1)
    read: list[str] = []

    def counted(path: str, begin: int, seconds: float) -> int:
        read.append(Path(path).name)
        return warm(path, begin, seconds)

    monkeypatch.setattr(preflight, "warm", counted)
    async with make_pod(server=FakeConfig(check_files=False, dev_mode=True, gpu=True)) as pod:
        pod.server.asleep = 1
        await asyncio.sleep(10)
        pod.reconfigure(declaring(one=one, two=two))
        await asyncio.sleep(300)
        assert read == ["one"]
        pod.server.asleep = None
        await pod.until_listed("one", "two", within=10)
        assert read == ["one", "two"]


async def test_what_is_being_loaded_is_read_for_that_alone(
    make_pod: PodMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among all that is missing after a restart, only what fails is looked at besides, so that loads go on at once."""
    looked: list[str] = []
    look = survey._look

    def noted(path: str, *others: Any) -> Any:
        looked.append(Path(path).name)
        return look(path, *others)

    paths = {name: write_adapter(tmp_path / "a" / name, layers=1) for name in ("a", "b", "c", "d")}
    paths["bad"] = pickled(tmp_path / "a" / "bad")
    slow = FakeConfig(check_files=False, load_delay=8.0)
    async with make_pod(declaring(**paths), "restore: {concurrency: 1}", slow) as pod:
        monkeypatch.setattr(survey, "_look", noted)
        await pod.until_listed("a", within=60)
        assert set(looked) <= {"bad"}
        await pod.until_listed("a", "b", "c", "d", within=60)
        await asyncio.sleep(10)
        assert set(looked) == paths.keys()
        seen = dict(pod.watch.watcher.files)
        assert {Path(path).name for path in seen} == paths.keys()
        await pod.server.restart()
        await asyncio.sleep(12)
        assert pod.status.verdict is Verdict.RESTORING
        assert pod.watch.watcher.files == seen
