"""A folder that answers with an error for a while, as a network volume does.

The trap guarded against is a test that needs rights or a broken disk: the operating system's own calls fail, and for
one folder alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock


@contextmanager
def failing(folder: Path, number: int) -> Iterator[None]:
    """Have every look at `folder`, and at what is below it, end with this error of the operating system."""

    def replaced(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: object, *args: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and Path(os.fsdecode(path)).is_relative_to(folder):
                raise OSError(number, os.strerror(number), os.fsdecode(path))
            return real(path, *args, **options)

        return call

    with (
        mock.patch.object(os, "open", replaced(os.open)),
        mock.patch.object(os, "stat", replaced(os.stat)),
        mock.patch.object(os, "lstat", replaced(os.lstat)),
    ):
        yield
