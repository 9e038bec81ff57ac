from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from lora_sidecar.config.load import parse
from lora_sidecar.config.settings import Config
from lora_sidecar.core.model import Adapter, Origin
from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.files import preflight
from lora_sidecar.files.folder import read_folder
from lora_sidecar.files.peft import Engine, Folder, Hold
from lora_sidecar.files.preflight import Preflight
from lora_sidecar.threads import STUCK, STUCK_BESIDE, ReaderPool
from tests.support.adapters import CONFIG, WEIGHTS, write_adapter
from tests.support.disk_errors import failing
from tests.support.drafts import Draft
from tests.support.sidecar import eventually


def config(server: str = "", **settings: str) -> Config:
    """A config with these settings of the server and of preflight."""
    text = ", ".join(f"{key}: {value}" for key, value in settings.items())
    servers = f"servers: [{{name: vllm, url: 'http://h'{server and f', {server}'}}}]"
    return parse(f"{servers}\npreflight: {{{text}}}\n".encode(), "sidecar.yaml")


def at(path: Path, origin: Origin = Origin.DECLARED) -> Adapter:
    """An adapter in that folder."""
    return Adapter(path.name, str(path), origin)


def fingerprint(path: Path) -> str:
    """What tells the bytes in a folder from others."""
    found = read_folder(str(path))
    assert isinstance(found, Folder)
    return found.fingerprint


@pytest_asyncio.fixture
async def hung(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[threading.Event]:
    """Reading a folder called `hung` blocks until the event is set."""
    release = threading.Event()
    before = frozenset(threading.enumerate())

    def reading(path: str) -> object:
        if Path(path).name.startswith("hung"):
            release.wait(30)
        return read_folder(path)

    monkeypatch.setattr(preflight, "read_folder", reading)
    yield release
    release.set()

    async def nobody_reads() -> bool:
        return frozenset(threading.enumerate()) <= before

    await eventually(nobody_reads, "the threads that hung ended", 5.0)


async def test_a_hung_disk_is_met_before_the_engine_meets_it(tmp_path: Path, hung: threading.Event) -> None:
    """The adapter is not sent, the others are looked at meanwhile, and when the disk is back so is the adapter."""
    bad, good = write_adapter(tmp_path / "hung", layers=1), write_adapter(tmp_path / "good", layers=1)
    checks = Preflight("vllm", config(timeout="200ms"))
    try:
        refusal = (await checks.inspect(at(bad))).refusal
        assert refusal is not None
        assert refusal.kind is FailureKind.FILES
        assert "the disk hangs" in refusal.message
        assert (await checks.inspect(at(good))).findings == ()
        # Asked again, it is answered at once: the thread that hangs is not joined by another.
        began = asyncio.get_running_loop().time()
        assert (await checks.inspect(at(bad))).refusal is not None
        assert asyncio.get_running_loop().time() - began < 0.1
    finally:
        hung.set()

    async def sent() -> bool:
        return (await checks.inspect(at(bad))).refusal is None

    await eventually(sent, "the thread has come back")


async def test_threads_that_hang_are_few(tmp_path: Path, hung: threading.Event) -> None:
    """However many folders hang, only so many threads do; then nothing is sent until one comes back."""
    checks = Preflight("vllm", config(timeout="100ms"))
    before = frozenset(threading.enumerate())
    try:
        for number in range(STUCK + 3):
            folder = write_adapter(tmp_path / str(number) / "hung", layers=1)
            assert (await checks.inspect(at(folder))).refusal is not None
        assert len(frozenset(threading.enumerate()) - before) == STUCK
        assert (await checks.inspect(at(write_adapter(tmp_path / "good", layers=1)))).refusal is not None
    finally:
        hung.set()


async def test_a_volume_that_hangs_leaves_threads_for_the_others(tmp_path: Path, hung: threading.Event) -> None:
    """Two folders beside each other that hang speak for the rest of their volume: it costs no more threads or time."""
    checks = Preflight("vllm", config(timeout="100ms"))
    before = frozenset(threading.enumerate())
    try:
        for number in range(STUCK + 3):
            folder = write_adapter(tmp_path / "far" / f"hung{number}", layers=1)
            assert (await checks.inspect(at(folder))).refusal is not None
        assert len(frozenset(threading.enumerate()) - before) == STUCK_BESIDE
        assert (await checks.inspect(at(write_adapter(tmp_path / "near" / "good", layers=1)))).refusal is None
    finally:
        hung.set()


async def test_a_disk_that_hangs_under_the_weights_is_met_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Config and header may be in memory, and the rest on a disk that is away."""
    release = threading.Event()
    monkeypatch.setattr(preflight, "warm", lambda *_: release.wait(30))
    folder = write_adapter(tmp_path / "a", layers=1)
    checks = Preflight("vllm", config(timeout="100ms"))
    try:
        refusal = (await checks.inspect(at(folder))).refusal
        assert refusal is not None
        assert "the disk hangs" in refusal.message
    finally:
        release.set()


async def test_a_slow_disk_has_one_deadline_for_the_whole_of_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not hung: what the time does not suffice for is left to the engine, and the adapter is sent."""
    pieces: list[int] = []

    def slow(_: str, begin: int, __: float) -> int:
        pieces.append(begin)
        threading.Event().wait(0.05)
        return begin + 1

    monkeypatch.setattr(preflight, "warm", slow)
    checks = Preflight("vllm", config(timeout="300ms"))
    began = asyncio.get_running_loop().time()

    assert (await checks.inspect(at(write_adapter(tmp_path / "a", layers=1)))).refusal is None
    assert asyncio.get_running_loop().time() - began < 3.0
    assert pieces == list(range(len(pieces)))
    assert 2 <= len(pieces) <= 7


def huge(folder: Path) -> Path:
    """An adapter of a TiB, of which nothing is on the disk."""
    write_adapter(folder, layers=1)
    header = b'{"x.q_proj.lora_A.weight":{"dtype":"U8","shape":[8,1],"data_offsets":[0,%d]}}' % ((1 << 40) - 200)
    header += b"                    "
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(folder / WEIGHTS, 8 + len(header) + (1 << 40) - 200)
    return folder


async def test_a_huge_file_holds_up_no_other_adapter(tmp_path: Path) -> None:
    """Its check reads none of it, others are checked while it is read, and its reading has one deadline."""
    large, small = huge(tmp_path / "large"), write_adapter(tmp_path / "small", layers=1)
    checks = Preflight("vllm", config(timeout="1500ms"))
    loop = asyncio.get_running_loop()
    began = loop.time()
    found = await checks.inspect(at(large))
    assert (found.is_cold, found.refusal) == (True, None)
    assert loop.time() - began < 1.0
    warming = asyncio.create_task(checks.warm(at(large)))
    await asyncio.sleep(0.1)
    began = loop.time()
    assert (await checks.inspect(at(small))).findings == ()
    assert loop.time() - began < 1.0
    assert not warming.done()
    assert await warming is None
    assert loop.time() - began < 4.0


async def test_only_what_is_large_is_left_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All else is read along with its check; and while the engine sleeps nothing is read, and nothing is cold."""
    folder = write_adapter(tmp_path / "a", layers=1)
    size = (folder / WEIGHTS).stat().st_size
    checks = Preflight("vllm", config())
    for bound, is_cold in ((size, False), (size - 1, True)):
        monkeypatch.setattr(preflight, "LARGE", bound)
        assert (await checks.inspect(at(folder))).is_cold is is_cold
    assert not (await checks.inspect(at(folder), warm=False)).is_cold


async def test_checks_wait_for_one_another(tmp_path: Path) -> None:
    """Several adapters looked at at once are read one after the other, and none is taken for hung."""
    folders = [write_adapter(tmp_path / f"a{n}", layers=1) for n in range(8)]
    checks = Preflight("vllm", config())
    found = await asyncio.gather(*(checks.inspect(at(folder)) for folder in folders))

    assert all(one.findings == () and one.files for one in found)


async def test_switched_off_it_reads_nothing(tmp_path: Path) -> None:
    """Every adapter is passed on, and said to be unchecked."""
    found = await Preflight("vllm", config(enabled="false")).inspect(at(tmp_path / "broken"))

    assert found.refusal is None
    assert found.unchecked == "preflight.enabled is false"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
async def test_what_cannot_be_seen_is_passed_on(tmp_path: Path, number: int) -> None:
    """The server may see it. Nothing is sent from nowhere on account of it, and nothing is unloaded for it."""
    folder = write_adapter(tmp_path / "a", layers=1)
    checks = Preflight("vllm", config())
    for where in (folder, folder / CONFIG, folder / WEIGHTS):
        with failing(where, number):
            found = await checks.inspect(at(folder))
        assert (found.refusal, found.findings, found.files) == (None, (), "")
        assert os.strerror(number) in found.unchecked


async def test_what_is_not_there_is_passed_on(tmp_path: Path) -> None:
    """The server may have mounted something else at that place; what is where its folder was says so."""
    checks = Preflight("vllm", config())
    there = write_adapter(tmp_path / "there", layers=1)

    assert (await checks.inspect(at(tmp_path / "a"))).unchecked == (
        "it cannot be seen from here: No such file or directory"
    )
    assert (await checks.inspect(at(there / CONFIG))).findings[0].message.endswith("is not a directory")
    assert (await checks.inspect(at(there / CONFIG))).refusal is None


async def test_what_speaks_against_an_adapter_that_is_to_replace_another(tmp_path: Path) -> None:
    """That it is not there, or answers with errors; a place that is not for us to see says nothing."""
    checks = Preflight("vllm", config())
    there = write_adapter(tmp_path / "there", layers=1)
    assert await checks.absence(at(there)) is None
    assert await checks.absence(at(tmp_path / "nowhere" / "a")) is None
    absent = await checks.absence(at(tmp_path / "a"))
    assert absent is not None
    assert absent.message == f"there is no {CONFIG} in {tmp_path / 'a'}"
    for number, speaks in ((errno.EIO, True), (errno.ESTALE, True), (errno.EACCES, False), (errno.EMFILE, False)):
        for where in (there, there / CONFIG, there / WEIGHTS):
            with failing(where, number):
                assert (await checks.absence(at(there)) is not None) is speaks
    (there / CONFIG).unlink()
    assert await checks.absence(at(there)) is not None


async def test_roots_hold_for_where_a_link_leads(tmp_path: Path) -> None:
    """A link out of the allowed root is refused, whatever its own path; so is what cannot be seen from here."""
    outside = write_adapter(tmp_path / "outside" / "a", layers=1)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(outside)
    (tmp_path / "root" / "b").symlink_to("/volume-of-the-server/b")
    checks = Preflight("vllm", config(roots=f"['{tmp_path}/root']"))

    for path in (tmp_path / "root" / "a", outside, tmp_path / "root" / "b"):
        refusal = (await checks.inspect(at(path))).refusal
        assert refusal is not None
        assert "under none of preflight.roots" in refusal.message
    assert (await checks.inspect(at(tmp_path / "root" / "c"))).refusal is None
    assert (await checks.inspect(at(Path("org/name")))).refusal is None


LIMITS: Mapping[str, Config] = {
    "a pickle": config(allow_pickle="false"),
    "a rank": config("max_lora_rank: 4"),
    "a root": config(roots="[/elsewhere]"),
}


def forbidden(folder: Path, what: str) -> Path:
    """An adapter that one of the limits forbids."""
    draft = Draft()
    return (draft.as_torch("adapter_model.bin") if what == "a pickle" else draft).write(folder)


@pytest.mark.parametrize("what", LIMITS)
async def test_what_the_server_listed_with_these_very_files_is_sent_again(tmp_path: Path, what: str) -> None:
    """Whatever limit forbids it, for as long as its bytes are the same; touched or copied anew, they are."""
    folder = forbidden(tmp_path / "a", what)
    accepted = {str(folder): fingerprint(folder)}
    checks = Preflight("vllm", LIMITS[what], accepted=accepted)
    assert (await checks.inspect(at(folder))).refusal is None
    shutil.copytree(folder, tmp_path / "b")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "b", folder)
    assert (await checks.inspect(at(folder))).refusal is None
    accepted[str(folder)] = "of other bytes"
    assert (await checks.inspect(at(folder))).refusal is not None
    assert (await checks.inspect(at(folder, Origin.ADOPTED))).refusal is not None


@pytest.mark.parametrize("what", LIMITS)
async def test_what_was_adopted_is_sent_again(tmp_path: Path, what: str) -> None:
    """The server had it; a declared one needs leave."""
    folder = forbidden(tmp_path / "a", what)
    checks = Preflight("vllm", LIMITS[what])

    assert (await checks.inspect(at(folder, Origin.ADOPTED))).refusal is None
    for origin in (Origin.DECLARED, Origin.REQUESTED):
        assert (await checks.inspect(at(folder, origin))).refusal is not None


async def test_a_copy_under_way_is_held_back_whoever_had_it(tmp_path: Path) -> None:
    """The bytes are others than those that the server had."""
    folder = write_adapter(tmp_path / "a", layers=1)
    os.truncate(folder / WEIGHTS, 5000)

    for origin in Origin:
        found = await Preflight("vllm", config()).inspect(at(folder, origin))
        assert [one.holds for one in found.findings] == [Hold.SHORT]


async def test_a_server_that_resolves_links_lists_another_path(tmp_path: Path) -> None:
    """What is known of that path is known of the adapter."""
    folder = forbidden(tmp_path / "a", "a rank")
    (tmp_path / "link").symlink_to(folder)
    linked = Adapter("a", str(tmp_path / "link"), Origin.DECLARED, listed_as=str(folder))
    checks = Preflight("vllm", LIMITS["a rank"], accepted={str(folder): fingerprint(folder)})

    assert (await checks.inspect(linked)).refusal is None


async def test_a_listing_of_sglang_is_no_proof_of_weights(tmp_path: Path) -> None:
    """It lists whatever it was given, and dies of it at the first use: it is held back, adopted or not."""
    folder = Draft().widen(2).write(tmp_path / "a")
    accepted = {str(folder): fingerprint(folder)}
    engines: dict[Engine | None, Hold | None] = {"vllm": None, None: None, "sglang": Hold.DEADLY}
    for engine, hold in engines.items():
        checks = Preflight("vllm", config(), accepted=accepted)
        checks.engine = engine
        for origin in (Origin.DECLARED, Origin.ADOPTED):
            (found,) = (await checks.inspect(at(folder, origin))).findings
            assert found.holds is hold
    checks = Preflight("vllm", config(hold_deadly="false"))
    checks.engine = "sglang"
    assert (await checks.inspect(at(folder))).refusal is None


async def test_the_engine_that_the_config_names_is_not_the_one_that_serves(tmp_path: Path) -> None:
    """Only what the server said of itself counts."""
    folder = Draft().widen(2).write(tmp_path / "a")

    assert (await Preflight("vllm", config("engine: sglang")).inspect(at(folder))).refusal is None


async def test_a_base_model_whose_disk_hangs_holds_back_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shapes are then not known; a pipe in its place is none."""
    folder = write_adapter(tmp_path / "a", layers=1)
    release = threading.Event()
    monkeypatch.setattr(preflight, "_read_base_shape", lambda _: release.wait(30))
    checks = Preflight("vllm", config(f"base_model_config: '{tmp_path}/base/config.json'", timeout="100ms"))
    try:
        assert (await checks.inspect(at(folder))).refusal is None
        assert (await checks.inspect(at(folder))).findings == ()
    finally:
        release.set()
    monkeypatch.undo()
    os.mkfifo(tmp_path / "config.json")
    checks = Preflight("vllm", config(f"base_model_config: '{tmp_path}'"))
    assert (await checks.inspect(at(folder))).findings == ()


async def test_a_caller_that_leaves_leaves_the_slot_usable() -> None:
    """A read whose caller was cancelled keeps its thread, and the next one has another."""
    release = threading.Event()
    slots = ReaderPool("test")
    reading = asyncio.create_task(slots.run("/a", lambda: release.wait(30), 10.0))
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    try:
        assert await slots.run("/b", lambda: "read", 5.0) == "read"
    finally:
        release.set()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_a_lack_of_our_own_blames_no_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Without descriptors or memory nothing is said of the files, and the server is asked."""
    folder = write_adapter(tmp_path / "a", layers=1)

    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fails)
    found = await Preflight("vllm", config()).inspect(at(folder))

    assert (found.refusal, found.findings) == (None, ())
    assert f"{CONFIG} cannot be seen now: {os.strerror(number)}" in found.unchecked


async def test_without_a_thread_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of threads is ours, and no hung disk."""

    def fails(_: object) -> None:
        raise RuntimeError("can't start new thread")

    folder = write_adapter(tmp_path / "a", layers=1)
    monkeypatch.setattr(threading.Thread, "start", fails)
    checks = Preflight("vllm", config())
    found = await checks.inspect(at(folder))

    assert found.refusal is None
    assert "no thread can be started" in found.unchecked
    assert await checks.absence(at(folder)) is None
    assert await checks.warm(at(folder)) is None


@pytest.mark.parametrize("path", ["/a\x00b", "/\ud800", "org/name"])
async def test_a_path_that_is_none_is_passed_on(path: str) -> None:
    """A listing may name any text as a path; nothing fails over it."""
    strange = Adapter("a", path, Origin.ADOPTED)
    checks = Preflight("vllm", config(roots="[/elsewhere]"))

    assert (await checks.inspect(strange)).refusal is None
    assert await checks.absence(strange) is None
