from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys

from lora_sidecar.config import ServerConfig
from lora_sidecar.engines.transport import Transport
from lora_sidecar.lean import without_system_certificates

PROGRAM = """
import sys
from lora_sidecar.lean import without_system_certificates
with without_system_certificates():
    import aiohttp.connector
print(aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509_ca"])
"""


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
