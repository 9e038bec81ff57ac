"""Importing aiohttp without the system's certificates.

aiohttp (3.12 to 3.14) reads every certificate authority of the system when it is imported, for a default that is never
used here: each https server gets a context of its own. That is 2 MB and 60 ms in every pod. What is not read can only
make that default trust nobody.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_system_certificates() -> Iterator[None]:
    """Have contexts that are made meanwhile trust nobody; for imports alone, before any thread runs."""
    usual = ssl.create_default_context

    def empty(*_: Any, **__: Any) -> ssl.SSLContext:  # noqa: ANN401 - whatever the library passes
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    ssl.create_default_context = empty
    try:
        yield
    finally:
        ssl.create_default_context = usual
