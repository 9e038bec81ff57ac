"""What a Kubernetes API server does with one ConfigMap, held against the fake and, where it was built, a real one."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.contract.kube.calling import CONFIG_MAPS, MERGE, Caller, until
from tests.support.kube_api import NAMESPACE, KubeApi

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]


async def test_a_role_on_one_name_allows_list_and_watch_with_the_selector_alone(
    pod: Caller, admin: Caller, fleet: str
) -> None:
    """Get, list, watch and patch of the one ConfigMap, and nothing else of anything."""
    await admin.create(f"{fleet}-other")
    own, other = f"{CONFIG_MAPS}/{fleet}", f"{CONFIG_MAPS}/{fleet}-other"
    assert (await pod.ask("GET", own)).status == 200
    assert (await pod.ask("GET", CONFIG_MAPS, fieldSelector=f"metadata.name={fleet}")).status == 200
    assert (await pod.patch(fleet, {"data": {"a": "1"}})).status == 200
    async with pod.watch(fleet, "0") as stream:
        assert stream.response.status == 200
    refused = [
        await pod.ask("GET", CONFIG_MAPS),
        await pod.ask("GET", CONFIG_MAPS, fieldSelector=f"metadata.name={fleet}-other"),
        await pod.ask("GET", other),
        await pod.patch(f"{fleet}-other", {"data": {"a": "1"}}),
        await pod.create(f"{fleet}-new"),
        await pod.ask("PUT", own, {"metadata": {"name": fleet}}),
        await pod.ask("DELETE", own),
        await pod.ask("GET", f"{NAMESPACE}/pods"),
    ]
    assert [answer.status for answer in refused] == [403] * len(refused)
    async with pod.watch(None, "0") as stream:
        assert stream.response.status == 403


async def test_a_list_tells_the_version_and_holds_the_object_or_nothing(pod: Caller, admin: Caller, fleet: str) -> None:
    """An absent ConfigMap is an empty list with a version to watch from, never an error."""
    there = await pod.ask("GET", CONFIG_MAPS, fieldSelector=f"metadata.name={fleet}")
    assert (there.body["kind"], [item["metadata"]["name"] for item in there.body["items"]]) == (
        "ConfigMapList",
        [fleet],
    )
    await admin.ask("DELETE", f"{CONFIG_MAPS}/{fleet}")
    gone = await pod.ask("GET", CONFIG_MAPS, fieldSelector=f"metadata.name={fleet}")
    assert (gone.status, gone.body["items"]) == (200, [])
    assert int(gone.version) > int(there.version)


async def test_a_merge_patch_with_a_version_is_compare_and_swap(pod: Caller, fleet: str) -> None:
    """Who writes from a version that is no longer the newest gets 409, and changes nothing."""
    first = await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")
    second = await pod.patch(fleet, {"metadata": {"resourceVersion": first.version}, "data": {"a": "1"}})
    late = await pod.patch(fleet, {"metadata": {"resourceVersion": first.version}, "data": {"a": "2"}})
    assert (second.status, late.status, late.body["kind"]) == (200, 409, "Status")
    assert (await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")).body["data"] == {"a": "1"}


async def test_a_version_of_an_object_that_was_deleted_and_made_again_conflicts(
    pod: Caller, admin: Caller, fleet: str
) -> None:
    """A write meant for the old object never reaches the new one."""
    old = await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")
    await admin.ask("DELETE", f"{CONFIG_MAPS}/{fleet}")
    absent = await pod.patch(fleet, {"metadata": {"resourceVersion": old.version}, "data": {"a": "1"}})
    await admin.create(fleet)
    late = await pod.patch(fleet, {"metadata": {"resourceVersion": old.version}, "data": {"a": "1"}})
    assert (absent.status, late.status) == (404, 409)


async def test_a_patch_merges_and_null_takes_out(pod: Caller, fleet: str) -> None:
    """Other keys and annotations stay as they are."""
    await pod.patch(fleet, {"data": {"a": "1", "b": "2"}, "metadata": {"annotations": {"x": "1", "y": "2"}}})
    after = await pod.patch(fleet, {"data": {"b": "3"}, "metadata": {"annotations": {"x": None}}})
    assert after.body["data"] == {"a": "1", "b": "3"}
    assert after.body["metadata"]["annotations"] == {"y": "2"}


async def test_a_patch_that_changes_nothing_is_no_event(pod: Caller, fleet: str) -> None:
    """Repeats are free: the version stays, and nobody is told."""
    first = await pod.patch(fleet, {"data": {"a": "1"}})
    async with pod.watch(fleet, first.version) as stream:
        again = await pod.patch(fleet, {"data": {"a": "1"}})
        await pod.patch(fleet, {"data": {"a": "2"}})
        event = await stream.next()
    assert (again.status, again.version) == (200, first.version)
    assert event["object"]["data"] == {"a": "2"}


async def test_the_last_field_manager_is_told(pod: Caller, fleet: str) -> None:
    """Who changed the object stands in it, with the time."""
    patched = await pod.ask("PATCH", f"{CONFIG_MAPS}/{fleet}", {"data": {"a": "1"}}, MERGE, fieldManager="somebody")
    managers = patched.body["metadata"]["managedFields"]
    assert max(managers, key=lambda one: (one["time"], one["manager"] == "somebody"))["manager"] == "somebody"


async def test_data_above_a_mebibyte_is_refused(pod: Caller, fleet: str) -> None:
    """422 beyond 1,048,576 bytes of data, 413 beyond 3 MiB of body: a document must end before."""
    most = await pod.patch(fleet, {"data": {"a": "x" * 1_048_576}})
    more = await pod.patch(fleet, {"data": {"a": "x" * 1_048_577}})
    assert (most.status, more.status) == (200, 422)
    assert "Too long" in more.body["message"]
    assert (await pod.patch(fleet, {"data": {"a": "x" * 3 * 1024 * 1024}})).status == 413


async def test_a_write_reaches_a_watch_at_once(pod: Caller, fleet: str) -> None:
    """The event comes with the answer, not at the next poll."""
    version = (await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")).version
    async with pod.watch(fleet, version) as stream:
        for number in range(20):
            patched = await pod.patch(fleet, {"data": {"a": str(number)}})
            event = await stream.next(2.0)
            assert (event["type"], event["object"]["data"]) == ("MODIFIED", {"a": str(number)})
            assert event["object"]["metadata"]["resourceVersion"] == patched.version


async def test_an_idle_watch_gets_bookmarks(pod: Caller, admin: Caller, kube: KubeApi, fleet: str) -> None:
    """A BOOKMARK a minute, with a version that moves on as others write: silence is a dead connection."""
    version = (await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")).version
    async with pod.watch(fleet, version) as stream:
        await admin.create(f"{fleet}-other")
        async with asyncio.timeout(kube.bookmark_within):
            event = await stream.any()
    assert event["type"] == "BOOKMARK"
    assert int(event["object"]["metadata"]["resourceVersion"]) > int(version)


async def test_a_watch_ends_when_its_time_is_up(pod: Caller, fleet: str) -> None:
    """The stream ends as it should, without an error."""
    version = (await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")).version
    async with pod.watch(fleet, version, seconds=1) as stream:
        with pytest.raises(EOFError):
            await stream.next(5.0)


async def test_a_forgotten_version_is_an_error_event(pod: Caller, kube: KubeApi, fleet: str) -> None:
    """HTTP 200, then one ERROR event with code 410: the status alone does not tell."""
    version = (await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")).version
    for number in range(3):
        await pod.patch(fleet, {"data": {"a": str(number)}})
    await kube.forget()
    await until(200, lambda: pod.ask("GET", f"{CONFIG_MAPS}/{fleet}"))
    async with pod.watch(fleet, version) as stream:
        assert stream.response.status == 200
        event = await stream.next()
        assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
        with pytest.raises(EOFError):
            await stream.next()


async def test_a_version_from_the_future_hears_nothing(pod: Caller, fleet: str) -> None:
    """HTTP 200 and silence, whatever is written: only a list now and then tells (kubernetes#107457)."""
    version = int((await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")).version) + 1_000_000
    async with pod.watch(fleet, str(version)) as stream:
        assert stream.response.status == 200
        await pod.patch(fleet, {"data": {"a": "1"}})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await stream.any()


async def test_deleted_and_made_again_within_one_watch(pod: Caller, admin: Caller, fleet: str) -> None:
    """DELETED, then ADDED with another uid; the versions go on."""
    before = await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")
    async with pod.watch(fleet, before.version) as stream:
        await admin.ask("DELETE", f"{CONFIG_MAPS}/{fleet}")
        await admin.create(fleet)
        gone, made = await stream.next(), await stream.next()
    assert (gone["type"], made["type"]) == ("DELETED", "ADDED")
    assert made["object"]["metadata"]["uid"] != before.body["metadata"]["uid"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in (gone, made)]
    assert int(before.version) < versions[0] < versions[1]


async def test_a_replacement_without_data_wipes_it(pod: Caller, admin: Caller, fleet: str) -> None:
    """`kubectl replace`, and a sync of a manifest, take the document away while the object stays the same one."""
    before = await pod.patch(fleet, {"data": {"vllm.json": "{}"}})
    await admin.ask("PUT", f"{CONFIG_MAPS}/{fleet}", {"metadata": {"name": fleet}})
    after = await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")
    assert after.body.get("data", {}) == {}
    assert after.body["metadata"]["uid"] == before.body["metadata"]["uid"]


@pytest.mark.usefixtures("pod")
async def test_a_token_that_expires_does_not_end_the_watch(
    admin: Caller, kube: KubeApi, http: aiohttp.ClientSession, fleet: str
) -> None:
    """Requests get 401, and the open watch goes on hearing changes."""
    short = Caller(http, kube, await kube.token(fleet, 0))
    version = (await short.ask("GET", f"{CONFIG_MAPS}/{fleet}")).version
    async with short.watch(fleet, version) as stream:
        await until(401, lambda: short.ask("GET", f"{CONFIG_MAPS}/{fleet}"), kube.expired_after)
        await admin.patch(fleet, {"data": {"a": "1"}})
        assert (await stream.next())["object"]["data"] == {"a": "1"}


async def test_a_role_that_is_taken_away_does_not_end_the_watch(
    pod: Caller, admin: Caller, kube: KubeApi, fleet: str
) -> None:
    """Requests get 403, and the open watch goes on hearing changes: a good watch says nothing about writing."""
    version = (await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")).version
    async with pod.watch(fleet, version) as stream:
        await kube.revoke(fleet)
        await until(403, lambda: pod.patch(fleet, {"data": {"b": "1"}}))
        await admin.patch(fleet, {"data": {"a": "1"}})
        while "a" not in (event := await stream.next())["object"]["data"]:
            pass
        assert event["object"]["data"]["a"] == "1"


async def test_stopped_it_takes_connections_and_says_nothing(pod: Caller, kube: KubeApi, fleet: str) -> None:
    """SIGSTOP: neither an error nor an end, so a deadline alone tells; once it goes on, so does the watch."""
    version = (await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")).version
    async with pod.watch(fleet, version) as stream:
        kube.pause()
        try:
            with pytest.raises(TimeoutError):
                await stream.next(1.0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")
        finally:
            kube.resume()
        await pod.patch(fleet, {"data": {"a": "1"}})
        assert (await stream.next())["object"]["data"] == {"a": "1"}


async def test_killed_it_breaks_watches_and_goes_on_from_the_same_version(
    pod: Caller, kube: KubeApi, fleet: str
) -> None:
    """SIGKILL: the watch breaks at once, connections are refused, and the last version can be watched from again."""
    version = (await pod.patch(fleet, {"data": {"a": "1"}})).version
    async with pod.watch(fleet, version) as stream:
        await kube.kill()
        with pytest.raises((aiohttp.ClientPayloadError, ConnectionError)):
            await stream.next()
    with pytest.raises(aiohttp.ClientConnectorError):
        await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")
    await kube.start()
    # The authorizer of a server that has just started may know no roles yet.
    await until(200, lambda: pod.ask("GET", f"{CONFIG_MAPS}/{fleet}"))
    async with pod.watch(fleet, version) as stream:
        assert stream.response.status == 200
        await pod.patch(fleet, {"data": {"a": "2"}})
        assert (await stream.next())["object"]["data"] == {"a": "2"}


async def test_terminated_it_refuses_connections_before_it_ends_watches(pod: Caller, kube: KubeApi, fleet: str) -> None:
    """SIGTERM: new connections are refused at once, and the open watch breaks only as the process ends."""
    version = (await pod.ask("GET", f"{CONFIG_MAPS}/{fleet}")).version
    async with pod.watch(fleet, version) as stream:
        await kube.terminate()
        with pytest.raises(aiohttp.ClientConnectorError):
            await until(0, lambda: pod.ask("GET", f"{CONFIG_MAPS}/{fleet}"))
        with pytest.raises((aiohttp.ClientPayloadError, ConnectionError)):
            await stream.next(kube.terminated_within)
    await kube.start()
