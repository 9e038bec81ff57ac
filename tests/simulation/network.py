"""The simulated network between the sidecar and the server: the client's own transport without its sockets.

The trap guarded against is a fault that the world invents. Each fault here gives the client what the real transport
makes of that fault on a real socket, which `tests/faults` proves; deadlines and retries are the real transport's own.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from random import Random

from msgspec import Struct

from lora_sidecar.config.inventory import ServerConfig
from lora_sidecar.core.observation import Reason
from lora_sidecar.engines.connection import LivenessConnection
from lora_sidecar.engines.http import Reply, RequestError, Transport
from tests.simulation.server import LOAD, Server


class Toxic(StrEnum):
    """What the network or a server in the server's place does to an answer."""

    REFUSED = "refused"
    RESET = "reset"
    HANGS = "hangs"
    SLOW = "slow"
    SERVER_ERROR = "server error"
    BUSY = "too many requests"
    UNAUTHORIZED = "unauthorized"
    HTML = "an HTML page"
    REDIRECT = "redirect"
    GARBAGE = "garbage"
    CUT_SHORT = "cut short"
    EMPTY_LIST = "empty list"
    NOT_HTTP = "another protocol"
    TOO_LARGE = "endless body"
    NO_DESCRIPTORS = "no file descriptors"
    SCALING = "scaling"


_CANNED: dict[Toxic, Reply | RequestError] = {
    Toxic.REFUSED: RequestError(Reason.REFUSED, "cannot connect: Connection refused", sent=False),
    Toxic.SERVER_ERROR: Reply(500, b"Internal Server Error"),
    Toxic.BUSY: Reply(429, b"slow down"),
    Toxic.UNAUTHORIZED: Reply(401, b'{"error":"Unauthorized"}'),
    Toxic.HTML: Reply(200, b"<html><body>Welcome to nginx!</body></html>"),
    Toxic.REDIRECT: Reply(302, b""),
    Toxic.GARBAGE: Reply(200, bytes(range(256))),
    Toxic.EMPTY_LIST: Reply(200, b'{"object":"list","data":[]}'),
    Toxic.NOT_HTTP: RequestError(Reason.WRONG_SERVER, "the answer is not HTTP: bad status line", sent=True),
    Toxic.TOO_LARGE: RequestError(Reason.TOO_LARGE, "the body is larger than 16777216 bytes", sent=True),
    Toxic.NO_DESCRIPTORS: RequestError(Reason.LOCAL, "Too many open files", sent=False),
    Toxic.SCALING: Reply(503, b'{"error":"The model is currently scaling. Please try again later."}'),
}

_RESET = RequestError(Reason.RESET, "the server closed the connection without an answer", sent=True)
_REFUSALS = (
    (404, b'{"error":{"message":"Loading lora x failed: No adapter found for /x","type":"NotFoundError","code":404}}'),
    (500, b'{"error":{"message":"LoRA rank 64 is greater than max_lora_rank 16.","code":500}}'),
    (500, b'{"error":{"message":"something nobody has seen before","code":500}}'),
    (500, b'{"error":{"message":"EngineCore encountered an issue.","code":500}}'),
    (500, b'{"error":{"message":"Server shutting down","code":500}}'),
    (200, b"Success"),
)
"""Answers to a load that is not carried out; the last is a lie."""


class Rule(Struct):
    """A fault on the requests to some paths, for a number of requests and until a time."""

    toxic: Toxic
    paths: tuple[str, ...]
    left: int
    until: float
    seconds: float = 0.0


class Network:
    """The way from the sidecar to the server, with the faults that are in force on it."""

    def __init__(self, server: Server, rng: Random) -> None:
        self.server = server
        self.rules: list[Rule] = []
        self.sending: int = 0
        self._sleep_asked: deque[tuple[float, float]] = deque(maxlen=64)
        self.quiet_at = float("-inf")
        self.busy_since = float("inf")
        self.received: Callable[[str, str, bytes | None], None] = lambda *_: None
        self._rng = rng

    def transport(self, server: ServerConfig) -> Transport:
        """A client's transport over this network."""
        del server
        return _InMemory(self)

    def sentinel(self, url: str, context: ssl.SSLContext | None) -> LivenessConnection:
        """A client's silent connection over this network."""
        sentinel = _InMemoryConnection(url, context)
        sentinel.network = self
        return sentinel

    def _rule(self, path: str, now: float) -> Rule | None:
        self.rules = [rule for rule in self.rules if rule.left > 0 and now < rule.until]
        for rule in self.rules:
            if path in rule.paths:
                rule.left -= 1
                return rule
        return None

    def told_awake(self, slept_at: float, since: float) -> bool:
        """Whether an answer that came after `since` was to a question from before the engine slept.

        Loads ask side by side: what one of them heard does not call back another that is on its way.
        """
        return any(asked_at < slept_at and told_at >= since for asked_at, told_at in self._sleep_asked)

    async def exchange(self, method: str, path: str, body: bytes | None) -> Reply | RequestError:
        """Carry one request to the server and its answer back."""
        await asyncio.sleep(self._rng.uniform(0.0001, 0.002))
        now = asyncio.get_running_loop().time()
        rule = self._rule(path, now)
        if rule is not None and rule.toxic in (Toxic.REFUSED, Toxic.NO_DESCRIPTORS):
            return _CANNED[rule.toxic]
        if not self.server.listening:
            return _CANNED[Toxic.REFUSED]
        if rule is None:
            return await self._asked(method, path, body)
        if method == "POST":
            return await self._load_under(rule, path, body)
        return await self._get_under(rule, path)

    async def _asked(self, method: str, path: str, body: bytes | None) -> Reply | RequestError:
        self.received(method, path, body)
        asks_for_sleep = path in ("/is_sleeping", "/metrics")
        asked_at = asyncio.get_running_loop().time()
        quiet = self.server.life is not None and not self.server.life.routes.engine.requests
        reply = await self.server.answer(method, path, body)
        if path == "/metrics" and reply is not None:
            now = asyncio.get_running_loop().time()
            self.quiet_at = asked_at if quiet else self.quiet_at
            self.busy_since = float("inf") if quiet else min(self.busy_since, now)
        if asks_for_sleep and reply is not None:
            self._sleep_asked.append((asked_at, asyncio.get_running_loop().time()))
        return _RESET if reply is None else reply

    async def _get_under(self, rule: Rule, path: str) -> Reply | RequestError:
        match rule.toxic:
            case Toxic.RESET:
                return _RESET
            case Toxic.HANGS:
                await asyncio.Event().wait()
            case Toxic.SLOW:
                reply = await self._asked("GET", path, None)
                await asyncio.sleep(rule.seconds)
                return reply
            case Toxic.CUT_SHORT:
                reply = await self._asked("GET", path, None)
                return Reply(reply.status, reply.body[: len(reply.body) // 2]) if isinstance(reply, Reply) else reply
            case _:
                pass
        return _CANNED[rule.toxic]

    async def _load_under(self, rule: Rule, path: str, body: bytes | None) -> Reply | RequestError:
        """A load under a fault: it may take effect or not, whatever is answered to it."""
        takes_effect = self._rng.random() < 0.5
        if rule.toxic is Toxic.HANGS or rule.toxic is Toxic.RESET:
            if takes_effect:
                self.received("POST", path, body)
                work = asyncio.ensure_future(self.server.answer("POST", path, body))
                self.server.spawn(_wait(work))
            if rule.toxic is Toxic.HANGS:
                await asyncio.Event().wait()
            return _RESET
        if rule.toxic is Toxic.SLOW:
            reply = await self._asked("POST", path, body)
            await asyncio.sleep(rule.seconds)
            return reply
        if takes_effect:
            reply = await self._asked("POST", path, body)
        if rule.toxic in (Toxic.GARBAGE, Toxic.CUT_SHORT, Toxic.SERVER_ERROR, Toxic.EMPTY_LIST, Toxic.HTML):
            return Reply(*self._rng.choice(_REFUSALS))
        return _CANNED[rule.toxic]


async def _wait(work: asyncio.Future[Reply | None]) -> None:
    await asyncio.wait({work})


class _InMemory(Transport):
    """The real transport, whose single exchange goes through the simulated network."""

    def __init__(self, network: Network) -> None:
        # Without the session of the real one: it would open sockets.
        self._network = network
        self.context = None
        self._key_file = None
        self.retries = 0

    async def close(self) -> None:
        """Nothing is held."""

    async def _exchange(self, method: str, path: str, body: bytes | None) -> Reply | RequestError:
        if (method, path) != ("POST", LOAD):
            return await self._network.exchange(method, path, body)
        self._network.sending += 1
        try:
            return await self._network.exchange(method, path, body)
        finally:
            self._network.sending -= 1


class _Line(asyncio.WriteTransport):
    """A connection on which nothing is sent: it ends with the life that accepted it, or with ours."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._ended = False

    def get_protocol(self) -> asyncio.BaseProtocol:
        """See `asyncio.BaseTransport`."""
        return self._protocol

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self._ended

    def abort(self) -> None:
        """See `asyncio.WriteTransport`."""
        if not self._ended:
            self._ended = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    close = abort


class _InMemoryConnection(LivenessConnection):
    """The real sentinel, whose connection goes through the simulated network."""

    network: Network

    async def _connect(self) -> asyncio.BaseTransport:
        await asyncio.sleep(0.001)
        server = self.network.server
        if not server.listening or server.life is None:
            raise ConnectionRefusedError
        line = _Line(self._protocol())
        server.life.lines.append(line.abort)
        return line


ALL_PATHS = ("/health", "/v1/models", "/metrics", "/is_sleeping", LOAD)
