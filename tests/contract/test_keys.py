from __future__ import annotations

import pytest

from tests.contract.asking import LOAD
from tests.contract.conftest import KEY, Folders, NewApi
from tests.support.servers import RunningServer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(900)]


@pytest.mark.parametrize("key", [None, "wrong", ""])
async def test_guarded_paths_without_the_key(guarded: RunningServer, new_api: NewApi, key: str | None) -> None:
    """Without the right key all that lies under /v1 answers 401 with an error that is a string."""
    api = new_api(guarded, key)
    replies = [
        await api.get("/v1/models"),
        await api.load("x", "/x"),
        await api.unload("x"),
        await api.complete("base"),
        await api.get("/v1/no-such-route"),
    ]
    for reply in replies:
        assert (reply.status, reply.json()) == (401, {"error": "Unauthorized"})
        assert "www-authenticate" not in reply.headers


async def test_open_paths_of_a_guarded_server(guarded: RunningServer, new_api: NewApi) -> None:
    """Health, version and metrics need no key."""
    api = new_api(guarded)
    statuses = [(await api.quiet.get(path)).status for path in ("/health", "/version", "/metrics", "/ping", "/load")]
    assert statuses == [200] * 5


async def test_key_opens_the_guarded_paths(guarded: RunningServer, new_api: NewApi) -> None:
    """The right key opens the listing; the case of the scheme counts in no version."""
    api = new_api(guarded)
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert (await api.ask("GET", "/v1/models", headers={"Authorization": f"{scheme} {KEY}"})).status == 200
    for wrong in (KEY, f"Basic {KEY}", f"Bearer  {KEY}"):
        assert (await api.ask("GET", "/v1/models", headers={"Authorization": wrong})).status == 401


async def test_routes_are_absent_without_runtime_loading(guarded: RunningServer, new_api: NewApi) -> None:
    """Without runtime loading the two routes are unknown paths, in the framework's frame."""
    api = new_api(guarded, KEY)
    for reply in (await api.load("x", "/x"), await api.unload("x"), await api.get(LOAD)):
        assert (reply.status, reply.json()) == (404, {"detail": "Not Found"})


async def test_static_adapter_is_listed_from_the_start(
    guarded: RunningServer, new_api: NewApi, folders: Folders
) -> None:
    """An adapter of --lora-modules looks like any other in the listing, also without runtime loading."""
    assert (await new_api(guarded, KEY).listed()) == {"static": str(folders.whole)}
