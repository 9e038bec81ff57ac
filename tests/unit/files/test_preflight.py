from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from lora_sidecar.config.load import parse
from lora_sidecar.config.settings import Config
from lora_sidecar.core.model import Adapter, Origin
from lora_sidecar.core.observation import Files, Sight
from lora_sidecar.core.outcomes import Failure, FailureKind
from lora_sidecar.files import preflight
from lora_sidecar.files.preflight import Preflight, _warm, fingerprint
from lora_sidecar.files.watcher import _look, _spoilt
from lora_sidecar.threads import STUCK, STUCK_BESIDE, ReaderPool
from tests.support.adapters import CONFIG, WEIGHTS, write_adapter
from tests.support.sidecar import eventually


def config(**settings: str) -> Config:
    """A config with these settings of preflight."""
    text = ", ".join(f"{key}: {value}" for key, value in settings.items())
    return parse(f"servers: [{{name: vllm, url: 'http://h'}}]\npreflight: {{{text}}}\n".encode(), "sidecar.yaml")


def at(path: Path, origin: Origin = Origin.DECLARED) -> Adapter:
    """An adapter in that folder."""
    return Adapter(path.name, str(path), origin)


@pytest_asyncio.fixture
async def hung(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[threading.Event]:
    """Reading a folder called `hung` blocks until the event is set."""
    release, read = threading.Event(), preflight.read_folder
    before = frozenset(threading.enumerate())

    def reading(path: str) -> object:
        if Path(path).name.startswith("hung"):
            release.wait(30)
        return read(path)

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
        refusal = (await checks.inspect(at(bad), 1)).refusal
        assert refusal is not None
        assert refusal.kind is FailureKind.FILES
        assert "the disk hangs" in refusal.message
        assert (await checks.inspect(at(good), 1)).findings == ()
        # Asked again, it is answered at once: the thread that hangs is not joined by another.
        began = asyncio.get_running_loop().time()
        assert (await checks.inspect(at(bad), 1)).refusal is not None
        assert asyncio.get_running_loop().time() - began < 0.1
    finally:
        hung.set()

    async def sent() -> bool:
        return (await checks.inspect(at(bad), 1)).refusal is None

    await eventually(sent, "the thread has come back")


async def test_threads_that_hang_are_few(tmp_path: Path, hung: threading.Event) -> None:
    """However many folders hang, only so many threads do; then nothing is sent until one comes back."""
    checks = Preflight("vllm", config(timeout="100ms"))
    before = frozenset(threading.enumerate())
    try:
        for number in range(STUCK + 3):
            folder = write_adapter(tmp_path / str(number) / "hung", layers=1)
            assert (await checks.inspect(at(folder), 1)).refusal is not None
        assert len(frozenset(threading.enumerate()) - before) == STUCK
        assert (await checks.inspect(at(write_adapter(tmp_path / "good", layers=1)), 1)).refusal is not None
    finally:
        hung.set()


async def test_a_volume_that_hangs_leaves_threads_for_the_others(tmp_path: Path, hung: threading.Event) -> None:
    """Two folders beside each other that hang speak for the rest of their volume: it costs no more threads or time."""
    checks = Preflight("vllm", config(timeout="100ms"))
    before = frozenset(threading.enumerate())
    try:
        for number in range(STUCK + 3):
            folder = write_adapter(tmp_path / "far" / f"hung{number}", layers=1)
            assert (await checks.inspect(at(folder), 1)).refusal is not None
        assert len(frozenset(threading.enumerate()) - before) == STUCK_BESIDE
        assert (await checks.inspect(at(write_adapter(tmp_path / "near" / "good", layers=1)), 1)).refusal is None
    finally:
        hung.set()


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
async def test_a_pipe_in_the_place_of_a_file_holds_up_nobody(tmp_path: Path, name: str) -> None:
    """A pipe that nobody writes to would stop the engine for good."""
    folder = write_adapter(tmp_path / "a", layers=1)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    found = await Preflight("vllm", config(timeout="5s")).inspect(at(folder), 1)

    assert found.refusal is not None
    assert "is not a regular file" in found.refusal.message


async def test_checks_wait_for_one_another(tmp_path: Path) -> None:
    """Several adapters looked at at once are read one after the other, and none is taken for hung."""
    folders = [write_adapter(tmp_path / f"a{n}", layers=1) for n in range(8)]
    checks = Preflight("vllm", config())
    found = await asyncio.gather(*(checks.inspect(at(folder), 1) for folder in folders))

    assert all(one.findings == () and one.files for one in found)


async def test_switched_off_it_reads_nothing(tmp_path: Path) -> None:
    """Every adapter is passed on, and said to be unchecked."""
    found = await Preflight("vllm", config(enabled="false")).inspect(at(tmp_path / "broken"), 1)

    assert found.refusal is None
    assert found.unchecked == "preflight.enabled is false"


async def test_a_learned_pickle_is_restored(tmp_path: Path) -> None:
    """What the server accepted before in that form is loaded again; a declared one needs leave."""
    folder = write_adapter(tmp_path / "a", layers=1)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    checks = Preflight("vllm", config())

    assert (await checks.inspect(at(folder, Origin.ADOPTED), 1)).refusal is None
    assert (await checks.inspect(at(folder), 1)).refusal is not None


async def test_a_learned_limit_holds_for_one_life(tmp_path: Path) -> None:
    """The next life of the server may have another flag."""
    folder = write_adapter(tmp_path / "a", rank=64, layers=1)
    checks = Preflight("vllm", config())
    checks.learn(Failure(FailureKind.ADAPTER, "LoRA rank 64 is greater than max_lora_rank 16."), 1)

    assert (await checks.inspect(at(folder), 1)).refusal is not None
    assert (await checks.inspect(at(folder), 2)).refusal is None


def _bytes_read() -> int:
    """What the kernel has read for this thread, from a disk or from memory."""
    lines = Path("/proc/thread-self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_warming_reads_the_weights_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Piece by piece, each of which has a deadline of its own."""
    monkeypatch.setattr(preflight, "_PIECE", 3000)
    (tmp_path / WEIGHTS).write_bytes(bytes(7500))
    begins, read, begin = [], [], 0
    while begin >= 0:
        begins.append(begin)
        before = _bytes_read()
        begin = _warm(str(tmp_path), begin)
        read.append(_bytes_read() - before)

    assert begins == [0, 3000, 6000]
    looking = _bytes_read()
    looking = _bytes_read() - looking
    assert [count - looking for count in read] == [3000, 3000, 1500]
    assert _warm(str(tmp_path / "nowhere"), 0) == -1


def test_a_fingerprint_tells_changed_files(tmp_path: Path) -> None:
    """Other bytes of the same size are told by their time, and a file put in another's place by its inode."""
    folder = write_adapter(tmp_path / "a", layers=1)
    first = fingerprint(str(folder))
    assert fingerprint(str(folder)) == first
    os.utime(folder / WEIGHTS, ns=(1, 1))
    second = fingerprint(str(folder))
    (folder / "new").write_bytes((folder / CONFIG).read_bytes())
    os.utime(folder / "new", ns=((folder / CONFIG).stat().st_atime_ns, (folder / CONFIG).stat().st_mtime_ns))
    (folder / "new").replace(folder / CONFIG)
    assert len({first, second, fingerprint(str(folder))}) == 3
    assert fingerprint(str(tmp_path / "nowhere")) == ""


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
    """Without descriptors or memory nothing is said of the files, by no look at them, and the server is asked."""
    folder = write_adapter(tmp_path / "a", layers=1)

    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fails)
    found = await Preflight("vllm", config()).inspect(at(folder), 1)

    assert (found.refusal, found.findings) == (None, ())
    assert found.unchecked == f"its files cannot be read now: {os.strerror(number)}"
    assert _spoilt(str(folder)) == ""


async def test_without_a_thread_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of threads is ours, and no hung disk."""

    def fails(_: object) -> None:
        raise RuntimeError("can't start new thread")

    folder = write_adapter(tmp_path / "a", layers=1)
    monkeypatch.setattr(threading.Thread, "start", fails)
    checks = Preflight("vllm", config())
    found = await checks.inspect(at(folder), 1)

    assert found.refusal is None
    assert "no thread can be started" in found.unchecked
    assert await checks.absence(at(folder)) is None


@pytest.mark.parametrize("path", ["/a\x00b", "/a\nb", "/\ud800", "org/name"])
async def test_a_path_that_is_none_does_not_reach_the_disk(path: str) -> None:
    """A listing may name any text as a path; nothing fails over it."""
    strange = Adapter("a", path, Origin.ADOPTED)
    checks = Preflight("vllm", config())

    assert (await checks.inspect(strange, 1)).refusal is None
    assert await checks.absence(strange) is None
    assert _look(path, None, None, ()) == (Files(Sight.UNSEEN), None)
