from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_sidecar.fleet import objects
from lora_sidecar.fleet.api import Bookmark, Changed, ConfigMap, Deleted, Expired, Listed
from lora_sidecar.fleet.objects import Malformed, Status

NAME = "lora-sidecar-fleet-vllm"
OBJECT: dict[str, Any] = {
    "kind": "ConfigMap",
    "apiVersion": "v1",
    "metadata": {
        "name": NAME,
        "namespace": "default",
        "uid": "d2a1",
        "resourceVersion": "42",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {"a": "b"},
        "managedFields": [
            {"manager": "kubectl", "operation": "Update", "time": "2026-01-01T00:00:00Z", "fieldsV1": {}},
            {"manager": "lora-sidecar", "operation": "Update", "time": "2026-01-02T00:00:00Z", "fieldsV1": {}},
            {"manager": "kubectl-edit", "operation": "Update", "time": "2026-01-02T00:00:00Z", "fieldsV1": {}},
        ],
    },
    "data": {"vllm.json": "{}"},
}
VALUE = ConfigMap("d2a1", "42", {"vllm.json": "{}"}, {"a": "b"}, "kubectl-edit")
LIST: dict[str, Any] = {"kind": "ConfigMapList", "metadata": {"resourceVersion": "50"}, "items": [OBJECT]}


def encoded(value: Any) -> bytes:
    """JSON."""
    return json.dumps(value).encode()


def test_a_list_with_the_object_without_it_and_with_null() -> None:
    """Go's encoding of no items is `null`; another object that is listed is not ours."""
    assert objects.listed(encoded(LIST), NAME) == Listed("50", VALUE)
    assert objects.listed(encoded(LIST), "another") == Listed("50", None)
    assert objects.listed(encoded(LIST | {"items": []}), NAME) == Listed("50", None)
    assert objects.listed(encoded(LIST | {"items": None}), NAME) == Listed("50", None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{}",
        b"[]",
        encoded({"items": []}),
        encoded(LIST | {"kind": "PodList"}),
        encoded(LIST | {"metadata": {}}),
        encoded({key: value for key, value in LIST.items() if key != "items"}),
        encoded(LIST | {"items": [{"metadata": {"name": NAME}}]}),
        b"[" * 100_000,
    ],
)
def test_what_is_no_list_is_never_an_empty_one(body: bytes) -> None:
    """Another server's answer, or half of one, says nothing about the fleet."""
    assert isinstance(objects.listed(body, NAME), Malformed)


def test_an_object_without_data_and_managers() -> None:
    """As the manifest ships it."""
    bare = {"metadata": {"name": NAME, "uid": "d2a1", "resourceVersion": "42"}}
    assert objects.config_map(encoded(bare)) == ConfigMap("d2a1", "42")
    assert objects.config_map(encoded(OBJECT)) == VALUE


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"type": "ADDED", "object": OBJECT}, Changed(VALUE)),
        ({"type": "MODIFIED", "object": OBJECT}, Changed(VALUE)),
        ({"type": "DELETED", "object": OBJECT}, Deleted("42")),
        ({"type": "BOOKMARK", "object": {"kind": "ConfigMap", "metadata": {"resourceVersion": "60"}}}, Bookmark("60")),
        ({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}}, Expired()),
        ({"type": "ERROR", "object": {"kind": "Status", "code": 500, "message": "no"}}, Status(500, "no")),
        ({"type": "RENAMED", "object": OBJECT}, None),
    ],
)
def test_events_of_a_watch(event: Any, expected: object) -> None:
    """Each type that Kubernetes knows, and one that it may know some day."""
    assert objects.event(encoded(event), NAME) == expected


def test_events_of_another_object_are_not_ours() -> None:
    """A server that ignores the selector tells of everything."""
    for kind in ("ADDED", "MODIFIED", "DELETED"):
        assert objects.event(encoded({"type": kind, "object": OBJECT}), "another") is None


@pytest.mark.parametrize(
    "line", [b"half", b"{}", encoded({"type": "ADDED", "object": {}}), encoded({"type": "BOOKMARK"})]
)
def test_a_line_that_is_no_event_is_told(line: bytes) -> None:
    """It ends the watch: who cannot be understood may have said anything."""
    assert isinstance(objects.event(line, NAME), Malformed)


def test_a_refusal_in_kubernetes_words_and_in_a_proxys() -> None:
    """The words are bounded and printable, whoever says them."""
    refusal = {"kind": "Status", "code": 429, "message": "too\nmany \x07", "details": {"retryAfterSeconds": 5}}
    assert objects.status(encoded(refusal)) == Status(429, "too many ?", 5)
    assert objects.status(b"<html>" + b"x" * 1000).message == "<html>" + "x" * 294
    assert objects.status(encoded({"kind": "Other", "code": 1})).code == 0


ANY_JSON = st.recursive(
    st.none() | st.text() | st.integers(),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=8), some, max_size=3),
    max_leaves=6,
)


@given(st.binary() | ANY_JSON.map(encoded))
def test_no_answer_crashes_it(body: bytes) -> None:
    """Whatever a server, a proxy or a broken disk says is a value."""
    objects.listed(body, NAME)
    objects.config_map(body)
    objects.event(body, NAME)
    objects.status(body)
