from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_sidecar.checkpoint.decode import MAX_BYTES
from lora_sidecar.checkpoint.store import Loaded, Store
from lora_sidecar.core.errors import CheckpointError, LockHeldError
from tests.support.checkpoints import a_checkpoint
from tests.support.disks import Steps, ended, fork


def a_directory(path: Path) -> None:
    """Make a directory with something in it."""
    path.mkdir()
    (path / "inside").write_bytes(b"x")


def a_socket(path: Path) -> None:
    """Make a socket, by a short relative path, since a socket's path is limited to about 100 bytes."""
    here = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


def a_huge_file(path: Path) -> None:
    """Make a sparse file of 16 GiB."""
    with path.open("wb") as file:
        file.truncate(MAX_BYTES * 1024)


INTRUDERS: dict[str, Callable[[Path], None]] = {
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "dangling-link": lambda path: path.symlink_to("nowhere"),
    "link-to-itself": lambda path: path.symlink_to(path.name),
    "fifo": os.mkfifo,
    "directory": a_directory,
    "socket": a_socket,
    "huge": a_huge_file,
    "empty": Path.touch,
}


def ready(directory: Path, disk: Steps | None = None) -> Store:
    """A store that is ready to save."""
    store = Store(str(directory), "vllm", "json", disk)
    store.open()
    store.load()
    return store


def saved(directory: Path, *generations: int) -> None:
    """Save these generations one after the other."""
    store = ready(directory)
    for generation in generations:
        store.save(a_checkpoint(generation))
    store.close()


def loaded(directory: Path) -> Loaded:
    """What the next process reads."""
    store = Store(str(directory), "vllm", "json")
    store.open()
    try:
        return store.load()
    finally:
        store.close()


@contextmanager
def holder(directory: Path) -> Iterator[int]:
    """Another process that holds the lock, and saves a generation whenever it gets SIGUSR1."""
    reader, writer = os.pipe()

    def hold() -> None:
        generations = iter(range(2, 100))
        store = ready(directory)
        store.save(a_checkpoint(1))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        os.write(writer, b"1")
        while signal.sigwait({signal.SIGUSR1}):
            store.save(a_checkpoint(next(generations)))
            os.write(writer, b"1")

    child = fork(hold)
    os.read(reader, 1)
    try:
        yield child
        os.kill(child, signal.SIGCONT)
        os.kill(child, signal.SIGUSR1)
        os.read(reader, 1)
    finally:
        os.kill(child, signal.SIGKILL)
        ended(child)
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("stopped", [False, True])
def test_second_process_is_refused_and_the_holder_unharmed(tmp_path: Path, stopped: bool) -> None:
    """The lock refuses a second process, with a hint, also while the holder is stopped; the holder goes on saving."""
    with holder(tmp_path) as child:
        if stopped:
            os.kill(child, signal.SIGSTOP)
            os.waitpid(child, os.WUNTRACED)
        second = Store(str(tmp_path), "vllm", "json")
        with pytest.raises(LockHeldError) as refused:
            second.open(wait=0.1)
        with pytest.raises(CheckpointError):
            second.save(a_checkpoint(99))

        assert refused.value.target == str(tmp_path / "vllm.lock")
        assert "another lora-sidecar" in refused.value.hint

    assert loaded(tmp_path) == Loaded(a_checkpoint(2), "current")


def test_lock_of_a_dead_process_is_free_at_once(tmp_path: Path) -> None:
    """A killed process leaves a lock file that holds nobody up, and that is never removed."""
    with holder(tmp_path):
        pass
    lock = (tmp_path / "vllm.lock").stat().st_ino
    store = ready(tmp_path)
    store.close()

    assert (tmp_path / "vllm.lock").stat().st_ino == lock


def test_lock_that_comes_free_within_the_wait_is_taken(tmp_path: Path) -> None:
    """In a rolling restart the new process waits for the old one to end."""
    reader, writer = os.pipe()

    def hold() -> None:
        store = ready(tmp_path)
        store.save(a_checkpoint(1))
        os.write(writer, b"1")
        signal.pause()

    child = fork(hold)
    os.read(reader, 1)
    end = threading.Timer(0.1, os.kill, (child, signal.SIGKILL))
    end.start()
    second = Store(str(tmp_path), "vllm", "json")
    second.open(wait=20)

    assert second.load() == Loaded(a_checkpoint(1), "current")
    second.close()
    end.join()
    ended(child)
    os.close(reader)
    os.close(writer)


def test_servers_of_one_directory_do_not_lock_each_other_out(tmp_path: Path) -> None:
    """Each server has a lock of its own."""
    stores = [Store(str(tmp_path), f"vllm-{number}", "json") for number in range(8)]
    for store in stores:
        store.open()
        assert store.load() == Loaded(None, "none")
    for store in stores:
        store.close()


@pytest.mark.parametrize("intruder", INTRUDERS)
@pytest.mark.parametrize("place", ["vllm.json", "vllm.yaml", "vllm.prev.json"])
def test_something_else_in_a_checkpoints_place(tmp_path: Path, place: str, intruder: str) -> None:
    """Whatever stands in the place of a file is neither waited for nor followed: it is moved aside."""
    saved(tmp_path, 1, 2)
    (tmp_path / place).unlink(missing_ok=True)
    INTRUDERS[intruder](tmp_path / place)
    found = loaded(tmp_path)

    assert found.checkpoint == a_checkpoint(1 if place == "vllm.json" else 2)
    assert [(note.file, note.moved_to) for note in found.notes] == [
        (str(tmp_path / place), str(tmp_path / "vllm.corrupt-1"))
    ]
    assert os.path.lexists(tmp_path / "vllm.corrupt-1")

    saved(tmp_path, 3, 4)
    (tmp_path / "vllm.json").unlink()
    assert loaded(tmp_path) == Loaded(a_checkpoint(3), "previous")


@pytest.mark.parametrize("intruder", ["link", "dangling-link", "fifo", "socket", "huge", "empty"])
def test_something_else_in_the_place_while_running(tmp_path: Path, intruder: str) -> None:
    """A save replaces what was planted over its file since the last one, and never writes through it."""
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    store = ready(tmp_path)
    store.save(a_checkpoint(1))
    (tmp_path / "vllm.json").unlink()
    if intruder == "link":
        (tmp_path / "vllm.json").symlink_to(target)
    else:
        INTRUDERS[intruder](tmp_path / "vllm.json")
    store.save(a_checkpoint(2))
    store.close()

    assert loaded(tmp_path).checkpoint == a_checkpoint(2)
    assert (target.read_bytes(), target.stat().st_nlink) == (b"precious", 1)


def test_directory_in_the_place_while_running(tmp_path: Path) -> None:
    """A directory in the way is named by the save that meets it, and moved aside by the next start."""
    store = ready(tmp_path)
    store.save(a_checkpoint(1))
    (tmp_path / "vllm.json").unlink()
    a_directory(tmp_path / "vllm.json")
    with pytest.raises(CheckpointError, match="remove it"):
        store.save(a_checkpoint(2))
    store.close()
    loaded(tmp_path)
    saved(tmp_path, 3)

    assert loaded(tmp_path) == Loaded(a_checkpoint(3), "current")
    assert (tmp_path / "vllm.corrupt-1" / "inside").read_bytes() == b"x"


def test_directory_in_place_of_the_previous_file_does_not_cost_the_new_generation(tmp_path: Path) -> None:
    """Where the previous generation cannot be kept, the new one is saved all the same, and the error says which."""
    store = ready(tmp_path)
    store.save(a_checkpoint(1))
    a_directory(tmp_path / "vllm.prev.json")
    with pytest.raises(CheckpointError, match="keep the previous checkpoint"):
        store.save(a_checkpoint(2))
    store.close()

    assert loaded(tmp_path).checkpoint == a_checkpoint(2)


@pytest.mark.parametrize("intruder", ["link", "dangling-link", "fifo", "directory", "socket"])
def test_something_else_in_the_locks_place(tmp_path: Path, intruder: str) -> None:
    """A lock file that is none is an error with a hint, at once."""
    INTRUDERS[intruder](tmp_path / "vllm.lock")
    with pytest.raises(CheckpointError, match="remove it"):
        Store(str(tmp_path), "vllm", "json").open()


def test_link_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a temporary name that was guessed and planted redirects nothing."""
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    store = ready(tmp_path)
    monkeypatch.setattr("lora_sidecar.checkpoint.store.secrets.token_hex", lambda _: "0123456789abcdef")
    (tmp_path / ".vllm.0123456789abcdef.tmp").symlink_to(target)
    with pytest.raises(CheckpointError, match="EEXIST"):
        store.save(a_checkpoint(1))
    store.close()

    assert target.read_bytes() == b"precious"


def test_leftovers_are_removed_under_the_lock_only(tmp_path: Path) -> None:
    """A second process does not remove the temporary file of the one that is saving."""
    first = ready(tmp_path)
    ours = tmp_path / ".vllm.0123456789abcdef.tmp"
    ours.write_bytes(b"half")
    with pytest.raises(LockHeldError):
        Store(str(tmp_path), "vllm", "json").open()
    assert ours.exists()
    first.close()
    loaded(tmp_path)

    assert not ours.exists()


@pytest.mark.parametrize("name", [".vllm-2.0123456789abcdef.tmp", "vllm.tmp", ".vllm.0123.tmp", "notes.tmp"])
def test_files_of_others_stay(tmp_path: Path, name: str) -> None:
    """Nothing is removed that does not bear our own name for a temporary file."""
    (tmp_path / name).write_bytes(b"x")
    loaded(tmp_path)

    assert (tmp_path / name).exists()


def test_leftover_that_cannot_be_removed_does_not_stop_the_start(tmp_path: Path) -> None:
    """A directory under a temporary file's name stays, and nothing else happens."""
    saved(tmp_path, 1)
    a_directory(tmp_path / ".vllm.0123456789abcdef.tmp")

    assert loaded(tmp_path) == Loaded(a_checkpoint(1), "current")
