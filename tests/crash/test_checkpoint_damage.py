from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lora_sidecar.checkpoint.aside import RejectedKind
from lora_sidecar.checkpoint.decode import Format, decode
from lora_sidecar.checkpoint.encode import encode
from lora_sidecar.checkpoint.store import Loaded, Store, read_file
from lora_sidecar.core.errors import CheckpointError
from tests.support.checkpoints import a_checkpoint, sealed_tree
from tests.support.disks import FailingDisk, Steps

FORMATS: tuple[Format, ...] = ("json", "yaml")


def saved(directory: Path, *generations: int, format_: Format = "json", server: str = "vllm") -> None:
    """Save these generations one after the other."""
    store = Store(str(directory), server, format_)
    store.open()
    store.load()
    for generation in generations:
        store.save(a_checkpoint(generation, server))
    store.close()


def loaded(directory: Path, format_: Format = "json", server: str = "vllm", disk: Steps | None = None) -> Loaded:
    """What the next process reads."""
    store = Store(str(directory), server, format_, disk)
    store.open()
    try:
        return store.load()
    finally:
        store.close()


def names(directory: Path) -> set[str]:
    """The names in the directory, without the lock's."""
    return {path.name for path in directory.iterdir()} - {"vllm.lock"}


def newer(version: int) -> bytes:
    """A sound file of a later version."""
    return sealed_tree({"version": version, "news": 1}, "json")


def test_first_run_finds_nothing(tmp_path: Path) -> None:
    """An empty directory is no error and no condition."""
    assert loaded(tmp_path) == Loaded(None, "none")


@pytest.mark.parametrize("format_", FORMATS)
def test_file_cut_short_at_any_length(tmp_path: Path, format_: Format) -> None:
    """A current file of any shorter length gives way to the previous generation."""
    saved(tmp_path, 1, 2, format_=format_)
    current = tmp_path / f"vllm.{format_}"
    whole = current.read_bytes()
    for length in range(len(whole)):
        current.write_bytes(whole[:length])
        found = loaded(tmp_path, format_)

        assert (found.checkpoint, found.source) == (a_checkpoint(1), "previous")
        assert [note.kind for note in found.notes] == [RejectedKind.CORRUPT]


def test_damaged_file_is_moved_aside_named_and_worked_around(tmp_path: Path) -> None:
    """The damaged bytes are kept for a person, the previous generation is used, and saving goes on."""
    saved(tmp_path, 1, 2)
    (tmp_path / "vllm.json").write_bytes(b"damaged")
    found = loaded(tmp_path)
    note = found.notes[0]

    assert (found.checkpoint, found.source, len(found.notes)) == (a_checkpoint(1), "previous", 1)
    assert note.file == str(tmp_path / "vllm.json")
    assert note.moved_to == str(tmp_path / "vllm.corrupt-1")
    assert note.reason == "its first line is not that of a checkpoint"
    assert (tmp_path / "vllm.corrupt-1").read_bytes() == b"damaged"

    saved(tmp_path, 3)
    assert loaded(tmp_path) == Loaded(a_checkpoint(3), "current")
    assert names(tmp_path) == {"vllm.json", "vllm.prev.json", "vllm.corrupt-1"}


def test_both_generations_damaged(tmp_path: Path) -> None:
    """With nothing sound left there is nothing, and both files are kept and named."""
    saved(tmp_path, 1, 2)
    (tmp_path / "vllm.json").write_bytes(b"")
    (tmp_path / "vllm.prev.json").write_bytes(bytes(500))
    found = loaded(tmp_path)

    assert (found.checkpoint, found.source) == (None, "none")
    assert [note.moved_to for note in found.notes] == [str(tmp_path / f"vllm.corrupt-{n}") for n in (1, 2)]


def test_damaged_previous_file_does_not_disturb_the_current_one(tmp_path: Path) -> None:
    """Damage to the reserve is found at the start, when it can still be mended."""
    saved(tmp_path, 1, 2)
    (tmp_path / "vllm.prev.json").write_bytes(b"damaged")
    found = loaded(tmp_path)

    assert (found.checkpoint, found.source) == (a_checkpoint(2), "current")
    assert [note.file for note in found.notes] == [str(tmp_path / "vllm.prev.json")]


def test_lost_current_file(tmp_path: Path) -> None:
    """A current file that somebody removed gives way to the previous generation."""
    saved(tmp_path, 1, 2)
    (tmp_path / "vllm.json").unlink()

    assert loaded(tmp_path) == Loaded(a_checkpoint(1), "previous")


def test_quarantine_keeps_the_newest_three(tmp_path: Path) -> None:
    """Damage that comes back does not fill the disk."""
    for attempt in range(1, 13):
        (tmp_path / "vllm.json").write_text(f"damage {attempt}")
        loaded(tmp_path)

    assert {name: (tmp_path / name).read_text() for name in names(tmp_path)} == {
        f"vllm.corrupt-{attempt}": f"damage {attempt}" for attempt in (10, 11, 12)
    }


def test_damaged_file_that_cannot_be_moved(tmp_path: Path) -> None:
    """On a disk that refuses every change the previous generation is still used, and the note says what happened."""
    saved(tmp_path, 1, 2)
    (tmp_path / "vllm.json").write_bytes(b"damaged")
    found = loaded(tmp_path, disk=FailingDisk(errno.EROFS, 0))

    assert (found.checkpoint, found.source) == (a_checkpoint(1), "previous")
    assert found.notes[0].moved_to is None
    assert "Read-only file system" in found.notes[0].reason


def test_newer_version_is_moved_aside_and_never_overwritten(tmp_path: Path) -> None:
    """After a downgrade the newer program's memory stays on disk, whatever is saved afterwards and however often."""
    for attempt, name in enumerate(["vllm.newer-9", "vllm.newer-9-2", "vllm.newer-9-3"]):
        (tmp_path / "vllm.json").write_bytes(newer(9))
        found = loaded(tmp_path)
        assert found.notes[0].kind == RejectedKind.NEWER
        assert found.notes[0].moved_to == str(tmp_path / name)
        assert "version 9" in found.notes[0].reason
        saved(tmp_path, attempt + 1)

    assert {name for name in names(tmp_path) if "newer" in name} == {"vllm.newer-9", "vllm.newer-9-2", "vllm.newer-9-3"}
    assert all((tmp_path / name).read_bytes() == newer(9) for name in names(tmp_path) if "newer" in name)


def test_newer_version_alone_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    """Where only a newer version's files are there, the start is from nothing."""
    (tmp_path / "vllm.json").write_bytes(newer(3))
    (tmp_path / "vllm.prev.json").write_bytes(newer(3))
    found = loaded(tmp_path)

    assert (found.checkpoint, found.source) == (None, "none")
    assert names(tmp_path) == {"vllm.newer-3", "vllm.newer-3-2"}


def test_newer_version_after_one_save_of_it_leaves_our_own_previous_generation(tmp_path: Path) -> None:
    """A newer program that saved once has kept our last generation as its previous one: that is used."""
    saved(tmp_path, 1, 2)
    (tmp_path / "vllm.json").rename(tmp_path / "vllm.prev.json")
    (tmp_path / "vllm.json").write_bytes(newer(3))
    found = loaded(tmp_path)

    assert (found.checkpoint, found.source) == (a_checkpoint(2), "previous")


def test_newer_version_that_cannot_be_moved_is_not_overwritten_either(tmp_path: Path) -> None:
    """Nothing is saved over a newer version's file, however often it is tried."""
    (tmp_path / "vllm.json").write_bytes(newer(9))
    disk = FailingDisk(errno.EBUSY, *range(50))
    store = Store(str(tmp_path), "vllm", "json", disk)
    store.open()
    with pytest.raises(CheckpointError, match="move aside the newer checkpoint"):
        store.load()
    for _ in range(2):
        with pytest.raises(CheckpointError):
            store.save(a_checkpoint(1))
    store.close()

    assert (tmp_path / "vllm.json").read_bytes() == newer(9)


def test_newer_version_that_came_with_another_volume_is_not_overwritten(tmp_path: Path) -> None:
    """A directory that was exchanged while running is looked through before the first save into it."""
    directory = tmp_path / "volume"
    directory.mkdir()
    store = Store(str(directory), "vllm", "json")
    store.open()
    store.load()
    directory.rename(tmp_path / "gone")
    directory.mkdir()
    (directory / "vllm.json").write_bytes(newer(9))
    store.save(a_checkpoint(1))
    store.close()

    assert (directory / "vllm.newer-9").read_bytes() == newer(9)
    assert loaded(directory) == Loaded(a_checkpoint(1), "current")


def test_checkpoint_of_another_server_is_not_used(tmp_path: Path) -> None:
    """A file copied from another server does not load that server's adapters into this one."""
    (tmp_path / "vllm.json").write_bytes(encode(a_checkpoint(7, "other"), "json"))
    found = loaded(tmp_path)

    assert found.checkpoint is None
    assert found.notes[0].kind == RejectedKind.FOREIGN
    assert "'other'" in found.notes[0].reason
    assert names(tmp_path) == {"vllm.corrupt-1"}


@pytest.mark.parametrize("server", ["a.prev", "a/../../b", "..", "a.corrupt-1", "é\n", "A", "a%2E"])
def test_servers_never_share_a_file(tmp_path: Path, server: str) -> None:
    """Whatever a server is called, its files are its own and inside the directory."""
    directory = tmp_path / "inside"
    directory.mkdir()
    saved(directory, 1, 2, server="a")
    before = names(directory)
    saved(directory, 3, 4, server=server)

    assert loaded(directory, server="a") == Loaded(a_checkpoint(2, "a"), "current")
    assert loaded(directory, server=server) == Loaded(a_checkpoint(4, server), "current")
    assert len(names(directory) - before) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"inside"}


@pytest.mark.parametrize(("was", "now"), [("json", "yaml"), ("yaml", "json")])
def test_format_change_reads_the_old_file_and_retires_it(tmp_path: Path, was: Format, now: Format) -> None:
    """Another configured format loses nothing: the old file is read, kept as previous once, and then dropped."""
    saved(tmp_path, 1, 2, format_=was)
    assert loaded(tmp_path, now) == Loaded(a_checkpoint(2), "current")
    assert names(tmp_path) == {f"vllm.{was}", f"vllm.prev.{was}"}

    saved(tmp_path, 3, format_=now)
    assert names(tmp_path) == {f"vllm.{now}", f"vllm.prev.{was}"}
    (tmp_path / f"vllm.{now}").write_bytes(b"damaged")
    assert loaded(tmp_path, now).checkpoint == a_checkpoint(2)

    saved(tmp_path, 4, 5, format_=now)
    assert names(tmp_path) == {f"vllm.{now}", f"vllm.prev.{now}", "vllm.corrupt-1"}
    assert loaded(tmp_path, now) == Loaded(a_checkpoint(5), "current")


def test_format_change_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    """The old format's file goes only after a save in the new one succeeded."""
    saved(tmp_path, 1, 2)
    store = Store(str(tmp_path), "vllm", "yaml", FailingDisk(errno.ENOSPC, 1))
    store.open()
    store.load()
    with pytest.raises(CheckpointError):
        store.save(a_checkpoint(3))
    store.close()

    assert names(tmp_path) == {"vllm.json", "vllm.prev.json"}
    assert loaded(tmp_path, "yaml") == Loaded(a_checkpoint(2), "current")


def test_file_is_read_for_a_command_without_the_lock(tmp_path: Path) -> None:
    """A person can look at the checkpoint while the daemon holds it."""
    store = Store(str(tmp_path), "vllm", "json")
    store.open()
    store.load()
    store.save(a_checkpoint(1))
    (tmp_path / "link").symlink_to("vllm.json")

    assert decode(read_file(str(tmp_path / "vllm.json"))) == a_checkpoint(1)
    assert decode(read_file(str(tmp_path / "link"))) == a_checkpoint(1)
    store.close()


@pytest.mark.parametrize(("name", "cause"), [("absent", "ENOENT"), (".", "not a regular file")])
def test_file_that_a_command_cannot_read_is_named(tmp_path: Path, name: str, cause: str) -> None:
    """A wrong path given to a command is answered with the path and the cause."""
    with pytest.raises(CheckpointError, match=cause):
        read_file(str(tmp_path / name))
