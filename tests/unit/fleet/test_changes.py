from __future__ import annotations

import pytest

from lora_sidecar.fleet.changes import (
    Difference,
    Held,
    HoldReason,
    accept_token,
    difference,
    is_accepted,
    judge,
    without_token,
)
from lora_sidecar.fleet.document import Entry, FleetDocument, NoDocument
from lora_sidecar.fleet.writes import Put, TakeOut, change, restored

A, B, C = (Entry(name, f"/adapters/{name}", "base", serial) for serial, name in enumerate("abc", start=1))
THREE = FleetDocument(3, (A, B, C))


def held(in_force: FleetDocument | None, reading: FleetDocument | NoDocument) -> HoldReason | None:
    """Why a reading is held, None where it is taken over."""
    judged = judge(in_force, reading, accepted=False)
    return judged.reason if isinstance(judged, Held) else None


def after(document: FleetDocument, *wishes: Put | TakeOut) -> FleetDocument:
    """The document that writes of sidecars lead to."""
    for wish in wishes:
        changed = change(document, wish)
        assert isinstance(changed, FleetDocument)
        document = changed
    return document


def test_a_pod_that_never_knew_one_takes_over_what_there_is() -> None:
    """A new pod has nothing to lose; a ConfigMap without a document is a fleet of nothing."""
    assert judge(None, THREE, accepted=False) == THREE
    assert judge(None, NoDocument(), accepted=False) == FleetDocument()


@pytest.mark.parametrize(
    "reading",
    [
        pytest.param(NoDocument(), id="the data was wiped by a sync"),
        pytest.param(FleetDocument(3), id="all lines removed by hand"),
        pytest.param(FleetDocument(), id="an empty document from a manifest"),
        pytest.param(FleetDocument(4, (Entry("x", "/x", "base", 4),)), id="a new pod wrote after the wipe"),
        pytest.param(FleetDocument(3, (Entry("a", "/a", "another", 1),)), id="only another base model is left"),
    ],
)
def test_what_drops_every_adapter_at_once_is_held(reading: FleetDocument | NoDocument) -> None:
    """`FleetEmptied`: nothing is unloaded until somebody writes it again, or accepts it."""
    judged = judge(THREE, reading, accepted=False)
    assert isinstance(judged, Held)
    assert (judged.reason, judged.lost) == (HoldReason.EMPTIED, THREE.entries)
    taken = FleetDocument() if isinstance(reading, NoDocument) else reading
    assert judge(THREE, reading, accepted=True) == taken


def test_a_fleet_whose_adapters_were_unloaded_one_by_one_is_empty() -> None:
    """A pod that missed it all sees them gone at a stroke, and the serial tells that it was not."""
    empty = after(THREE, TakeOut("a", "base"), TakeOut("b", "base"), TakeOut("c", "base"))
    assert held(THREE, empty) is None


def test_the_only_adapter_can_be_unloaded() -> None:
    """A fleet of one is not held by its last unload."""
    one = FleetDocument(1, (A,))
    assert held(one, after(one, TakeOut("a", "base"))) is None


def test_one_line_removed_by_hand_counts() -> None:
    """The serial stays as it was, and others are left: an edit, not a wipe."""
    assert held(THREE, FleetDocument(3, (A, C))) is None


def test_an_old_copy_is_held() -> None:
    """`FleetReverted`: the serial went backwards, and entries in force are gone."""
    judged = judge(THREE, FleetDocument(2, (A, B)), accepted=False)
    assert judged == Held(HoldReason.REVERTED, 2, (C,))
    assert judge(THREE, FleetDocument(2, (A, B)), accepted=True) == FleetDocument(2, (A, B))


def test_an_old_copy_in_which_an_adapter_has_an_older_path_is_held() -> None:
    """To go back to older weights everywhere is a loss as well."""
    moved = FleetDocument(4, (Entry("a", "/adapters/a-2", "base", 4), B, C))
    judged = judge(moved, THREE, accepted=False)
    assert isinstance(judged, Held)
    assert (judged.reason, [entry.path for entry in judged.lost]) == (HoldReason.REVERTED, ["/adapters/a-2"])


def test_a_serial_that_went_backwards_with_nothing_lost_counts() -> None:
    """A person who writes the document anew need not know the serial."""
    assert held(THREE, FleetDocument(0, (A, B, C, Entry("d", "/d")))) is None


def test_what_a_change_means_for_a_pod() -> None:
    """Its own base model's entries alone: added, removed and moved, by name."""
    before = FleetDocument(5, (A, B, Entry("z", "/z", "another")))
    now = FleetDocument(8, (Entry("b", "/adapters/b-2", "base"), C, Entry("y", "/y", "another")))
    assert difference(before, now, "base") == Difference(
        added=(C,), removed=(A,), moved=(Entry("b", "/adapters/b-2", "base"),)
    )
    assert difference(before, now, "third") == Difference()
    assert difference(None, before, "base") == Difference(added=(A, B))


def test_a_token_is_of_one_text_in_one_object_under_one_key() -> None:
    """What was accepted once accepts nothing else."""
    tokens = {
        accept_token("uid", "vllm.json", None),
        accept_token("uid", "vllm.json", "{}"),
        accept_token("uid", "other.json", "{}"),
        accept_token("uid-2", "vllm.json", "{}"),
    }
    assert len(tokens) == 4
    assert accept_token("uid", "vllm.json", None) == accept_token("uid", "vllm.json", "")


@pytest.mark.parametrize(
    ("annotation", "accepted", "rest"),
    [
        (None, False, None),
        ("", False, None),
        ("abc", True, None),
        ("x,abc", True, "x"),
        ("x abc, y", True, "x,y"),
        ("abcd", False, "abcd"),
    ],
)
def test_an_annotation_may_accept_several(annotation: str | None, accepted: bool, rest: str | None) -> None:
    """Servers with documents of their own share the ConfigMap, and its annotation."""
    assert is_accepted(annotation, "abc") is accepted
    assert without_token(annotation, "abc") == rest


def test_a_write_over_a_wiped_document_starts_from_what_is_in_force() -> None:
    """And keeps what a pod that knew nothing wrote after the wipe: it was answered 200."""
    wiped = FleetDocument(4, (Entry("x", "/x", "base", 4),), {"note": b"1"})
    start = restored(THREE, wiped)
    assert [entry.name for entry in start.entries] == ["a", "b", "c", "x"]
    assert (start.serial, start.extra) == (4, {"note": b"1"})
    assert restored(THREE, NoDocument()) == THREE


def test_everybody_takes_over_what_a_write_restored() -> None:
    """Pods that held the wiped document, and one that took it for the truth."""
    wiped = FleetDocument(4, (Entry("x", "/x", "base", 4),))
    written = after(restored(THREE, wiped), Put("new", "/new", "base"))
    assert held(THREE, written) is None
    assert held(wiped, written) is None
