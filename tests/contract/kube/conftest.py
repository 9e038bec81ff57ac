"""Starts the API servers under contract: the fake, and a real one where it was built."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
import pytest_asyncio

from tests.contract.kube.calling import CONFIG_MAPS, Caller, until
from tests.support.kube_api import FakeKube, Kind, KubeApi, RealKube, available_kinds, real_folder

# Without a real one its half of the suite does not exist, rather than being skipped.
KINDS = [
    pytest.param(kind, id=kind.value, marks=[pytest.mark.kube] if kind is Kind.REAL else [])
    for kind in available_kinds()
]


@pytest.fixture(scope="session", params=KINDS)
def kube_kind(request: pytest.FixtureRequest) -> Kind:
    """Which API server is under contract."""
    kind: Kind = request.param
    return kind


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def kube(kube_kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KubeApi]:
    """The API server, running."""
    folder = real_folder()
    started: KubeApi
    if kube_kind is Kind.REAL and folder is not None:
        started = RealKube(folder, tmp_path_factory.mktemp("kube") / "state")
    else:
        started = FakeKube()
    try:
        await started.start()
        yield started
    finally:
        await started.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that keeps no connection."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        yield session


@pytest.fixture(scope="session")
def admin(kube: KubeApi, http: aiohttp.ClientSession) -> Caller:
    """Somebody who may do everything."""
    return Caller(http, kube, kube.admin_token)


@pytest.fixture(scope="session")
def counter() -> Iterator[int]:
    """Numbers that make names unique."""
    return itertools.count()


@pytest.fixture
def fleet(counter: Iterator[int]) -> str:
    """The name of a ConfigMap that no other test uses, and of a service account."""
    return f"lora-sidecar-fleet-{next(counter)}"


@pytest_asyncio.fixture(loop_scope="session")
async def pod(kube: KubeApi, admin: Caller, fleet: str, http: aiohttp.ClientSession) -> Caller:
    """A pod's service account with a Role on the ConfigMap, which is there."""
    assert (await admin.create(fleet)).status == 201
    await kube.grant(fleet, fleet)
    caller = Caller(http, kube, await kube.token(fleet))
    # A RoleBinding takes a moment to reach the authorizer.
    await until(200, lambda: caller.ask("GET", f"{CONFIG_MAPS}/{fleet}"))
    return caller
