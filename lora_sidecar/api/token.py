"""Who may use the control port: whoever has the token that a file holds now.

Three traps are guarded against. A token that rotates: a mounted secret is replaced while we run, so the file is read
again, and while it cannot be read nobody is let in. A file that is a pipe: to open one waits for a writer, in a thread
that would be gone for ever, so it is opened without waiting and refused. And a comparison that ends at the first wrong
byte tells the token byte by byte to whoever measures it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import stat
from collections.abc import Callable
from typing import Final

from lora_sidecar.threads import BlockingCall

_CAP: Final = 64 * 1024
_READ_SECONDS: Final = 2.0
_FRESH_SECONDS: Final = 1.0


class Token:
    """The token of one file."""

    def __init__(self, path: str, now: Callable[[], float]) -> None:
        """`now` is the loop's clock, by which the file is read at most once a second."""
        self._path = path
        self._now = now
        self._reader = BlockingCall("control-token")
        self._reading = asyncio.Lock()
        self._read_at = float("-inf")
        self._digest: bytes | None = None
        self.problem = ""

    async def allows(self, authorization: str) -> bool:
        """Whether a header `Authorization` carries the token; `problem` says why that could not be read."""
        async with self._reading:
            if self._now() - self._read_at >= _FRESH_SECONDS:
                await self._read()
        scheme, _, given = authorization.partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        # Always compared, so that a missing token takes as long as a wrong one.
        same = hmac.compare_digest(digest, self._digest or bytes(len(digest)))
        return same and self._digest is not None and scheme.lower() == "bearer"

    async def _read(self) -> None:
        try:
            token = await self._reader.run(lambda: _read_file(self._path), _READ_SECONDS)
        except TimeoutError:
            self._digest, self.problem = None, f"reading it takes longer than {_READ_SECONDS:g} s"
        except OSError as error:
            self._digest, self.problem = None, error.strerror or "it cannot be read"
        except ValueError as error:
            # Not its text: that of a UnicodeDecodeError has bytes of the file in it.
            self._digest, self.problem = None, "it is not ASCII" if isinstance(error, UnicodeError) else str(error)
        else:
            self._digest, self.problem = hashlib.sha256(token).digest(), ""
        self._read_at = self._now()


def _read_file(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        token = file.read(_CAP).decode("ascii").strip()
    if not token:
        raise ValueError("it is empty")
    if not token.isprintable() or " " in token:
        raise ValueError("it has more than one line, or spaces or control characters")
    return token.encode()
