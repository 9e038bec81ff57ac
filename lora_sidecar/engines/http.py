"""HTTP to one server, made safe: every request has a hard deadline, every body a cap, every failure is a value.

The traps guarded against were each seen on aiohttp 3.14. Its `total` timeout rounds up above 5 s and does not cover
all that can block, so `asyncio.timeout` stands around everything. A connection kept alive is closed by the server just
as it is used again (uvicorn after 5 s), which loses a POST; so no connection is used twice. Redirected POSTs become
GETs, a 200 kB gzip body becomes 200 MB, and a peer that does not speak HTTP appears as a status 400 that no server
sent; so there are no redirects, no decompression, and errors of the parser are kept apart from answers.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

import aiohttp
from msgspec import Struct
from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_attempt, wait_fixed

from lora_sidecar import __version__
from lora_sidecar.config.inventory import ServerConfig, TlsConfig
from lora_sidecar.core.errors import SidecarError
from lora_sidecar.core.observation import Reason
from lora_sidecar.engines.sockets import outgoing
from lora_sidecar.threads import BlockingCall

BODY_CAP: Final = 16 * 1024 * 1024
"""Bytes of a body that are read; a listing of 10,000 adapters has 5 MB."""

KEY_CAP: Final = 64 * 1024
_TRIES: Final = 3
_PAUSE: Final = 0.05


class Reply(Struct, frozen=True):
    """An answer of the server, whole."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is 200."""
        return self.status == HTTPStatus.OK


class RequestError(Struct, frozen=True):
    """A request that got no whole answer. `sent` is whether the server may have received it."""

    reason: Reason
    detail: str
    sent: bool


class Transport:
    """Requests to one server. Not to be used before a loop runs; `close` it in the end.

    `retries` counts the requests that broke off and were sent anew: meanwhile the server may have restarted.
    """

    def __init__(self, server: ServerConfig) -> None:
        """Prepare the connector; raises `SidecarError` where a certificate or key file cannot be used.

        `context` is then how an https server is verified, None for any other.
        """
        self.context = ssl_context(server.tls or TlsConfig()) if server.url.startswith("https://") else None
        self._base, connector = _connector(server, self.context)
        self._key_file = server.api_key_file
        self._key: str | None = None
        self.retries = 0
        self._reader = BlockingCall(f"key-{server.name}")
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity", "User-Agent": f"lora-sidecar/{__version__}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def refresh_key(self, deadline: float) -> RequestError | None:
        """Read the API key's file again, since a mounted secret rotates; `deadline` in seconds."""
        path = self._key_file
        if path is None:
            return None
        try:
            self._key = await self._reader.run(lambda: _read_key(path), deadline)
        except TimeoutError:
            why = f"it takes longer than {deadline:g} s"
        except (OSError, ValueError) as error:
            why = str(error)
        else:
            return None
        return RequestError(Reason.KEY_UNREADABLE, f"cannot read the API key from {path}: {why}", sent=False)

    async def get(self, path: str, deadline: float) -> Reply | RequestError:
        """GET, tried again where the connection broke, all within `deadline` seconds."""
        return await _within(deadline, lambda: self._persist("GET", path))

    async def post(self, path: str, body: bytes, deadline: float) -> Reply | RequestError:
        """POST `body` as JSON, once: whether a request that broke off took effect only a listing can say."""
        return await _within(deadline, lambda: self._exchange("POST", path, body))

    async def _persist(self, method: str, path: str) -> Reply | RequestError:
        result = await self._exchange(method, path, None)
        if not _broke_off(result):
            return result
        self.retries += 1
        attempts = AsyncRetrying(
            stop=stop_after_attempt(_TRIES - 1),
            wait=wait_fixed(_PAUSE),
            retry=retry_if_result(_broke_off),
            retry_error_callback=_last_result,
        )
        await asyncio.sleep(_PAUSE)
        return await attempts(self._exchange, method, path, None)

    async def _exchange(self, method: str, path: str, body: bytes | None) -> Reply | RequestError:
        headers = {} if body is None else {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            async with self._session.request(
                method, self._base + path, data=body, headers=headers, allow_redirects=False
            ) as response:
                return await _read(response)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _broken(error)


async def _within(deadline: float, request: Callable[[], Awaitable[Reply | RequestError]]) -> Reply | RequestError:
    try:
        async with asyncio.timeout(deadline):
            return await request()
    except TimeoutError:
        return RequestError(Reason.TIMEOUT, f"no answer within {deadline:g} s", sent=True)


async def _read(response: aiohttp.ClientResponse) -> Reply | RequestError:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > BODY_CAP:
            response.close()
            return RequestError(Reason.TOO_LARGE, f"the body is larger than {BODY_CAP} bytes", sent=True)
    return Reply(response.status, b"".join(chunks))


def _broke_off(result: Reply | RequestError) -> bool:
    return isinstance(result, RequestError) and result.reason is Reason.RESET


def _last_result(state: RetryCallState) -> Reply | RequestError:
    if state.outcome is None:
        raise AssertionError("a retry ended without an attempt")
    result: Reply | RequestError = state.outcome.result()
    return result


def _broken(error: Exception) -> RequestError:
    """What a failed request was; an error that says nothing of the connection is taken to have reached the server."""
    detail = str(error) or type(error).__name__
    match error:
        case aiohttp.ClientSSLError():
            return RequestError(Reason.TLS, detail, sent=False)
        case aiohttp.ClientConnectorDNSError():
            return RequestError(Reason.UNREACHABLE, detail, sent=False)
        case aiohttp.ClientConnectorError():
            why = error.os_error.strerror or str(error.os_error)
            return RequestError(_connect_reason(error.os_error), f"cannot connect: {why}", sent=False)
        case aiohttp.ServerDisconnectedError():
            return RequestError(Reason.RESET, "the server closed the connection without an answer", sent=True)
        case aiohttp.ClientPayloadError():
            return RequestError(Reason.RESET, f"the answer broke off: {detail}", sent=True)
        case aiohttp.ClientResponseError():
            return RequestError(Reason.WRONG_SERVER, f"the answer is not HTTP: {error.message}", sent=True)
        case ssl.SSLError():
            return RequestError(Reason.TLS, detail, sent=True)
        case OSError() if error.errno in _OUT_OF_DESCRIPTORS:
            return RequestError(Reason.LOCAL, detail, sent=False)
        case OSError():
            return RequestError(Reason.RESET, detail, sent=True)
        case _:
            return RequestError(Reason.WRONG_SERVER, detail, sent=True)


_OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_NOBODY_LISTENS = frozenset({errno.ECONNREFUSED, errno.ENOENT})


def _connect_reason(error: OSError) -> Reason:
    """Why no connection came about; a unix socket that does not exist yet is a server that does not listen yet."""
    if error.errno in _NOBODY_LISTENS:
        return Reason.REFUSED
    if error.errno in _OUT_OF_DESCRIPTORS:
        return Reason.LOCAL
    return Reason.RESET if error.errno == errno.ECONNRESET else Reason.UNREACHABLE


def _read_key(path: str) -> str:
    # pathlib interns the parts of a path, anew at each heartbeat.
    with open(path, "rb") as file:  # noqa: PTH123
        key = file.read(KEY_CAP).decode("ascii").strip()
    if not key:
        raise ValueError("the file is empty")
    if not key.isprintable():
        raise ValueError("the file has more than one line, or control characters")
    return key


def _connector(server: ServerConfig, context: ssl.SSLContext | None) -> tuple[str, aiohttp.BaseConnector]:
    if server.url.startswith("unix://"):
        path = server.url.removeprefix("unix://")
        return "http://localhost", aiohttp.UnixConnector(path, force_close=True)
    return server.url.rstrip("/"), aiohttp.TCPConnector(force_close=True, ssl=context or True, socket_factory=outgoing)


def ssl_context(tls: TlsConfig) -> ssl.SSLContext:
    """How a server's certificate is verified; raises `SidecarError` where a file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
        if tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    except OSError as error:
        named = ", ".join(name for name in (tls.ca_file, tls.cert_file, tls.key_file) if name)
        raise SidecarError(
            "load certificates from", named, str(error), "servers[].tls names PEM files that this process can read"
        ) from error
    return context
