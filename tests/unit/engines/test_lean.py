from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys

from lora_sidecar.config.inventory import ServerConfig
from lora_sidecar.engines.http import Transport
from lora_sidecar.lean import without_openssl, without_system_certificates

PROGRAM = """
import sys
from lora_sidecar.lean import without_system_certificates
with without_system_certificates():
    import aiohttp.connector
print(aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509_ca"])
"""

WITHOUT = """
import sys
from lora_sidecar.lean import without_openssl
with without_openssl():
    import asyncio, hashlib
    from aiohttp import web
    import aiohttp
    assert "_hashlib" not in sys.modules or sys.modules["_hashlib"] is None
print(asyncio.sslproto.ssl, aiohttp.connector.ssl, hashlib.sha256(b"adapter").hexdigest())
print(sorted(sys.modules.keys() & {"ssl", "_ssl", "_hashlib"}))
import ssl
print(ssl.create_default_context().verify_mode)
"""


def test_what_is_imported_without_openssl_works_and_later_imports_find_it() -> None:
    """The libraries take its absence for an interpreter that was built so, and nothing is left hidden afterwards."""
    result = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=30)
    digest = "ae1eae1d76e5b7c865c4122ce366a08025842566d2d96c75cc13e6353a73db0d"
    assert result.stdout.splitlines() == [f"None None {digest}", "[]", str(ssl.CERT_REQUIRED)]


def test_openssl_that_is_loaded_already_stays() -> None:
    """A process that has it, as a test's has, is left as it is."""
    with without_openssl():
        assert sys.modules["ssl"] is ssl
    assert sys.modules["ssl"] is ssl


def test_contexts_made_meanwhile_trust_nobody_and_later_ones_are_as_ever() -> None:
    """What was left out can only make a connection fail, and nothing is left out after the imports."""
    usual = ssl.create_default_context
    with without_system_certificates():
        spare = ssl.create_default_context()
    assert (spare.verify_mode, spare.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert spare.cert_store_stats()["x509_ca"] == 0
    assert ssl.create_default_context is usual


def test_the_http_library_reads_no_certificates_at_its_import() -> None:
    """That is 2 MB in every pod; should the library change its ways, this says so."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout.strip() == "0"


async def test_a_server_without_tls_settings_is_verified_with_the_systems_certificates() -> None:
    """An https server gets a context of its own, whatever the library's default holds."""
    secure = Transport(ServerConfig("vllm", "https://vllm.example"))
    plain = Transport(ServerConfig("vllm", "http://127.0.0.1:8000"))
    try:
        assert secure.context is not None
        assert secure.context.verify_mode is ssl.CERT_REQUIRED
        expected = await asyncio.to_thread(lambda: ssl.create_default_context().cert_store_stats())
        assert secure.context.cert_store_stats() == expected
        assert plain.context is None
    finally:
        await secure.close()
        await plain.close()
