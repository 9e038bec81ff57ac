"""The client of the Kubernetes API: list, watch and patch of one ConfigMap, and nothing else.

The traps guarded against: an API server that accepts a connection and then says nothing, so every request has a
deadline. A token that was replaced, so it is read for each request, and once more after a 401. A connection kept alive
that the server closes as it is used again, so none is used twice. An error of the network thrown through the caller's
loop, so each is a value.

Seen on Kubernetes 1.20: `tests/contract/kube` holds a real API server to it.
"""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from aiohttp import AddrInfoType
from msgspec import Struct

from lora_sidecar import __version__
from lora_sidecar.fleet import objects
from lora_sidecar.fleet.api import (
    Conflict,
    Denied,
    Expired,
    ListAnswer,
    Listed,
    Missing,
    PatchAnswer,
    Patched,
    Rejected,
    Unreachable,
    Verb,
)
from lora_sidecar.fleet.cluster import Cluster, Credentials, read_credentials
from lora_sidecar.fleet.lines import LINE_CAP
from lora_sidecar.fleet.objects import Malformed, Status, printable
from lora_sidecar.fleet.watch import KubernetesWatch

OPENING: Final = 10.0
"""Seconds within which a watch must be answered: the API server sends its headers at once."""

MANAGER: Final = "lora-sidecar"
"""Our name in the ConfigMap's `managedFields`."""

_OVERLOADED: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})

Offload = Callable[[Callable[[], Credentials]], Awaitable[Credentials]]
"""Makes a blocking call elsewhere than in the loop, with a deadline; raises what it raises, or `TimeoutError`."""


class _Answer(Struct, frozen=True):
    status: int
    body: bytes
    retry_after: str | None


class KubernetesApi:
    """Three verbs on the ConfigMap called `name` in this pod's namespace; see `api.ConfigMapApi`.

    Not to be made before a loop runs; `close` it in the end.
    """

    def __init__(self, cluster: Cluster, name: str, offload: Offload) -> None:
        """`offload` reads the credentials for each request."""
        self._cluster = cluster
        self._name = name
        self._offload = offload
        self._tls: tuple[str, ssl.SSLContext] | None = None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, socket_factory=_kept_alive),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": f"lora-sidecar/{__version__}",
            },
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections, those of open watches too."""
        await self._session.close()

    async def list(self, deadline: float) -> ListAnswer:
        """What there is now; see `ConfigMapApi.list`."""
        answer = await self._ask(Verb.LIST, "GET", self._selected(), None, deadline)
        if isinstance(answer, Unreachable):
            return answer
        if answer.status != HTTPStatus.OK:
            return self._refusal(Verb.LIST, answer)
        found = objects.listed(answer.body, self._name)
        return found if isinstance(found, Listed) else self._wrong(Verb.LIST, found.detail)

    async def watch(self, since: str, seconds: float) -> KubernetesWatch | Expired | Denied | Unreachable:
        """Hear of what happens after `since`; see `ConfigMapApi.watch`."""
        query = self._selected(
            watch="true", allowWatchBookmarks="true", resourceVersion=since, timeoutSeconds=f"{seconds:.0f}"
        )
        try:
            async with asyncio.timeout(OPENING):
                response = await self._send(Verb.WATCH, "GET", query, None)
                if isinstance(response, Unreachable):
                    return response
                if isinstance(response, aiohttp.ClientResponse) and response.status == HTTPStatus.OK:
                    return KubernetesWatch(response, self._name)
                answer = await _whole(response) if isinstance(response, aiohttp.ClientResponse) else response
        except TimeoutError:
            return Unreachable(f"{self._what(Verb.WATCH)}: no answer within {OPENING:g} s", _HINT_AWAY)
        except _FAILURES as error:
            return self._broken(Verb.WATCH, error)
        return Expired() if answer.status == HTTPStatus.GONE else self._refusal(Verb.WATCH, answer)

    async def patch(
        self, since: str, data: Mapping[str, str], annotations: Mapping[str, str | None], deadline: float
    ) -> PatchAnswer:
        """Write if nobody else did since `since`; see `ConfigMapApi.patch`."""
        body: dict[str, Any] = {"metadata": {"resourceVersion": since}, "data": data}
        if annotations:
            body["metadata"]["annotations"] = annotations
        path = f"/{quote(self._name, safe='')}?fieldManager={MANAGER}"
        answer = await self._ask(Verb.PATCH, "PATCH", path, msgspec.json.encode(body), deadline)
        if isinstance(answer, Unreachable):
            return answer
        match answer.status:
            case HTTPStatus.OK:
                made = objects.config_map(answer.body)
                return self._wrong(Verb.PATCH, made.detail) if isinstance(made, Malformed) else Patched(made)
            case HTTPStatus.CONFLICT:
                return Conflict(objects.status(answer.body).message)
            case HTTPStatus.NOT_FOUND:
                return Missing(objects.status(answer.body).message)
            case HTTPStatus.BAD_REQUEST | HTTPStatus.REQUEST_ENTITY_TOO_LARGE | HTTPStatus.UNPROCESSABLE_ENTITY:
                return Rejected(answer.status, objects.status(answer.body).message)
            case _:
                return self._refusal(Verb.PATCH, answer)

    def _selected(self, **more: str) -> str:
        # RBAC by `resourceNames` allows list and watch with this selector alone.
        return "?" + urlencode({"fieldSelector": f"metadata.name={self._name}", **more})

    def _what(self, verb: Verb) -> str:
        return f"{verb} ConfigMap {self._name} at {self._cluster.url}"

    async def _ask(
        self, verb: Verb, method: str, path: str, body: bytes | None, deadline: float
    ) -> _Answer | Unreachable:
        try:
            async with asyncio.timeout(deadline):
                response = await self._send(verb, method, path, body)
                return await _whole(response) if isinstance(response, aiohttp.ClientResponse) else response
        except TimeoutError:
            return Unreachable(f"{self._what(verb)}: no answer within {deadline:g} s", _HINT_AWAY)
        except _FAILURES as error:
            return self._broken(verb, error)

    async def _send(
        self, verb: Verb, method: str, path: str, body: bytes | None
    ) -> aiohttp.ClientResponse | _Answer | Unreachable:
        """The beginning of an answer, which the caller reads or closes, or a whole one."""
        credentials = await self._credentials(verb)
        if not isinstance(credentials, Credentials):
            return credentials
        response = await self._request(credentials, method, path, body)
        if response.status != HTTPStatus.UNAUTHORIZED:
            return response
        answer = await _whole(response)
        # The kubelet may have replaced the token between our reading and the answer.
        later = await self._credentials(verb)
        if not isinstance(later, Credentials) or later.token == credentials.token:
            return answer
        return await self._request(later, method, path, body)

    async def _request(
        self, credentials: Credentials, method: str, path: str, body: bytes | None
    ) -> aiohttp.ClientResponse:
        headers = {"Authorization": f"Bearer {credentials.token}"}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        namespace = quote(credentials.namespace, safe="")
        return await self._session.request(
            method,
            f"{self._cluster.url}/api/v1/namespaces/{namespace}/configmaps{path}",
            # A stream, since bytes above 1 MiB would be sent in one piece.
            data=None if body is None else io.BytesIO(body),
            headers=headers,
            ssl=self._context(credentials.ca) or True,
            allow_redirects=False,
        )

    async def _credentials(self, verb: Verb) -> Credentials | Unreachable:
        try:
            return await self._offload(lambda: read_credentials(self._cluster))
        except TimeoutError:
            why = "reading them takes too long"
        except (OSError, ValueError) as error:
            why = str(error)
        hint = "project a service account's token, ca.crt and namespace into the sidecar's container"
        return Unreachable(f"{self._what(verb)}: cannot read the credentials: {why}", hint, sent=False)

    def _context(self, ca: str) -> ssl.SSLContext | None:
        """How the API server is verified; made again when the CA's file has another content. Raises `ssl.SSLError`."""
        if not ca:
            return None
        if self._tls is None or self._tls[0] != ca:
            self._tls = ca, ssl.create_default_context(cadata=ca)
        return self._tls[1]

    def _refusal(self, verb: Verb, answer: _Answer) -> Denied | Unreachable:
        said = objects.status(answer.body)
        detail = f"{self._what(verb)}: {answer.status} {said.message}".rstrip()
        match answer.status:
            case HTTPStatus.UNAUTHORIZED:
                return Denied(verb, answer.status, detail, "is the projected token of this cluster, and not expired?")
            case HTTPStatus.FORBIDDEN:
                hint = f"give the pod's ServiceAccount a Role with the verb {verb} on this ConfigMap (resourceNames)"
                return Denied(verb, answer.status, detail, hint)
            case status if status in _OVERLOADED or answer.retry_after is not None or said.retry_after is not None:
                return Unreachable(detail, "the API server is overloaded", _seconds(answer.retry_after, said))
            case _:
                return Unreachable(detail, "is this the cluster's API server?" if not said.code else "")

    def _wrong(self, verb: Verb, detail: str) -> Unreachable:
        return Unreachable(f"{self._what(verb)}: the answer is not usable: {detail}", "is this the API server?")

    def _broken(self, verb: Verb, error: Exception) -> Unreachable:
        detail, sent, hint = printable(str(error)) or type(error).__name__, True, _HINT_AWAY
        match error:
            case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError() | ssl.SSLError():
                sent, hint = False, "ca.crt must hold the CA of the API server's certificate"
            case aiohttp.ClientConnectorError():
                detail = f"cannot connect: {error.os_error.strerror or error.os_error}"
                sent, hint = False, "is egress to the API server allowed (NetworkPolicy)? is it up?"
            case aiohttp.ServerDisconnectedError():
                detail = "the connection was closed without an answer"
            case _:
                pass
        return Unreachable(f"{self._what(verb)}: {detail}", hint, sent=sent)


_HINT_AWAY: Final = "what was loaded stays loaded; it is tried again"
_FAILURES: Final = (aiohttp.ClientError, OSError, ValueError)


async def _whole(response: aiohttp.ClientResponse) -> _Answer:
    """Read an answer to its end. Raises `ValueError` where it is too large, and what the network raises."""
    async with response:
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            chunks.append(chunk)
            size += len(chunk)
            if size > LINE_CAP:
                response.close()
                raise ValueError(f"the answer has more than {LINE_CAP} bytes")
        return _Answer(response.status, b"".join(chunks), response.headers.get("Retry-After"))


def _seconds(header: str | None, said: Status) -> float | None:
    if header is not None and header.strip().isascii() and header.strip().isdigit():
        return float(header[:9])
    return said.retry_after


def _kept_alive(to: AddrInfoType) -> socket.socket:
    """A socket on which the kernel notices a peer that is gone, about a minute after its last word."""
    family, kind, protocol, _, _ = to
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        # Linux has all three; elsewhere the bookmarks alone tell.
        if (number := getattr(socket, option, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, number, seconds)
    return made
