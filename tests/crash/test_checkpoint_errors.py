from __future__ import annotations

import errno
import os
import resource
import tempfile
from pathlib import Path

import pytest

from lora_sidecar.checkpoint.decode import Checkpoint, Format
from lora_sidecar.checkpoint.disk import Disk
from lora_sidecar.checkpoint.store import Loaded, Store, read_file
from lora_sidecar.core.errors import CheckpointError
from lora_sidecar.core.model import Desired, Incarnation
from tests.support.checkpoints import a_checkpoint
from tests.support.disks import FailingDisk, ShortDisk, Steps, UnlinkedDisk, ended, fork, temporaries

SAVE = ["create", "write", "fsync", "link", "rename", "fsync_directory", "rename"]
ERRORS = {
    errno.ENOSPC: "free space",
    errno.EIO: "kernel log",
    errno.EROFS: "read-only",
    errno.EACCES: f"uid {os.geteuid()}",
    errno.EBUSY: "subPath",
    errno.EXDEV: "subPath",
}


def opened(directory: Path, disk: Steps | None = None, format_: Format = "json") -> Store:
    """A store that is ready to save."""
    store = Store(str(directory), "vllm", format_, disk)
    store.open()
    store.load()
    return store


def read_back(directory: Path) -> Checkpoint | None:
    """What the next process reads."""
    store = Store(str(directory), "vllm", "json")
    store.open()
    loaded = store.load()
    store.close()
    assert loaded.notes == ()
    return loaded.checkpoint


def test_order_of_a_save(tmp_path: Path) -> None:
    """The bytes are durable before they get their name, and the name before the save returns."""
    disk = Steps()
    store = opened(tmp_path, disk)
    store.save(a_checkpoint(1))
    disk.taken.clear()
    store.save(a_checkpoint(2))
    store.close()

    assert disk.taken[: len(SAVE)] == SAVE


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    "step", [step for step, name in enumerate(SAVE) if name != "link"], ids=lambda step: SAVE[step]
)
def test_error_at_any_step_leaves_a_whole_generation_and_is_mended_by_the_next_save(
    tmp_path: Path, step: int, number: int
) -> None:
    """A save that fails says where and what to do, leaves the old file or the new and no litter, and is mended."""
    disk = FailingDisk(number)
    store = opened(tmp_path, disk)
    store.save(a_checkpoint(1))
    disk.taken.clear()
    disk.steps = {step}
    with pytest.raises(CheckpointError) as failed:
        store.save(a_checkpoint(2))

    assert errno.errorcode[number] in failed.value.cause
    assert str(tmp_path / "vllm") in failed.value.target
    assert ERRORS[number] in failed.value.hint
    assert temporaries(tmp_path) == []

    store.close()
    assert read_back(tmp_path) == a_checkpoint(2 if SAVE.index("fsync_directory") <= step else 1)

    disk.steps = set()
    store.save(a_checkpoint(3))
    store.close()
    assert read_back(tmp_path) == a_checkpoint(3)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", range(4))
def test_error_in_the_first_save_leaves_nothing(tmp_path: Path, step: int, number: int) -> None:
    """A first save that fails leaves a directory in which nothing stands for a checkpoint."""
    store = opened(tmp_path, FailingDisk(number, [0, 1, 2, 4][step]))
    with pytest.raises(CheckpointError):
        store.save(a_checkpoint(1))
    store.close()

    assert [path.name for path in tmp_path.iterdir()] == ["vllm.lock"]


def test_failed_sync_is_never_repeated_on_the_same_file(tmp_path: Path) -> None:
    """After a failed fsync the kernel may call lost bytes clean, so the next save starts with a new file."""
    disk = FailingDisk(errno.EIO, 2)
    store = opened(tmp_path, disk)
    with pytest.raises(CheckpointError):
        store.save(a_checkpoint(1))
    first = disk.taken.copy()
    disk.taken.clear()
    disk.steps = set()
    store.save(a_checkpoint(1))
    store.close()

    assert first == ["create", "write", "fsync", "unlink", "unlink"]
    assert disk.taken[:3] == ["create", "write", "fsync"]


def test_error_after_the_rename_is_an_error(tmp_path: Path) -> None:
    """A generation whose name is not durable is reported as not saved, though it may be read."""
    disk = FailingDisk(errno.EIO)
    store = opened(tmp_path, disk)
    store.save(a_checkpoint(1))
    disk.taken.clear()
    disk.steps = {SAVE.index("fsync_directory")}
    with pytest.raises(CheckpointError, match="make durable"):
        store.save(a_checkpoint(2))
    disk.steps = set()
    store.save(a_checkpoint(2))
    store.close()

    assert read_back(tmp_path) == a_checkpoint(2)


def test_short_writes_are_continued(tmp_path: Path) -> None:
    """A disk that takes a few bytes at a time gets all of them."""
    disk = ShortDisk()
    store = opened(tmp_path, disk)
    store.save(a_checkpoint(1))
    store.close()

    assert disk.taken.count("write") > 50
    assert read_back(tmp_path) == a_checkpoint(1)


def test_disk_that_fills_up_after_a_short_write(tmp_path: Path) -> None:
    """A full disk shows first as a short write and then as an error; the old file stays."""

    class Filling(ShortDisk, FailingDisk):
        pass

    store = opened(tmp_path)
    store.save(a_checkpoint(1))
    store.close()
    store = opened(tmp_path, Filling(errno.ENOSPC, 3))
    with pytest.raises(CheckpointError, match="ENOSPC"):
        store.save(a_checkpoint(2))
    store.close()

    assert temporaries(tmp_path) == []
    assert read_back(tmp_path) == a_checkpoint(1)


def test_volume_without_hard_links_keeps_the_previous_generation(tmp_path: Path) -> None:
    """Where a file cannot have two names, the previous generation is a copy, synced like any other."""
    disk = UnlinkedDisk()
    store = opened(tmp_path, disk)
    for generation in (1, 2, 3):
        disk.taken.clear()
        store.save(a_checkpoint(generation))
    store.close()
    (tmp_path / "vllm.json").unlink()

    assert disk.taken[:7] == ["create", "write", "fsync", "create", "write", "fsync", "rename"]
    assert read_back(tmp_path) == a_checkpoint(2)


def test_previous_file_that_is_one_with_the_current_leaves_no_litter(tmp_path: Path) -> None:
    """A rename onto another name of the same file does nothing; the temporary name goes all the same."""
    store = opened(tmp_path)
    store.save(a_checkpoint(1))
    (tmp_path / "vllm.prev.json").hardlink_to(tmp_path / "vllm.json")
    store.save(a_checkpoint(2))
    store.close()

    assert temporaries(tmp_path) == []
    assert read_back(tmp_path) == a_checkpoint(2)


def test_files_are_private(tmp_path: Path) -> None:
    """Only the owner can read what is kept."""
    store = opened(tmp_path)
    store.save(a_checkpoint(1))
    store.save(a_checkpoint(2))
    store.close()

    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "vllm.json": 0o600,
        "vllm.prev.json": 0o600,
        "vllm.lock": 0o600,
    }


def test_checkpoint_too_large_to_be_read_back_is_not_written(tmp_path: Path) -> None:
    """A file that the next start would refuse never replaces one that it would read."""
    store = opened(tmp_path)
    store.save(a_checkpoint(1))
    huge = Checkpoint(2, "vllm", Desired({}, Incarnation(1), frozenset({"x" * 17_000_000})))
    with pytest.raises(CheckpointError, match="adopt"):
        store.save(huge)
    store.close()

    assert read_back(tmp_path) == a_checkpoint(1)


def test_missing_directory_is_named_and_can_come_later(tmp_path: Path) -> None:
    """A volume that is not there is an error with a hint, and is used once it is."""
    directory = tmp_path / "late"
    store = Store(str(directory), "vllm", "json")
    with pytest.raises(CheckpointError, match="mount a volume"):
        store.open()
    directory.mkdir()
    store.open()
    store.load()
    store.save(a_checkpoint(1))
    store.close()

    assert read_back(directory) == a_checkpoint(1)


def test_file_in_place_of_the_directory(tmp_path: Path) -> None:
    """A file where the directory should be is refused, whatever is in it."""
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="ENOTDIR"):
        Store(str(tmp_path / "file"), "vllm", "json").open()


def test_directory_removed_while_running(tmp_path: Path) -> None:
    """A directory that goes away is not made anew, and is taken into use again when it is back."""
    directory = tmp_path / "volume"
    directory.mkdir()
    store = opened(directory)
    store.save(a_checkpoint(1))
    directory.rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="ENOENT"):
        store.save(a_checkpoint(2))
    assert not directory.exists()
    directory.mkdir()
    store.save(a_checkpoint(3))
    store.close()

    assert read_back(directory) == a_checkpoint(3)
    assert read_back(tmp_path / "gone") == a_checkpoint(1)


def test_nothing_is_saved_before_what_is_there_was_read(tmp_path: Path) -> None:
    """A checkpoint that could not be read is never replaced by the empty state of a new process."""
    store = opened(tmp_path)
    store.save(a_checkpoint(1))
    store.close()
    hasty = Store(str(tmp_path), "vllm", "json")
    with pytest.raises(CheckpointError, match="not been read"):
        hasty.save(a_checkpoint(0))
    hasty.open()
    with pytest.raises(CheckpointError, match="not been read"):
        hasty.save(a_checkpoint(0))
    hasty.close()

    assert read_back(tmp_path) == a_checkpoint(1)


def as_nobody() -> None:
    """Give up root's right to write everywhere, where the tests run as root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def test_directory_that_may_not_be_written() -> None:
    """A directory of another user is refused with both users named."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)

        def work() -> None:
            as_nobody()
            with pytest.raises(CheckpointError) as refused:
                Store(name, "vllm", "json").open()
            assert f"uid {os.geteuid()}" in refused.value.hint
            assert "dr-xr-xr-x" in refused.value.hint

        assert ended(fork(work)) == 0


def test_checkpoint_in_a_directory_that_became_read_only_is_still_read() -> None:
    """A volume that turned read-only costs the saves, and not the memory."""
    with tempfile.TemporaryDirectory() as name:
        store = opened(Path(name))
        store.save(a_checkpoint(1))
        store.close()
        for path in Path(name).iterdir():
            path.chmod(0o444)
        Path(name).chmod(0o555)

        def work() -> None:
            as_nobody()
            reader = Store(name, "vllm", "json")
            reader.open()
            assert reader.load().checkpoint == a_checkpoint(1)
            with pytest.raises(CheckpointError, match="EACCES"):
                reader.save(a_checkpoint(2))

        assert ended(fork(work)) == 0


def test_directory_that_cannot_be_synced_is_not_an_error() -> None:
    """Where the volume knows no sync of a directory, saves go on; any other failure of it is reported."""
    reader, writer = os.pipe()
    try:
        # A pipe answers fsync as such volumes do, with EINVAL.
        Disk().fsync_directory(reader)
        with pytest.raises(OSError, match="Invalid argument"):
            Disk().fsync(reader)
    finally:
        os.close(reader)
        os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Disk().fsync_directory(reader)


def test_file_that_the_disk_cannot_read_back_is_named() -> None:
    """A read that fails with EIO is damage to the file, told in words."""
    # The first page of a process's memory is never mapped, and reading it is an I/O error.
    with pytest.raises(CheckpointError, match=r"cannot read it back \(EIO\)"):
        read_file("/proc/self/mem")


def test_lack_of_descriptors_is_not_damage(tmp_path: Path) -> None:
    """A process that is out of descriptors cannot read now; it neither forgets nor moves the file aside."""
    store = opened(tmp_path)
    store.save(a_checkpoint(1))
    store.close()

    def work() -> None:
        reader = Store(str(tmp_path), "vllm", "json")
        reader.open()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        with pytest.raises(CheckpointError, match="EMFILE"):
            reader.load()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert reader.load() == Loaded(a_checkpoint(1), "current")

    assert ended(fork(work)) == 0
    assert read_back(tmp_path) == a_checkpoint(1)


def test_volume_that_cannot_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks nothing is written, since two processes could not be kept apart; the hint says what to mount."""

    def refuse(file: int, operation: int) -> None:
        del file, operation
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("lora_sidecar.checkpoint.store.fcntl.flock", refuse)
    with pytest.raises(CheckpointError, match="cannot lock files"):
        Store(str(tmp_path), "vllm", "json").open()
