from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

import pytest

from lora_sidecar.checkpoint.decode import Format
from lora_sidecar.checkpoint.disk import Disk
from lora_sidecar.checkpoint.store import Store
from tests.support.checkpoints import a_checkpoint, sealed_tree
from tests.support.disks import Image, Platter


def save_on(directory: Path, disk: Platter, generation: int, format_: Format = "json") -> list[Image]:
    """Save a generation, and give every directory that a power loss during it can leave."""
    store = Store(str(directory), "vllm", format_, disk)
    store.open()
    store.load()
    disk.images.clear()
    store.save(a_checkpoint(generation))
    store.close()
    return disk.images.copy()


def generations(images: Iterable[Image], scratch: Path, format_: Format = "json") -> set[int]:
    """The generations that are read from these directories; 0 stands for none, -1 for one that is not whole."""
    read: set[int] = set()
    for number, image in enumerate({tuple(sorted(image.items())) for image in images}):
        place = scratch / str(number)
        place.mkdir(parents=True)
        for name, data in image:
            (place / name).write_bytes(data)
        store = Store(str(place), "vllm", format_)
        store.open()
        loaded = store.load()
        store.close()
        if loaded.notes:
            read.add(-1)
        elif loaded.checkpoint is None:
            read.add(0)
        else:
            assert loaded.checkpoint == a_checkpoint(loaded.checkpoint.generation)
            read.add(loaded.checkpoint.generation)
    return read


@pytest.mark.parametrize("disk_type", [Platter, "unlinked"], ids=["hard-links", "copies"])
def test_power_loss_at_any_moment(tmp_path: Path, disk_type: type[Platter] | str) -> None:
    """During a save the power loss leaves n or n+1, and after it n+1, whatever was written back and in which order."""

    class Unlinked(Platter):
        def link(self, directory: int, source: str, target: str) -> None:
            raise PermissionError(directory, source, target)

    disk = Unlinked() if disk_type == "unlinked" else Platter()
    volume = tmp_path / "volume"
    volume.mkdir()
    for generation in range(1, 5):
        during = save_on(volume, disk, generation)
        after = disk.after_power_loss()

        assert generations(during, tmp_path / f"during-{generation}") == {generation - 1, generation}
        assert generations(after, tmp_path / f"after-{generation}") == {generation}


def test_power_loss_in_a_format_change(tmp_path: Path) -> None:
    """The same holds while one format takes over from the other, there and back."""
    disk = Platter()
    volume = tmp_path / "volume"
    volume.mkdir()
    formats: tuple[Format, ...] = ("json", "json", "yaml", "yaml", "json", "yaml")
    for generation, format_ in enumerate(formats, start=1):
        during = save_on(volume, disk, generation, format_)
        after = disk.after_power_loss()

        assert generations(during, tmp_path / f"during-{generation}", format_) == {generation - 1, generation}
        assert generations(after, tmp_path / f"after-{generation}", format_) == {generation}


@pytest.mark.parametrize("version", [2, None], ids=["newer", "damaged"])
def test_power_loss_while_a_file_is_moved_aside(tmp_path: Path, version: int | None) -> None:
    """The file that was moved aside is not lost to the save that follows, whichever renames were written back."""
    unusable = b"damaged" if version is None else sealed_tree({"version": version}, "json")
    disk = Platter()
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "vllm.json").write_bytes(unusable)
    disk.hold("vllm.json", unusable)
    save_on(volume, disk, 1)

    assert disk.images
    assert all(unusable in image.values() for image in [*disk.images, *disk.after_power_loss()])


def test_power_loss_after_a_death_and_a_new_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process renamed that died before its sync is durable once the next process has read it."""

    class Mortal(Platter):
        def fsync_directory(self, directory: int) -> None:
            raise KeyboardInterrupt(directory)

    disk = Mortal()
    volume = tmp_path / "volume"
    volume.mkdir()
    store = Store(str(volume), "vllm", "json", disk)
    store.open()
    store.load()
    with pytest.raises(KeyboardInterrupt):
        store.save(a_checkpoint(1))
    store.close()
    assert generations(disk.after_power_loss(), tmp_path / "before") == {0, 1}
    monkeypatch.setattr(Mortal, "fsync_directory", Platter.fsync_directory)
    store = Store(str(volume), "vllm", "json", disk)
    store.open()
    loaded = store.load()
    store.close()

    assert loaded.durable
    assert generations(disk.after_power_loss(), tmp_path / "after") == {1}


def test_what_cannot_be_made_durable_at_the_start_is_saved_again(tmp_path: Path) -> None:
    """A directory that cannot be synced leaves the checkpoint usable, and says that it is not durable."""
    save_on(tmp_path, Platter(), 1)

    class Unsynced(Disk):
        def fsync_directory(self, directory: int) -> None:
            raise OSError(errno.EIO, "no", directory)

    store = Store(str(tmp_path), "vllm", "json", Unsynced())
    store.open()
    loaded = store.load()
    store.close()

    assert loaded.checkpoint == a_checkpoint(1)
    assert not loaded.durable


def test_checker_catches_a_missing_sync_of_the_file(tmp_path: Path) -> None:
    """A save that does not sync its file fails the check above: it can leave a file that is not whole."""

    class Careless(Platter):
        def fsync(self, file: int) -> None:
            Disk.fsync(self, file)

    disk = Careless()
    volume = tmp_path / "volume"
    volume.mkdir()
    save_on(volume, disk, 1)

    assert -1 in generations(disk.after_power_loss(), tmp_path / "after")


def test_checker_catches_a_missing_sync_of_the_directory(tmp_path: Path) -> None:
    """A save that does not sync the directory fails the check above: it can be lost after it returned."""

    class Careless(Platter):
        def fsync_directory(self, directory: int) -> None:
            Disk.fsync_directory(self, directory)

    disk = Careless()
    volume = tmp_path / "volume"
    volume.mkdir()
    save_on(volume, disk, 1)

    assert generations(disk.after_power_loss(), tmp_path / "after") == {0, 1}
