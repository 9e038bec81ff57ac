"""SHA-256 of short texts and long ones.

The trap guarded against is OpenSSL for the sake of a checksum. It is 3.5 MB in every pod that has no other use for it
(`lean`), and the interpreter's own function does as well for what most checkpoints hold. It takes five times as long,
though, which counts for thousands of adapters; they take more memory than OpenSSL does.
"""

from __future__ import annotations

import hashlib
from typing import Final

LONG: Final = 128 * 1024
"""Bytes from which on OpenSSL's is used: the interpreter's own takes half a millisecond for these."""


def sha256(*pieces: bytes) -> str:
    """The sum of pieces that follow one another, in hexadecimal digits."""
    sum_ = (_fast if sum(map(len, pieces)) >= LONG else hashlib.sha256)()
    for piece in pieces:
        sum_.update(piece)
    return sum_.hexdigest()


def _fast() -> hashlib._Hash:
    """OpenSSL's, also where hashlib was imported without it."""
    try:
        from _hashlib import openssl_sha256  # noqa: PLC0415 - loads OpenSSL
    except ImportError:
        return hashlib.sha256()
    return openssl_sha256()
