from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from lora_sidecar.core.observation import Sight
from lora_sidecar.files import watcher as module
from lora_sidecar.files.folder import read_folder
from lora_sidecar.files.watcher import IN_TURN, FileWatcher
from lora_sidecar.threads import ReaderPool
from tests.support.adapters import CONFIG, WEIGHTS, write_adapter
from tests.support.disk_errors import failing


def watcher(changes: list[None] | None = None) -> FileWatcher:
    """One that nobody hears of, or that adds to `changes`."""
    return FileWatcher(ReaderPool("files"), lambda: None if changes is None else changes.append(None))


async def sight(one: FileWatcher, *paths: str) -> list[Sight | None]:
    """What a round of looks at these paths, and no others, finds."""
    one.want(paths, (), 5.0)
    await one.scan()
    return [one.files[path].sight if path in one.files else None for path in paths]


async def test_a_folder_that_was_never_seen_is_gone_only_beside_one_that_is_there(tmp_path: Path) -> None:
    """A volume that is not mounted yet has nothing in it; one with a neighbour in it is mounted."""
    one = watcher()
    there, gone = str(write_adapter(tmp_path / "a" / "there", layers=1)), str(tmp_path / "a" / "gone")
    elsewhere = str(tmp_path / "b" / "gone")

    assert await sight(one, gone) == [Sight.UNSEEN]
    assert await sight(one, there, gone, elsewhere) == [Sight.PRESENT, Sight.GONE, Sight.UNSEEN]


async def test_what_is_of_no_interest_any_more_is_nobodys_neighbour(tmp_path: Path) -> None:
    """However many came and went, a folder is known beside those that are wanted now, and nothing is kept of others."""
    one = watcher()
    paths = [str(write_adapter(tmp_path / "a" / f"{number:02}", layers=1)) for number in range(IN_TURN + 2)]
    assert set(await sight(one, *paths)) == {Sight.PRESENT}
    assert len(one._neighbours(str(tmp_path / "a" / "new"))) == IN_TURN
    for number, path in enumerate(paths[1:], start=2):
        shutil.rmtree(path)
        await sight(one, *paths[: len(paths) - number])

    assert one._neighbours(str(tmp_path / "a" / "new")) == ()
    assert one._beside == {}
    assert await sight(one, str(tmp_path / "a" / "new")) == [Sight.UNSEEN]


async def test_what_is_kept_for_a_load_stays_known(tmp_path: Path) -> None:
    """After a restart everything is being loaded: that a folder was seen whole must outlast it."""
    one = watcher()
    path = str(write_adapter(tmp_path / "a" / "alone", layers=1))
    assert await sight(one, path) == [Sight.PRESENT]
    one.want((), (), 5.0, keep={path})
    assert path in one.files
    shutil.rmtree(path)

    assert await sight(one, path) == [Sight.GONE]
    assert one.files[path].seen_before


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
async def test_an_error_of_the_disk_makes_nothing_gone(tmp_path: Path, number: int) -> None:
    """However long it lasts, and whatever in the folder it concerns; then everything is as before."""
    one = watcher()
    folder = write_adapter(tmp_path / "a" / "one", layers=1)
    write_adapter(tmp_path / "a" / "two", layers=1)
    path = str(folder)
    assert await sight(one, path, str(tmp_path / "a" / "two")) == [Sight.PRESENT] * 2
    before = one.files[path]
    for where in (folder.parent, folder, folder / CONFIG, folder / WEIGHTS):
        with failing(where, number):
            for _ in range(3):
                assert await sight(one, path) == [Sight.UNSEEN]
        assert await sight(one, path) == [Sight.PRESENT]
        assert one.files[path] == before
    shutil.rmtree(folder)
    assert await sight(one, path) == [Sight.GONE]
    assert one.files[path].seen_before


async def test_an_error_in_between_begins_the_count_of_looks_anew(tmp_path: Path) -> None:
    """Gone is what is gone twice in a row, and not before and after nothing could be seen."""
    one = watcher()
    folder = write_adapter(tmp_path / "a" / "one", layers=1)
    path = str(folder)
    await sight(one, path)
    shutil.rmtree(folder)
    await sight(one, path)
    with failing(folder, errno.ESTALE):
        await sight(one, path)
    assert await sight(one, path) == [Sight.GONE]
    assert one.files[path].looks == 1
    await sight(one, path)
    assert one.files[path].looks == 2


async def test_a_link_into_what_only_the_server_mounts_is_unseen(tmp_path: Path) -> None:
    """Also beside folders that are there; and one that led somewhere and does no more is not gone."""
    one = watcher()
    there = write_adapter(tmp_path / "volume" / "there", layers=1)
    for name in ("folder", "leads"):
        (tmp_path / "volume" / name).symlink_to(there if name == "leads" else "/volume-of-the-server/a")
    leads, folder = str(tmp_path / "volume" / "leads"), str(tmp_path / "volume" / "folder")
    assert await sight(one, str(there), folder, leads) == [Sight.PRESENT, Sight.UNSEEN, Sight.PRESENT]
    there.rename(tmp_path / "elsewhere")

    assert await sight(one, leads) == [Sight.UNSEEN]


async def test_files_copied_anew_are_the_same_files(tmp_path: Path) -> None:
    """Other inodes and times and the same bytes are no change; other bytes are one, of the same size too."""
    changes: list[None] = []
    one = watcher(changes)
    folder = write_adapter(tmp_path / "a", layers=1)
    path = str(folder)
    await sight(one, path)
    before = one.files[path]
    shutil.copytree(folder, tmp_path / "b")
    for _ in range(3):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "b", folder)
        os.utime(folder / WEIGHTS)
        await sight(one, path)
    assert (one.files[path], changes) == (before, [])
    write_adapter(folder, layers=1, seed=1)
    await sight(one, path)
    assert one.files[path].fingerprint != before.fingerprint
    assert changes == [None]


async def test_files_whose_metadata_stays_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look costs a few calls; after an error the bytes are read."""
    read: list[str] = []

    def noted(path: str) -> object:
        read.append(path)
        return read_folder(path)

    monkeypatch.setattr(module, "read_folder", noted)
    one = watcher()
    folder = write_adapter(tmp_path / "a", layers=1)
    for _ in range(5):
        assert await sight(one, str(folder)) == [Sight.PRESENT]
    assert read == [str(folder)]
    os.utime(folder / CONFIG, ns=(1, 1))
    await sight(one, str(folder))
    assert len(read) == 2


async def test_what_no_engine_could_read_is_unreadable(tmp_path: Path) -> None:
    """Half a copy and a damaged config, with the reason; a feature that some version lacks is none of this."""
    one = watcher()
    half, torn = write_adapter(tmp_path / "half", layers=1), write_adapter(tmp_path / "torn", layers=1)
    dora = write_adapter(tmp_path / "dora", layers=1, use_dora=True)
    os.truncate(half / WEIGHTS, 5000)
    (torn / CONFIG).write_text("{")
    paths = [str(half), str(torn), str(dora)]

    assert await sight(one, *paths) == [Sight.UNREADABLE, Sight.UNREADABLE, Sight.PRESENT]
    assert await sight(one, *paths) == [Sight.UNREADABLE, Sight.UNREADABLE, Sight.PRESENT]
    assert "its header speaks of" in one.files[paths[0]].why
    assert [one.files[path].looks for path in paths] == [2, 2, 1]


async def test_a_folder_in_the_making_is_unseen_until_it_was_whole_once(tmp_path: Path) -> None:
    """Then it is gone where a file of it is."""
    one = watcher()
    whole = write_adapter(tmp_path / "whole", layers=1)
    folder = tmp_path / "a"
    folder.mkdir()
    shutil.copy(whole / CONFIG, folder)
    assert await sight(one, str(folder), str(whole)) == [Sight.UNSEEN, Sight.PRESENT]
    shutil.copy(whole / WEIGHTS, folder)
    assert await sight(one, str(folder)) == [Sight.PRESENT]
    (folder / CONFIG).unlink()
    assert await sight(one, str(folder)) == [Sight.GONE]


async def listed(one: FileWatcher, *paths: Path) -> dict[str, str]:
    """What the server is known to have loaded after a round of looks with these listed, by the folder's name."""
    one.want((), [str(path) for path in paths], 5.0, keep={*one.files})
    await one.scan()
    return {Path(path).name: marks for path, marks in one.accepted.items()}


async def test_what_a_server_lists_was_loaded_from_the_files_that_were_there_at_first(tmp_path: Path) -> None:
    """Not from those that were put in their place while it was listed; a load from those says more."""
    one = watcher()
    folder = write_adapter(tmp_path / "a", layers=1)
    first = await listed(one, folder)
    assert first == {"a": one.files[str(folder)].fingerprint}
    os.truncate(folder / WEIGHTS, 5000)
    assert await listed(one, folder) == first
    assert await listed(one) == first
    again = await listed(one, folder)
    assert again == {"a": one.files[str(folder)].fingerprint}
    assert again != first
    one.want((), (), 5.0)
    assert one.accepted == {}


async def test_of_files_that_cannot_be_seen_nothing_is_known_to_have_been_loaded(tmp_path: Path) -> None:
    """Until they can be."""
    one = watcher()
    folder = write_adapter(tmp_path / "a", layers=1)
    with failing(folder, errno.EIO):
        assert await listed(one, folder) == {}
    assert list(await listed(one, folder)) == ["a"]


async def test_every_listed_adapter_has_its_turn_and_new_ones_come_first(tmp_path: Path) -> None:
    """So many a round, whoever else is there."""
    one = watcher()
    sample = write_adapter(tmp_path / "000", layers=1)
    paths = [sample, *(Path(shutil.copytree(sample, tmp_path / f"{n:03}")) for n in range(1, 3 * IN_TURN))]
    for rounds in (1, 2, 3):
        assert len(await listed(one, *paths)) == rounds * IN_TURN
    new = write_adapter(tmp_path / "new", layers=1)
    assert "new" in await listed(one, *paths, new)


@pytest.mark.parametrize("path", ["/a\x00b", "/\ud800", "org/name"])
async def test_a_path_that_is_none_does_not_reach_the_disk(path: str) -> None:
    """A listing may name any text as a path; nothing fails over it."""
    assert await sight(watcher(), path) == [Sight.UNSEEN]
