from __future__ import annotations

import shutil
from pathlib import Path

from lora_sidecar.core.observation import Sight
from lora_sidecar.files.watcher import IN_TURN, FileWatcher
from lora_sidecar.threads import ReaderPool
from tests.support.adapters import write_adapter


def survey() -> FileWatcher:
    """One that nobody hears of."""
    return FileWatcher(ReaderPool("survey"), lambda: None)


async def sight(one: FileWatcher, *paths: str) -> list[Sight | None]:
    """What a round of looks at these paths, and no others, finds."""
    one.want(paths, (), 5.0)
    await one.look()
    return [one.files[path].sight if path in one.files else None for path in paths]


async def test_a_folder_that_was_never_seen_is_gone_only_beside_one_that_is_there(tmp_path: Path) -> None:
    """A volume that is not mounted yet has nothing in it; one with a neighbour in it is mounted."""
    one = survey()
    there, gone = str(write_adapter(tmp_path / "a" / "there", layers=1)), str(tmp_path / "a" / "gone")
    elsewhere = str(tmp_path / "b" / "gone")

    assert await sight(one, gone) == [Sight.UNSEEN]
    assert await sight(one, there, gone, elsewhere) == [Sight.PRESENT, Sight.GONE, Sight.UNSEEN]


async def test_what_is_of_no_interest_any_more_is_nobodys_neighbour(tmp_path: Path) -> None:
    """However many came and went, a folder is known beside those that are wanted now, and nothing is kept of others."""
    one = survey()
    paths = [str(write_adapter(tmp_path / "a" / f"{number:02}", layers=1)) for number in range(IN_TURN + 2)]
    assert set(await sight(one, *paths)) == {Sight.PRESENT}
    assert len(one._neighbours(str(tmp_path / "a" / "new"))) == IN_TURN
    for number, path in enumerate(paths[1:], start=2):
        shutil.rmtree(path)
        await sight(one, *paths[: len(paths) - number])

    assert one._neighbours(str(tmp_path / "a" / "new")) == ()
    assert one._beside == {}
    assert await sight(one, str(tmp_path / "a" / "new")) == [Sight.UNSEEN]


async def test_what_is_spared_for_a_load_stays_known(tmp_path: Path) -> None:
    """After a restart everything is being loaded: that a folder was seen whole must outlast it."""
    one = survey()
    path = str(write_adapter(tmp_path / "a" / "alone", layers=1))
    assert await sight(one, path) == [Sight.PRESENT]
    one.want((), (), 5.0, spared={path})
    assert path in one.files
    shutil.rmtree(path)

    assert await sight(one, path) == [Sight.GONE]
    assert one.files[path].seen_before
