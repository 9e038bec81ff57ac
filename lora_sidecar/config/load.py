"""Reads the config's file.

The trap guarded against is a file without end: one byte more than a config may have is read, and no more.
"""

from __future__ import annotations

from typing import Final

from lora_sidecar.core.errors import ConfigError, Problem

SIZE_CAP: Final = 1024 * 1024


def read(path: str) -> bytes:
    """The config's bytes, at most one more than a config may have. Raises `ConfigError`."""
    try:
        # pathlib interns the parts of a path, anew each time that the config is looked at.
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(SIZE_CAP + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(path, (Problem(0, "", f"cannot be read: {reason}", "is it mounted?"),)) from error
