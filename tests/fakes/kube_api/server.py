"""The HTTP face of the fake: lists, watches with bookmarks, merge patches, and the ways in which a real one fails."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from contextlib import suppress
from typing import Any, Self

from aiohttp import web
from msgspec import Struct

from tests.fakes.kube_api.access import ADMIN_TOKEN, Access
from tests.fakes.kube_api.store import BODY_LIMIT, ApiError, Object, Store

LISTED = "/api/v1/namespaces/default/configmaps"
_SELECTOR = "metadata.name="


class Asked(Struct, frozen=True):
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    token: str
    headers: dict[str, str]
    body: bytes = b""


class Canned(Struct, frozen=True):
    """An answer that stands in for the real one, once."""

    status: int
    body: bytes = b"{}"
    headers: dict[str, str] = {}
    verb: str | None = None
    """Only for this verb, None for any."""


class FakeKubeApi:
    """One API server on loopback; used as `async with`. Times are of the loop's clock.

    `canned` are answers to give first. `expires_by_status` has a forgotten version answered with HTTP 410, not with an
    event of the watch. `answers_lost` is how many writes are done and their connection then cut. `bookmark_every` and
    `latency` are in seconds.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, bookmark_every: float = 60.0) -> None:
        self.store = Store()
        self.access = Access(lambda: asyncio.get_running_loop().time())
        self.asked: list[Asked] = []
        self.canned: deque[Canned] = deque()
        self.expires_by_status = False
        self.answers_lost = 0
        self.bookmark_every = bookmark_every
        self.latency = 0.0
        self.watches = 0
        self.port = 0
        self._tls = tls
        self._awake = asyncio.Event()
        self._awake.set()
        self._round = 0
        self._changed: set[asyncio.Event] = set()
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._open: set[asyncio.Transport] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.resume()
        await self.kill()

    async def start(self) -> None:
        """Listen, at the same port as before."""
        app = web.Application(client_max_size=2 * BODY_LIMIT)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # A cancelled handler must not wait for the connection that ended it.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls, reuse_address=True)
        await self._site.start()
        self.port = int(self._runner.addresses[0][1])

    async def kill(self) -> None:
        """SIGKILL: every connection is cut, and new ones are refused."""
        self.cut_watches()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def refuse(self) -> None:
        """What SIGTERM begins with: new connections are refused, and open watches go on."""
        if self._site is not None:
            await self._site.stop()

    def cut_watches(self) -> None:
        """Cut the connections of open watches in the middle of their answers."""
        for transport in list(self._open):
            transport.abort()

    def end_watches(self) -> None:
        """End open watches as their time being up does."""
        self._round += 1
        for changed in self._changed:
            changed.set()

    def pause(self) -> None:
        """SIGSTOP: connections are taken by the kernel, and nothing is answered."""
        self._awake.clear()

    def resume(self) -> None:
        """SIGCONT."""
        self._awake.set()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        await self._awake.wait()
        body = await request.read()
        authorization = request.headers.get("Authorization", "")
        self.asked.append(
            Asked(
                request.method,
                request.path,
                dict(request.query),
                authorization.removeprefix("Bearer "),
                dict(request.headers),
                body,
            )
        )
        if self.latency:
            await asyncio.sleep(self.latency)
        verb, resource, name = _meant(request)
        for canned in self.canned:
            if canned.verb in {None, verb}:
                self.canned.remove(canned)
                return web.Response(status=canned.status, body=canned.body, headers=canned.headers)
        try:
            if request.path == "/readyz":
                return web.Response(text="ok")
            self.access.check(authorization, verb, resource, name)
            if verb == "watch":
                return await self._watch(request, name)
            answer = self._answer(verb, name, body, request)
        except ApiError as error:
            return _json(error.status(), error.code)
        if request.method in {"PATCH", "PUT", "POST"} and self.answers_lost:
            self.answers_lost -= 1
            if request.transport is not None:
                request.transport.abort()
        return _json(answer, 201 if verb == "create" else 200)

    def _answer(self, verb: str, name: str | None, body: bytes, request: web.Request) -> Object:
        if len(body) > BODY_LIMIT:
            raise ApiError(413, "RequestEntityTooLarge", f"limit is {BODY_LIMIT}")
        manager = request.query.get("fieldManager") or request.headers.get("User-Agent", "unknown").partition("/")[0]
        match verb, name:
            case _ if "/configmaps" not in request.path:
                raise ApiError(404, "NotFound", "the server could not find the requested resource")
            case "list", _:
                head = {"resourceVersion": str(self.store.version)}
                return {
                    "kind": "ConfigMapList",
                    "apiVersion": "v1",
                    "metadata": head,
                    "items": self.store.items(name),
                }
            case "create", None:
                made = json.loads(body)
                return self.store.create(made["metadata"]["name"], made.get("data"), manager)
            case "get", str():
                return self.store.get(name)
            case "patch", str():
                if request.content_type != "application/merge-patch+json":
                    raise ApiError(415, "UnsupportedMediaType", "only merge patches are known here")
                return self.store.patch(name, json.loads(body), manager)
            case "update", str():
                return self.store.replace(name, json.loads(body), manager)
            case "delete", str():
                return self.store.delete(name)
            case _:
                raise ApiError(
                    405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
                )

    async def _watch(self, request: web.Request, name: str | None) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        expired = ApiError(410, "Expired", f"too old resource version: {since} ({self.store.forgotten})")
        is_forgotten = bool(since) and since < self.store.forgotten
        if is_forgotten and self.expires_by_status:
            raise expired
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if is_forgotten:
            await response.write(_line("ERROR", expired.status()))
            return response
        transport = request.transport
        if transport is None:
            return response
        self._open.add(transport)
        self.watches += 1
        try:
            await self._tell(request, response, name, since)
        finally:
            self._open.discard(transport)
        return response

    async def _tell(self, request: web.Request, response: web.StreamResponse, name: str | None, since: int) -> None:
        loop = asyncio.get_running_loop()
        changed, round_ = asyncio.Event(), self._round
        self._changed.add(changed)
        self.store.on_change.append(changed.set)
        until = loop.time() + float(request.query.get("timeoutSeconds", "1800"))
        bookmarks = request.query.get("allowWatchBookmarks") in {"true", "1"}
        bookmark_at = loop.time() + self.bookmark_every
        told = since
        try:
            if not since:
                for found in self.store.items(name):
                    await response.write(_line("ADDED", found))
                told = self.store.version
            while loop.time() < until and self._round == round_:
                changed.clear()
                await self._awake.wait()
                for happened in [one for one in self.store.past if one.version > told]:
                    told = happened.version
                    if name in {None, happened.object["metadata"]["name"]}:
                        await response.write(_line(happened.type, happened.object))
                if loop.time() >= bookmark_at:
                    bookmark_at = loop.time() + self.bookmark_every
                    # Who is ahead of the store hears nothing at all (kubernetes#107457).
                    if bookmarks and told <= self.store.version:
                        await response.write(_line("BOOKMARK", _bookmark(self.store.version)))
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(bookmark_at, until)):
                        await changed.wait()
        finally:
            self._changed.discard(changed)
            self.store.on_change.remove(changed.set)


def _bookmark(version: int) -> Object:
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    return {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata}


def _meant(request: web.Request) -> tuple[str, str, str | None]:
    """The verb, the resource and the name that a request is about, as RBAC sees it."""
    _, _, rest = request.path.partition("/namespaces/default/")
    resource, _, name = rest.partition("/")
    if name:
        verbs = {"GET": "get", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
        return verbs.get(request.method, "?"), resource, name
    if request.method == "POST":
        return "create", resource, None
    selector = request.query.get("fieldSelector", "")
    verb = "watch" if request.query.get("watch") in {"true", "1"} else "list"
    return verb, resource, selector.removeprefix(_SELECTOR) if selector.startswith(_SELECTOR) else None


def _json(body: Any, status: int) -> web.Response:
    return web.json_response(body, status=status)


def _line(kind: str, what: Object) -> bytes:
    return json.dumps({"type": kind, "object": what}).encode() + b"\n"


__all__ = ["ADMIN_TOKEN", "LISTED", "Asked", "Canned", "FakeKubeApi"]
