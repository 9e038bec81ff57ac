"""Cuts the stream of a watch into lines.

The trap guarded against is the HTTP library's own line reader, which fails at a line above 128 KiB (kopf #275), where a
fleet's ConfigMap may have 1 MiB; and a stream without any line end, which must not fill the memory.
"""

from __future__ import annotations

from typing import Final

LINE_CAP: Final = 2 * 1024 * 1024
"""Bytes of a line: a document of 768 KiB with its quotes escaped, and the metadata of its object."""


class LineTooLongError(ValueError):
    """A line is longer than the cap."""


class LineSplitter:
    """Takes bytes as they come, gives whole lines without their ends; empty ones are left out."""

    def __init__(self, cap: int = LINE_CAP) -> None:
        self._cap = cap
        self._begun: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end within `data`. Raises `LineTooLongError`, after which the stream is of no use."""
        *ended, rest = data.split(b"\n")
        lines = []
        for part in ended:
            lines.append(self._take(part))
            self._begun, self._size = [], 0
        self._begun.append(rest)
        self._size += len(rest)
        self._check()
        return [line for line in lines if line.strip()]

    def _take(self, part: bytes) -> bytes:
        self._size += len(part)
        self._check()
        return b"".join([*self._begun, part])

    def _check(self) -> None:
        if self._size > self._cap:
            raise LineTooLongError(f"a line has more than {self._cap} bytes")
