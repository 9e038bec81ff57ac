from __future__ import annotations

import pytest

from lora_sidecar.core.model import Adapter, Origin
from lora_sidecar.core.outcomes import Accepted, Failure, FailureKind
from lora_sidecar.engines.vllm import Vllm
from tests.faults.rude import Behaviour, RudeServer, floods, hangs, http, resets, says

LOAD = "/v1/load_lora_adapter"
SQL = Adapter("sql", "/adapters/sql", Origin.DECLARED)

BROKEN: dict[str, Behaviour] = {
    "reset after the request": resets(),
    "closed without an answer": says(b""),
    "an answer cut short": says(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nSucc"),
    "no answer in time": hangs(),
    "another protocol": says(b"\x15\x03\x01\x00\x02\x02\x16"),
    "a body without an end": floods(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x" * 65536),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_load_that_broke_off_is_ambiguous_and_never_sent_again(
    name: str, rude: RudeServer, engine: Vllm
) -> None:
    """It may have been received: only a listing can tell, so it is sent once."""
    rude.misbehave(LOAD, BROKEN[name])
    result = await engine.load(SQL)
    assert isinstance(result, Failure)
    assert result.kind is FailureKind.AMBIGUOUS
    assert [request for request in rude.requests if request[0] == "POST"] == [("POST", LOAD)]


async def test_a_load_that_never_left_blames_no_adapter(rude: RudeServer, engine: Vllm) -> None:
    """Where nobody listens any more, nothing can have taken effect."""
    assert await engine.load(SQL) == Accepted()
    await rude.__aexit__(None, None, None)
    result = await engine.load(SQL)
    assert isinstance(result, Failure)
    assert result.kind is FailureKind.ENGINE


async def test_a_redirected_load_is_not_followed(rude: RudeServer, engine: Vllm) -> None:
    """A redirect would turn the POST into a GET that answers 200."""
    rude.misbehave(LOAD, says(http(302, b"", "Location: /health")))
    result = await engine.load(SQL)
    assert isinstance(result, Failure)
    assert result.kind is FailureKind.UNCLASSIFIED
    assert ("GET", "/health") not in rude.requests
