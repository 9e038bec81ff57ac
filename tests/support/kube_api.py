"""A Kubernetes API server under test: the fake in this process, or a real kube-apiserver with etcd beside it.

The trap guarded against is the orphan: each process of a real one has a session of its own, is killed at the end, and
at the latest when the interpreter exits. A real one is there where `LORA_SIDECAR_KUBE_APISERVER` names the folder that
`scripts/kube-apiserver.sh build` made.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import json
import os
import signal
import ssl
import subprocess
import time
import weakref
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import trustme

from tests.fakes.kube_api.server import ADMIN_TOKEN, FakeKubeApi

VARIABLE = "LORA_SIDECAR_KUBE_APISERVER"
NAMESPACE = "/api/v1/namespaces/default"
ISSUER = "https://kubernetes.default.svc"
SCRIPT = Path(__file__).parents[2] / "scripts/kube-apiserver.sh"
VERBS = ("get", "list", "watch", "patch")

_LEEWAY = 60.0
_STARTED_WITHIN = 60.0


class Kind(StrEnum):
    """Which API server is under test."""

    FAKE = "fake"
    REAL = "real"


def real_folder() -> Path | None:
    """The build of a real kube-apiserver that the tests were given, or None."""
    given = os.environ.get(VARIABLE)
    return Path(given) if given else None


def available_kinds() -> tuple[Kind, ...]:
    """The fake always, and the real one where its build was given."""
    return (Kind.FAKE, Kind.REAL) if real_folder() else (Kind.FAKE,)


class KubeApi(Protocol):
    """What a test may do to an API server, whichever it is.

    Seconds: within `bookmark_within` comes at least one bookmark; within `expired_after` a token is refused that was
    issued for no time; within `terminated_within` the process has ended after SIGTERM. `ca` is the PEM of its CA.
    """

    url: str
    ca: str
    admin_token: str
    bookmark_within: float
    expired_after: float
    terminated_within: float

    async def start(self) -> None:
        """Start it, at the same address as before, and wait until it answers."""

    async def stop(self) -> None:
        """End it for good."""

    async def kill(self) -> None:
        """SIGKILL."""

    async def terminate(self) -> None:
        """SIGTERM; returns at once."""

    def pause(self) -> None:
        """SIGSTOP."""

    def resume(self) -> None:
        """SIGCONT."""

    async def forget(self) -> None:
        """Have it forget all but the newest version."""

    async def token(self, user: str, seconds: float = 3600.0) -> str:
        """A token of a service account, made where there is none of that name."""

    async def grant(self, user: str, name: str) -> None:
        """Bind a Role with `VERBS` on the one ConfigMap."""

    async def revoke(self, user: str) -> None:
        """Take the RoleBinding away."""


class FakeKube:
    """The fake, with a certificate."""

    bookmark_within = 2.0
    expired_after = 0.2
    terminated_within = 2.0

    def __init__(self) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self.server = FakeKubeApi(tls=context, bookmark_every=0.5)
        self.ca = authority.cert_pem.bytes().decode()
        self.admin_token = ADMIN_TOKEN
        self.url = ""
        self._issued = 0
        self._ending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """As `KubeApi`."""
        if self._ending is not None:
            await self._ending
            self._ending = None
        await self.server.start()
        self.url = self.server.url

    async def stop(self) -> None:
        """As `KubeApi`."""
        self.server.resume()
        await self.server.kill()

    async def kill(self) -> None:
        """As `KubeApi`."""
        await self.server.kill()

    async def terminate(self) -> None:
        """As `KubeApi`."""
        await self.server.refuse()
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        await asyncio.sleep(0.3)
        await self.server.kill()

    def pause(self) -> None:
        """As `KubeApi`."""
        self.server.pause()

    def resume(self) -> None:
        """As `KubeApi`."""
        self.server.resume()

    async def forget(self) -> None:
        """As `KubeApi`."""
        self.server.store.forget()

    async def token(self, user: str, seconds: float = 3600.0) -> str:
        """As `KubeApi`."""
        self._issued += 1
        token = f"token-{self._issued}"
        self.server.access.issue(token, user, seconds or self.expired_after / 2)
        return token

    async def grant(self, user: str, name: str) -> None:
        """As `KubeApi`."""
        self.server.access.grant(user, name, VERBS)

    async def revoke(self, user: str) -> None:
        """As `KubeApi`."""
        self.server.access.revoke(user)


class RealKube:
    """A real kube-apiserver, with its state in a folder."""

    bookmark_within = 75.0
    # A success is remembered for 10 s; what a token is issued for beyond its leeway comes on top.
    expired_after = 16.0
    terminated_within = 80.0

    def __init__(self, build: Path, state: Path) -> None:
        subprocess.run([SCRIPT, "prepare", build, state], check=True, timeout=30)
        self._state = state
        self._etcd: subprocess.Popen[bytes] | None = None
        self._api: subprocess.Popen[bytes] | None = None
        self.url = (state / "url").read_text().strip()
        self.ca = (state / "ca.crt").read_text()
        self.admin_token = (state / "admin-token").read_text().strip()
        self.kubeconfig = state / "kubeconfig"
        self._context = ssl.create_default_context(cadata=self.ca)
        _alive.add(self)

    async def start(self) -> None:
        """As `KubeApi`."""
        if self._etcd is None:
            self._etcd = self._run("etcd")
        if self._api is not None:
            await asyncio.to_thread(self._api.wait)
        self._api = self._run("kube-apiserver")
        async with asyncio.timeout(_STARTED_WITHIN):
            while not await self._is_ready():
                if self._api.poll() is not None:
                    raise RuntimeError(f"kube-apiserver ended: see {self._state}/kube-apiserver.log")
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """As `KubeApi`."""
        self.end()

    async def kill(self) -> None:
        """As `KubeApi`."""
        self._signal(signal.SIGKILL)
        if self._api is not None:
            await asyncio.to_thread(self._api.wait)

    async def terminate(self) -> None:
        """As `KubeApi`."""
        self._signal(signal.SIGTERM)

    def pause(self) -> None:
        """As `KubeApi`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """As `KubeApi`."""
        self._signal(signal.SIGCONT)

    async def forget(self) -> None:
        """As `KubeApi`: the watch cache of a server that starts knows nothing from before."""
        await self.kill()
        await self.start()

    async def token(self, user: str, seconds: float = 3600.0) -> str:
        """As `KubeApi`; signed here, since the API server issues none for less than ten minutes."""
        await self._make(f"{NAMESPACE}/serviceaccounts", {"metadata": {"name": user}})
        uid = (await self._ask("GET", f"{NAMESPACE}/serviceaccounts/{user}"))["metadata"]["uid"]
        now = int(time.time())  # noqa: TID251 - a token's times are of the wall
        claims = {
            "iss": ISSUER,
            "aud": [ISSUER],
            "sub": f"system:serviceaccount:default:{user}",
            "iat": now - 3600,
            "nbf": now - 3600,
            "exp": now + int(seconds or 4 - _LEEWAY),
            "kubernetes.io": {"namespace": "default", "serviceaccount": {"name": user, "uid": uid}},
        }
        signed = ".".join(_base64(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims))
        openssl = ("openssl", "dgst", "-sha256", "-sign", str(self._state / "sa.key"))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*openssl, stdin=pipe, stdout=pipe)
        signature, _ = await process.communicate(signed.encode())
        return f"{signed}.{_base64(signature)}"

    async def grant(self, user: str, name: str) -> None:
        """As `KubeApi`."""
        rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
        rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [name], "verbs": list(VERBS)}
        await self._make(f"{rbac}/roles", {"metadata": {"name": user}, "rules": [rule]})
        binding = {
            "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user},
            "subjects": [{"kind": "ServiceAccount", "name": user, "namespace": "default"}],
        }
        await self._make(f"{rbac}/rolebindings", binding)

    async def revoke(self, user: str) -> None:
        """As `KubeApi`."""
        await self._ask("DELETE", f"/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings/{user}")

    def end(self) -> None:
        """Kill both processes."""
        for process in (self._api, self._etcd):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        self._api = self._etcd = None

    def _run(self, what: str) -> subprocess.Popen[bytes]:
        with (self._state / f"{what}.log").open("ab") as log:
            return subprocess.Popen([self._state / f"run-{what}"], stdout=log, stderr=log, start_new_session=True)

    def _signal(self, number: int) -> None:
        if self._api is not None:
            self._api.send_signal(number)

    async def _is_ready(self) -> bool:
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(5):
                # The namespace is made a moment after the server says that it is ready.
                return (await self._ask("GET", NAMESPACE)).get("kind") == "Namespace"
        return False

    async def _make(self, path: str, body: dict[str, Any]) -> None:
        await self._ask("POST", path, body)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.admin_token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, f"{self.url}{path}", json=body, ssl=self._context) as response,
        ):
            answer: dict[str, Any] = await response.json()
            return answer


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


_alive: weakref.WeakSet[RealKube] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for kube in list(_alive):
        kube.end()
