from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trustme

from lora_sidecar.fleet.api import (
    Bookmark,
    Changed,
    Conflict,
    Deleted,
    Denied,
    Ended,
    Expired,
    Listed,
    Missing,
    Patched,
    Rejected,
    Silent,
    TimeIsUp,
    Unreachable,
    Verb,
)
from lora_sidecar.fleet.cluster import Cluster
from lora_sidecar.fleet.kubernetes import KubernetesApi
from lora_sidecar.fleet.watch import KubernetesWatch
from tests.fakes.kube_api.server import LISTED, Canned, FakeKubeApi

pytestmark = pytest.mark.looptime

NAME = "lora-sidecar-fleet-vllm"
T = TypeVar("T")


async def at_once(call: Callable[[], T]) -> T:
    """Make a call here: the files of a test are not slow."""
    return call()


@asynccontextmanager
async def client(kube: FakeKubeApi, folder: Path, ca: str = "") -> AsyncIterator[KubernetesApi]:
    """A client with a token that may do everything needed, and its files in a folder."""
    kube.access.issue("pod-token", "pod")
    kube.access.grant("pod", NAME)
    (folder / "token").write_text("pod-token\n")
    (folder / "namespace").write_text("default")
    (folder / "ca.crt").write_text(ca)
    api = KubernetesApi(Cluster(kube.url, str(folder)), NAME, at_once)
    try:
        yield api
    finally:
        await api.close()


@pytest.fixture
async def kube() -> AsyncIterator[FakeKubeApi]:
    """An API server without TLS that has the fleet's ConfigMap."""
    async with FakeKubeApi() as server:
        server.store.create(NAME, {"vllm.json": "{}"})
        yield server


@pytest.fixture
async def api(kube: FakeKubeApi, tmp_path: Path) -> AsyncIterator[KubernetesApi]:
    """Its client."""
    async with client(kube, tmp_path) as made:
        yield made


def now() -> float:
    """The loop's clock."""
    return asyncio.get_running_loop().time()


async def opened(api: KubernetesApi, since: str | None = None) -> KubernetesWatch:
    """A watch from a version, or from now on."""
    if since is None:
        listed = await api.list(5)
        assert isinstance(listed, Listed)
        since = listed.resource_version
    watch = await api.watch(since, 300)
    assert isinstance(watch, KubernetesWatch)
    return watch


async def test_a_list_asks_for_one_name(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """A Role with `resourceNames` allows nothing else; the answer has what is needed of the object."""
    listed = await api.list(5)
    assert isinstance(listed, Listed)
    assert listed.config_map is not None
    assert (listed.config_map.data, listed.config_map.changed_by) == ({"vllm.json": "{}"}, "test")
    assert (kube.asked[0].path, kube.asked[0].query) == (LISTED, {"fieldSelector": f"metadata.name={NAME}"})
    kube.store.delete(NAME)
    assert await api.list(5) == Listed(str(kube.store.version), None)


async def test_a_watch_asks_for_bookmarks_and_an_end(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """From the version it was given, for the time that it was given."""
    watch = await api.watch("100", 437.6)
    assert isinstance(watch, KubernetesWatch)
    await watch.close()
    expected = {
        "fieldSelector": f"metadata.name={NAME}",
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "100",
        "timeoutSeconds": "438",
    }
    assert kube.asked[0].query == expected


async def test_what_a_watch_tells(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """Changes, a deletion, another object of the same name, bookmarks: in order, and nothing of other objects."""
    watch = await opened(api)
    kube.store.patch(NAME, {"data": {"vllm.json": "1"}})
    kube.store.create("another")
    kube.store.delete(NAME)
    kube.store.create(NAME)
    told = [await watch.next(now() + 5) for _ in range(3)]
    assert [type(one) for one in told] == [Changed, Deleted, Changed]
    first, last = told[0], told[2]
    assert isinstance(first, Changed)
    assert isinstance(last, Changed)
    assert first.config_map.data == {"vllm.json": "1"}
    assert first.config_map.uid != last.config_map.uid
    assert await watch.next(now() + 100) == Bookmark(str(kube.store.version))
    await watch.close()


async def test_a_server_that_ignores_the_selector_is_put_up_with(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """What is told of another object is not ours."""
    other = b'{"metadata":{"name":"another","uid":"u","resourceVersion":"7"}}'
    kube.canned.append(Canned(200, b'{"type":"ADDED","object":' + other + b"}\n"))
    watch = await api.watch("100", 300)
    assert isinstance(watch, KubernetesWatch)
    assert await watch.next(now() + 5) == Ended("the API server ended the watch")
    await watch.close()


async def test_a_watch_gives_the_time_back_when_it_is_asked_for(api: KubernetesApi) -> None:
    """A list beside it is due: the watch goes on."""
    watch = await opened(api)
    began = now()
    assert await watch.next(began + 20) == TimeIsUp()
    assert now() - began == pytest.approx(20, abs=0.1)
    await watch.close()


async def test_a_document_of_768_kib_comes_through(api: KubernetesApi) -> None:
    """In a list, an event and a write: far beyond what a line of the HTTP library may have."""
    text = '"quoted"\n' * (768 * 1024 // 9)
    listed = await api.list(5)
    assert isinstance(listed, Listed)
    watch = await opened(api, listed.resource_version)
    assert listed.config_map is not None
    patched = await api.patch(listed.config_map.resource_version, {"vllm.json": text}, {}, 5)
    assert isinstance(patched, Patched)
    told = await watch.next(now() + 5)
    assert isinstance(told, Changed)
    assert told.config_map.data == patched.config_map.data == {"vllm.json": text}
    again = await api.list(5)
    assert isinstance(again, Listed)
    assert again.config_map == told.config_map
    await watch.close()


async def test_a_patch_is_compare_and_swap(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """It names the version that it is meant for, and itself as field manager."""
    before = str(kube.store.version)
    patched = await api.patch(before, {"vllm.json": "1"}, {"x": "y", "gone": None}, 5)
    assert isinstance(patched, Patched)
    assert (patched.config_map.data, patched.config_map.annotations) == ({"vllm.json": "1"}, {"x": "y"})
    assert patched.config_map.changed_by == "lora-sidecar"
    assert isinstance(await api.patch(before, {"vllm.json": "2"}, {}, 5), Conflict)
    assert kube.store.get(NAME)["data"] == {"vllm.json": "1"}


async def test_a_patch_that_can_never_be_taken(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """No such object, and too much data: each is a value of its own."""
    rejected = await api.patch(str(kube.store.version), {"vllm.json": "x" * 1_100_000}, {}, 5)
    assert isinstance(rejected, Rejected)
    assert (rejected.status, "Too long" in rejected.detail) == (422, True)
    kube.store.delete(NAME)
    assert isinstance(await api.patch("1", {"vllm.json": "1"}, {}, 5), Missing)


@pytest.mark.parametrize("by_status", [False, True])
async def test_a_forgotten_version_in_both_forms(kube: FakeKubeApi, api: KubernetesApi, by_status: bool) -> None:
    """HTTP 410, or HTTP 200 and an ERROR event that says 410."""
    kube.expires_by_status = by_status
    kube.store.forget()
    watch = await api.watch("1", 300)
    if isinstance(watch, KubernetesWatch):
        assert await watch.next(now() + 5) == Expired()
        await watch.close()
    else:
        assert watch == Expired()
    assert isinstance(watch, KubernetesWatch) is not by_status


async def test_a_silent_watch_is_over_after_130_seconds(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """Counted from the last byte, and a bookmark is one."""
    watch = await opened(api)
    assert isinstance(await watch.next(now() + 100), Bookmark)
    kube.pause()
    heard_at = now()
    assert isinstance(await watch.next(now() + 1000), Silent)
    assert now() - heard_at == pytest.approx(130, abs=0.1)
    kube.resume()
    await watch.close()


async def test_a_watch_from_the_future_is_silent(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """Open, and deaf: kubernetes#107457."""
    watch = await opened(api, str(kube.store.version + 1000))
    kube.store.patch(NAME, {"data": {"vllm.json": "1"}})
    assert isinstance(await watch.next(now() + 1000), Silent)
    await watch.close()


async def test_a_watch_that_breaks_and_one_that_ends(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """Killed in the middle, or its time is up: over, with a word why."""
    watch = await opened(api)
    kube.cut_watches()
    broken = await watch.next(now() + 5)
    assert isinstance(broken, Ended)
    assert "broke" in broken.detail
    await watch.close()
    watch = await opened(api)
    kube.end_watches()
    assert await watch.next(now() + 5) == Ended("the API server ended the watch")
    await watch.close()


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b'{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd is gone"}}\n', "etcd is gone"),
        (b"<html>\n", "not an event"),
        (b"x" * 3_000_000, "more than"),
    ],
)
async def test_a_watch_that_cannot_be_understood_is_over(
    kube: FakeKubeApi, api: KubernetesApi, line: bytes, word: str
) -> None:
    """An error of the server, a proxy's page, a line without end."""
    kube.canned.append(Canned(200, line))
    watch = await api.watch("100", 300)
    assert isinstance(watch, KubernetesWatch)
    end = await watch.next(now() + 5)
    assert isinstance(end, Ended)
    assert word in end.detail
    await watch.close()


async def test_a_token_that_was_replaced_is_read_again(kube: FakeKubeApi, api: KubernetesApi, tmp_path: Path) -> None:
    """The kubelet writes a new one before the hour is over: the next request has it."""
    await api.list(5)
    kube.access.issue("second", "pod")
    kube.access.expire("pod-token")
    (tmp_path / "token").write_text("second")
    assert isinstance(await api.list(5), Listed)
    assert [asked.token for asked in kube.asked] == ["pod-token", "second"]


async def test_a_token_that_is_replaced_while_it_is_refused_is_tried_once_more(
    kube: FakeKubeApi, api: KubernetesApi, tmp_path: Path
) -> None:
    """Read before the kubelet wrote, sent after it expired: no reason to fail."""
    kube.access.issue("second", "pod")
    kube.access.expire("pod-token")
    kube.latency = 1.0
    asyncio.get_running_loop().call_later(0.5, (tmp_path / "token").write_text, "second")
    assert isinstance(await api.list(5), Listed)
    assert [asked.token for asked in kube.asked] == ["pod-token", "second"]


async def test_a_token_that_stays_refused_is_not_sent_twice(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """The same question gets the same answer."""
    kube.access.expire("pod-token")
    denied = await api.list(5)
    assert isinstance(denied, Denied)
    assert (denied.status, denied.verb, len(kube.asked)) == (401, Verb.LIST, 1)
    assert "token" in denied.hint


async def test_a_role_that_is_missing_is_told_by_its_verb(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """Who reads the condition knows what to add to the Role."""
    kube.access.revoke("pod")
    asked: list[tuple[Verb, Awaitable[object]]] = [
        (Verb.LIST, api.list(5)),
        (Verb.WATCH, api.watch("1", 300)),
        (Verb.PATCH, api.patch("1", {}, {}, 5)),
    ]
    for verb, answer in asked:
        denied = await answer
        assert isinstance(denied, Denied)
        assert (denied.status, denied.verb) == (403, verb)
        assert f"verb {verb}" in str(denied)


@pytest.mark.parametrize(
    ("canned", "retry_after"),
    [
        pytest.param(Canned(429, headers={"Retry-After": "7"}), 7.0, id="overloaded"),
        pytest.param(Canned(503, headers={"Retry-After": "1"}), 1.0, id="shutting down"),
        pytest.param(Canned(503), None, id="no endpoint"),
        pytest.param(
            Canned(500, b'{"kind":"Status","code":500,"details":{"retryAfterSeconds":3}}'), 3.0, id="said in the body"
        ),
        pytest.param(Canned(429, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}), None, id="a date"),
        pytest.param(Canned(500), None, id="broken"),
        pytest.param(Canned(404), None, id="no such route"),
        pytest.param(Canned(302, headers={"Location": "http://192.0.2.1/"}), None, id="elsewhere"),
    ],
)
async def test_an_answer_that_says_nothing_about_the_configmap(
    kube: FakeKubeApi, api: KubernetesApi, canned: Canned, retry_after: float | None
) -> None:
    """Overloaded, broken, or not the API server: unknown, with the time that it asks for."""
    for ask in (lambda: api.list(5), lambda: api.watch("1", 300)):
        kube.canned.append(canned)
        answer = await ask()
        assert isinstance(answer, Unreachable)
        assert (answer.retry_after, str(canned.status) in answer.detail) == (retry_after, True)
    assert len(kube.asked) == 2


@pytest.mark.parametrize("body", [b"{}", b"<html>", b"x" * 3_000_000], ids=["no list", "a page", "no end"])
async def test_a_body_that_is_no_list_is_unknown(kube: FakeKubeApi, api: KubernetesApi, body: bytes) -> None:
    """200 alone is no answer, and a body has a cap."""
    kube.canned.append(Canned(200, body))
    assert isinstance(await api.list(5), Unreachable)


async def test_a_stopped_server_meets_the_deadline(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """It takes connections and says nothing, to each verb."""
    kube.pause()
    for ask, seconds in (
        (lambda: api.list(3), 3),
        (lambda: api.patch("1", {}, {}, 4), 4),
        (lambda: api.watch("1", 300), 10),
    ):
        began = now()
        answer = await ask()
        assert isinstance(answer, Unreachable)
        assert now() - began == pytest.approx(seconds, abs=0.1)
        assert answer.sent
    kube.resume()


async def test_nobody_listens(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """Refused: nothing was sent, and the hint names what a cluster may have in the way."""
    await kube.kill()
    for answer in (await api.list(5), await api.watch("1", 300), await api.patch("1", {}, {}, 5)):
        assert isinstance(answer, Unreachable)
        assert not answer.sent
        assert "cannot connect" in answer.detail
        assert "NetworkPolicy" in answer.hint


async def test_a_write_whose_answer_is_lost_may_have_been_received(kube: FakeKubeApi, api: KubernetesApi) -> None:
    """It was: only a list can tell."""
    kube.answers_lost = 1
    answer = await api.patch(str(kube.store.version), {"vllm.json": "1"}, {}, 5)
    assert isinstance(answer, Unreachable)
    assert answer.sent
    assert kube.store.get(NAME)["data"] == {"vllm.json": "1"}


@pytest.mark.parametrize("missing", ["token", "namespace"])
async def test_without_its_files_nothing_is_asked(
    kube: FakeKubeApi, api: KubernetesApi, tmp_path: Path, missing: str
) -> None:
    """The hint says what to mount."""
    (tmp_path / missing).unlink()
    for answer in (await api.list(5), await api.watch("1", 300), await api.patch("1", {}, {}, 5)):
        assert isinstance(answer, Unreachable)
        assert (missing in answer.detail, "project" in answer.hint, answer.sent, kube.asked) == (True, True, False, [])


async def test_files_that_take_too_long_to_read_are_told(kube: FakeKubeApi, tmp_path: Path) -> None:
    """A hung volume holds up no heartbeat."""

    async def never(_: object) -> None:
        raise TimeoutError

    hung = KubernetesApi(Cluster(kube.url, str(tmp_path)), NAME, never)  # type: ignore[arg-type]
    answer = await hung.list(5)
    assert isinstance(answer, Unreachable)
    assert "too long" in answer.detail
    await hung.close()


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    """How a server shows a certificate of this CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def test_a_ca_that_was_rotated_is_read_again(tmp_path: Path) -> None:
    """Until its file is there the server is a stranger; then it is known without a restart."""
    old, new = trustme.CA(), trustme.CA()
    async with FakeKubeApi(tls=server_context(new)) as kube:
        kube.store.create(NAME)
        async with client(kube, tmp_path, old.cert_pem.bytes().decode()) as api:
            stranger = await api.list(5)
            assert isinstance(stranger, Unreachable)
            assert ("ca.crt" in stranger.hint, stranger.sent, kube.asked) == (True, False, [])
            (tmp_path / "ca.crt").write_bytes(new.cert_pem.bytes())
            assert isinstance(await api.list(5), Listed)
            (tmp_path / "ca.crt").write_text("no PEM")
            broken = await api.list(5)
            assert isinstance(broken, Unreachable)
            assert "ca.crt" in broken.hint


async def test_the_kernel_looks_after_an_idle_connection(api: KubernetesApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepalive, so that a peer that is gone without a word is noticed by more than the missing bookmark."""
    made: list[socket.socket] = []
    real = socket.socket

    class Seen(real):  # type: ignore[misc, valid-type]
        def __init__(self, *args: int, **options: int) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(socket, "socket", Seen)
    watch = await opened(api, "100")
    (connection, *_) = [one for one in made if one.fileno() >= 0]
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    await watch.close()
