"""Importing the libraries without what this program never uses of them: OpenSSL, and the system's certificates.

OpenSSL is 7 MB in every pod, and most servers are asked over plain HTTP within it. asyncio and aiohttp are written for
interpreters that were built without it, and hashlib has functions of the interpreter's own. So where no server has an
`https` url, they are imported as if it were not there.

Where one has, aiohttp (3.12 to 3.14) would read every certificate authority of the system at its import, for a default
that is never used here: each https server gets a context of its own. What is not read can only make that default trust
nobody.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

_OWN_DIGESTS: Final = (("_md5",), ("_sha1",), ("_sha2", "_sha256"), ("_sha2", "_sha512"), ("_sha3",), ("_blake2",))
"""What hashlib uses without OpenSSL, each by its names in Python 3.11 to 3.13; a distributor may leave them out."""


@contextmanager
def without_openssl() -> Iterator[None]:
    """Have imports meanwhile find no OpenSSL, unless it is loaded already; for imports alone, before any thread runs.

    What is imported so can open no TLS connection for as long as the process lives.
    """
    names = ["ssl", "_ssl"]
    if all(any(map(find_spec, alternatives)) for alternatives in _OWN_DIGESTS):
        names.append("_hashlib")
    hidden = [] if "ssl" in sys.modules else [name for name in names if name not in sys.modules]
    sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]  # None is how an import is made to fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def without_system_certificates() -> Iterator[None]:
    """Have contexts that are made meanwhile trust nobody; for imports alone, before any thread runs."""
    import ssl  # noqa: PLC0415 - loads OpenSSL

    usual = ssl.create_default_context

    def empty(*_: Any, **__: Any) -> ssl.SSLContext:  # noqa: ANN401 - whatever the library passes
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    ssl.create_default_context = empty
    try:
        yield
    finally:
        ssl.create_default_context = usual
