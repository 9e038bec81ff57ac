"""Moves aside what stands in a checkpoint's place and cannot be used, so that it is neither lost nor overwritten.

The trap guarded against is a damaged file that ends the process at every start, or is silently replaced by an empty
one: it keeps its bytes under another name, is named to a person, and no more than a few of them are kept.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final

from msgspec import Struct

from lora_sidecar.checkpoint.disk import Disk, explained

_KEPT_CORRUPT: Final = 3


class RejectedKind(StrEnum):
    """Why a file that stood in the place of a checkpoint was not used."""

    CORRUPT = "corrupt"
    FOREIGN = "foreign"
    """It is the checkpoint of a server with another name."""
    NEWER = "newer"
    """A newer version of this program wrote it."""


class RejectedFile(Struct, frozen=True):
    """A file that was not used. `moved_to` is where it is now, None where it could not be moved."""

    kind: RejectedKind
    file: str
    moved_to: str | None
    reason: str
    hint: str = ""


def names_like(pattern: str, directory: int, path: str) -> list[str]:
    """The names in an open directory that match a pattern as a whole. Raises `CheckpointError`."""
    with explained("list the checkpoint directory", path, path), os.scandir(directory) as entries:
        return [entry.name for entry in entries if re.fullmatch(pattern, entry.name)]


class Aside:
    """The names under which one server's unusable files are kept; each call is given the open directory."""

    def __init__(self, disk: Disk, path: str, stem: str) -> None:
        """`path` is the directory's, `stem` what the server's files begin with."""
        self._disk = disk
        self._directory = path
        self._stem = stem

    def quarantine(self, directory: int, kind: RejectedKind, name: str, reason: str, hint: str) -> RejectedFile:
        """Move a file aside as `corrupt-N`, and drop all such files but the newest three."""
        prefix = f"{self._stem}.corrupt-"
        old = names_like(rf"{re.escape(prefix)}[0-9]{{1,9}}", directory, self._directory)
        numbers = sorted(int(one.removeprefix(prefix)) for one in old)
        numbers.append(numbers[-1] + 1 if numbers else 1)
        target = f"{prefix}{numbers[-1]}"
        try:
            self._move(directory, name, target)
        except OSError as error:
            why = f"{reason}; and it could not be moved: {error.strerror}"
            return RejectedFile(kind, self._path(name), None, why, hint)
        for number in numbers[:-_KEPT_CORRUPT]:
            with suppress(OSError):
                self._disk.unlink(directory, f"{prefix}{number}")
        return RejectedFile(kind, self._path(name), self._path(target), reason, hint)

    def keep_newer(self, directory: int, name: str, version: int, reason: str) -> RejectedFile:
        """Move a newer version's file aside to a name that is free; such a file is never dropped.

        Raises `CheckpointError` where it cannot be moved: it must not be overwritten.
        """
        taken = names_like(rf"{re.escape(self._stem)}\.newer-.*", directory, self._directory)
        target = first = f"{self._stem}.newer-{version}"
        number = 1
        while target in taken:
            number += 1
            target = f"{first}-{number}"
        with explained("move aside the newer checkpoint", self._path(name), self._directory):
            self._move(directory, name, target)
        hint = f"to use it again, go back to the newer lora-sidecar and rename it to {name}"
        return RejectedFile(RejectedKind.NEWER, self._path(name), self._path(target), reason, hint)

    def _move(self, directory: int, name: str, target: str) -> None:
        self._disk.rename(directory, name, target)
        # Before anything takes its place: a power loss must not keep only the later of the two renames.
        self._disk.fsync_directory(directory)

    def _path(self, name: str) -> str:
        return str(Path(self._directory) / name)
