"""A web page that somebody has open beside the cluster reaches loopback ports too: the control port lets none in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.http_client import Api
from tests.unit.api_control.conftest import Guarded, guarding

EVERYTHING: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v1/load_lora_adapter", {"lora_name": "chat", "lora_path": "/a"}),
    ("POST", "/v1/unload_lora_adapter", {"lora_name": "kept"}),
    ("POST", "/v1/resume", {}),
    ("GET", "/v1/adapters", None),
    ("GET", "/v1/pause", None),
]


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:9401", "null"])
async def test_what_a_web_page_sends_changes_and_tells_nothing(api: Api, guarded: Guarded, origin: str) -> None:
    """A browser says that a page sends: 403 for each route, and the pause holds that the page wants to lift."""
    assert (await api.ask("POST", "/v1/pause", body={"reason": "moving the disk"})).status == 200
    for method, path, body in EVERYTHING:
        reply = await api.ask(method, path, body=body, headers={"Origin": origin})
        error = reply.json()["error"]
        assert (reply.status, error["type"], error["code"]) == (403, "Forbidden", 403), path
        assert "moving" not in reply.text
    assert (await api.get("/v1/pause")).json()["servers"][0]["paused"] is True
    assert guarded.desired() == {}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9401", "127.0.0.1.evil.example", "10.0.0.7:9401", "[", "::"]
)
async def test_page_whose_name_leads_here_is_refused(api: Api, guarded: Guarded, host: str) -> None:
    """Its requests have no foreign origin, but a name that is not ours (DNS rebinding)."""
    for method, path, body in EVERYTHING:
        reply = await api.ask(method, path, body=body, headers={"Host": host})
        assert (reply.status, reply.json()["error"]["type"]) == (403, "Forbidden"), path
    assert guarded.desired() == {}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9401", "127.0.0.1:9401", "127.8.9.1", "[::1]:9401", "[::1]"])
async def test_every_name_of_this_machine_is_answered(api: Api, host: str) -> None:
    """Whatever the pod's own containers write for loopback."""
    assert (await api.ask("GET", "/v1/adapters", headers={"Host": host})).status == 200


async def test_with_a_token_any_name_will_do(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """Behind a service or a proxy the host is theirs, and no page knows the token; a page is refused all the same."""
    (tmp_path / "token").write_text("s3cret-token")
    (tmp_path / "checkpoints").mkdir()
    async with guarding(tmp_path / "checkpoints", ("vllm",), tmp_path / "token") as guarded:
        api = Api(session, guarded.url, "s3cret-token")
        assert (await api.ask("GET", "/v1/adapters", headers={"Host": "sidecar.models.svc:9401"})).status == 200
        assert (await api.ask("GET", "/v1/adapters", headers={"Origin": "https://evil.example"})).status == 403
