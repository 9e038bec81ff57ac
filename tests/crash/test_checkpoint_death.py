from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from lora_sidecar.checkpoint.decode import Format
from lora_sidecar.checkpoint.store import Store
from tests.support.checkpoints import a_checkpoint
from tests.support.disks import DyingDisk, Steps, UnlinkedDisk, ended, fork, temporaries


def generation_in(directory: Path, format_: Format = "json") -> int:
    """The generation that the next process reads, checked to be whole; 0 where there is none."""
    store = Store(str(directory), "vllm", format_)
    store.open()
    loaded = store.load()
    store.close()
    assert loaded.notes == ()
    if loaded.checkpoint is None:
        return 0
    assert loaded.checkpoint == a_checkpoint(loaded.checkpoint.generation)
    return loaded.checkpoint.generation


def save_one(directory: Path, generation: int, format_: Format = "json", disk: Steps | None = None) -> None:
    """Save one generation as a process of its own would."""
    store = Store(str(directory), "vllm", format_, disk)
    store.open()
    store.load()
    store.save(a_checkpoint(generation))
    store.close()


def die_at_each_step(directory: Path, old: int, was: Format, now: Format) -> list[int]:
    """The generations that are read after a death before each step of a save in turn, until one is survived."""
    read: list[int] = []
    for step in range(100):
        place = directory / str(step)
        place.mkdir()
        for generation in range(1, old + 1):
            save_one(place, generation, was)
        status = ended(fork(partial(save_one, place, old + 1, now, DyingDisk(step))))
        read.append(generation_in(place, now))
        assert temporaries(place) == []
        if status == 0:
            return read
        assert status == -signal.SIGKILL
    pytest.fail("a save has no end")


@pytest.mark.parametrize("old", [0, 1, 2])
@pytest.mark.parametrize("format_", ["json", "yaml"])
def test_death_at_any_step_leaves_the_old_or_the_new_generation(tmp_path: Path, old: int, format_: Format) -> None:
    """Killed before any step of a save, the next start reads generation n up to the rename and n+1 from it on."""
    read = die_at_each_step(tmp_path, old, format_, format_)

    # The directory's sync after reading a file, then create, write, fsync, link, rename.
    steps = 6 if old else 5
    assert read[:steps] == [old] * steps
    assert set(read[steps:]) == {old + 1}


@pytest.mark.parametrize(("was", "now"), [("json", "yaml"), ("yaml", "json")])
def test_death_at_any_step_of_a_format_change(tmp_path: Path, was: Format, now: Format) -> None:
    """A change of format has no moment at which neither file can be read."""
    read = die_at_each_step(tmp_path, 2, was, now)

    assert read[:6] == [2] * 6
    assert set(read[6:]) == {3}


@pytest.mark.parametrize("back", ["json", "yaml"])
def test_death_within_a_format_change_and_a_change_back(tmp_path: Path, back: Format) -> None:
    """The newer of two files of both formats is read, whichever format is configured then."""
    for step in range(12):
        place = tmp_path / str(step)
        place.mkdir()
        save_one(place, 1, "json")
        status = ended(fork(partial(save_one, place, 2, "yaml", DyingDisk(step))))

        assert status in {0, -signal.SIGKILL}
        assert generation_in(place, back) == (2 if step >= 6 else 1)


def test_death_at_any_step_without_hard_links(tmp_path: Path) -> None:
    """Where the previous generation is kept by copying, the promise is the same."""

    class Dying(UnlinkedDisk, DyingDisk):
        pass

    for step in range(12):
        place = tmp_path / str(step)
        place.mkdir()
        save_one(place, 1)
        status = ended(fork(partial(save_one, place, 2, disk=Dying(step))))

        assert status in {0, -signal.SIGKILL}
        # sync after reading; create, write, fsync of the new file; create, write, fsync of the copy; rename
        assert generation_in(place) == (2 if step >= 8 else 1)


def test_dead_process_leaves_temporary_files_that_the_next_start_removes(tmp_path: Path) -> None:
    """What a killed process left behind does not pile up, and nothing else is touched."""
    stranger = tmp_path / ".other.0123456789abcdef.tmp"
    stranger.write_bytes(b"of another server")
    ended(fork(lambda: save_one(tmp_path, 1, disk=DyingDisk(2))))
    left = temporaries(tmp_path)
    assert len(left) == 2
    generation_in(tmp_path)

    assert temporaries(tmp_path) == [stranger.name]


@pytest.mark.timeout(180)
def test_killed_at_a_thousand_random_moments(tmp_path: Path) -> None:
    """A process that saves without a pause loses nothing that a save had returned for, whenever it is killed."""
    chance = random.Random(1)
    saved = 0
    for _ in range(1000):
        reader, writer = os.pipe()

        def save_for_ever(start: int = saved, writer: int = writer) -> None:
            store = Store(str(tmp_path), "vllm", "json")
            store.open()
            store.load()
            for generation in range(start + 1, start + 100_000):
                store.save(a_checkpoint(generation))
                os.write(writer, f"{generation}\n".encode())

        child = fork(save_for_ever)
        os.close(writer)
        with open(reader, "rb") as reports:  # noqa: PTH123 - a pipe
            first = reports.readline()
            # The moment of the kill is the subject of the test: it falls anywhere within a few saves.
            time.sleep(chance.uniform(0, 0.005))  # noqa: TID251
            os.kill(child, signal.SIGKILL)
            reported = int((first + reports.read()).split(b"\n")[-2])
        assert ended(child) == -signal.SIGKILL

        assert generation_in(tmp_path) in {reported, reported + 1}
        saved = generation_in(tmp_path)
