from __future__ import annotations

import pytest
from msgspec.structs import replace

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


def after(document: FleetDocument, *wishes: Put | TakeOut) -> FleetDocument:
    """The document that writes of sidecars lead to."""
    for wish in wishes:
        changed = change(document, wish)
        assert isinstance(changed, FleetDocument)
        document = changed
    return document


def put(*names: str) -> list[Put]:
    """Wishes for adapters."""
    return [Put(name, f"/adapters/{name}", "base") for name in names]


def held(in_force: FleetDocument | None, reading: FleetDocument | NoDocument) -> HoldReason | None:
    """Why a reading is held, None where it is taken over."""
    judged = judge(in_force, reading, accepted=False)
    return judged.reason if isinstance(judged, Held) else None


def names(document: FleetDocument) -> list[str]:
    """What it lists."""
    return [entry.name for entry in document.entries]


TWO = after(FleetDocument(), *put("a", "b"))
THREE = after(TWO, *put("c"))
A, B, C = THREE.entries
MANIFEST = FleetDocument(0, (Entry("m", "/m"), Entry("a", "/old/a", "base")))


def test_a_pod_that_never_knew_one_takes_over_what_there_is() -> None:
    """A new pod has nothing to lose; a ConfigMap without a document is a fleet of nothing."""
    assert judge(None, THREE, accepted=False) == THREE
    assert judge(None, NoDocument(), accepted=False) == FleetDocument()


@pytest.mark.parametrize(
    "reading",
    [
        pytest.param(NoDocument(), id="the data was wiped by a sync"),
        pytest.param(replace(THREE, entries=()), id="all lines removed by hand"),
        pytest.param(FleetDocument(), id="an empty document from a manifest"),
        pytest.param(after(FleetDocument(), *put("x", "y", "z", "v", "w", "q")), id="a new pod wrote after the wipe"),
        pytest.param(after(replace(THREE, entries=()), *put("x", "y", "z")), id="and after lines were removed by hand"),
        pytest.param(replace(THREE, entries=(Entry("a", "/a", "another"),)), id="only another base model is left"),
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
    assert held(THREE, after(THREE, *(TakeOut(name, "base") for name in "abc"))) is None


def test_the_only_adapter_can_be_unloaded() -> None:
    """A fleet of one is not held by its last unload."""
    one = after(FleetDocument(), *put("a"))
    assert held(one, after(one, TakeOut("a", "base"))) is None


def test_one_line_removed_by_hand_counts() -> None:
    """An edit that leaves the marks as they are, and others listed: not a wipe."""
    assert held(THREE, replace(THREE, entries=(A, C))) is None


def test_a_path_changed_by_hand_counts() -> None:
    """A person may move an adapter."""
    assert held(THREE, replace(THREE, entries=(replace(A, path="/elsewhere"), B, C))) is None


def test_an_old_copy_is_held() -> None:
    """`FleetReverted`: the serial went backwards, and entries in force are gone."""
    assert judge(THREE, TWO, accepted=False) == Held(HoldReason.REVERTED, 2, (C,))
    assert judge(THREE, TWO, accepted=True) == TWO


def test_an_old_copy_that_a_new_pod_wrote_on_is_held() -> None:
    """The serial alone would not tell: the marks of its writes do."""
    assert held(THREE, after(TWO, *put("x", "y", "z"))) is HoldReason.REVERTED


def test_an_old_copy_in_which_an_adapter_has_an_older_path_is_held() -> None:
    """To go back to older weights everywhere is a loss as well."""
    moved = after(THREE, Put("a", "/adapters/a-2", "base"))
    judged = judge(moved, THREE, accepted=False)
    assert isinstance(judged, Held)
    assert (judged.reason, [entry.path for entry in judged.lost]) == (HoldReason.REVERTED, ["/adapters/a-2"])


def test_a_manifest_that_lists_other_adapters_is_held() -> None:
    """A sync of a manifest with `data` does not follow what sidecars wrote."""
    assert held(THREE, MANIFEST) is HoldReason.REVERTED


def test_a_serial_that_went_backwards_with_nothing_lost_counts() -> None:
    """A person who writes the document anew need not know the serial."""
    assert held(THREE, FleetDocument(0, (A, B, C, Entry("d", "/d")))) is None


def test_a_fleet_that_only_people_write_is_edited_as_they_like() -> None:
    """Without marks of sidecars nothing tells an old copy from an edit; an empty one is held all the same."""
    by_hand = FleetDocument(0, (Entry("a", "/a"), Entry("b", "/b")))
    assert held(by_hand, FleetDocument(0, (Entry("b", "/b-2"),))) is None
    assert held(by_hand, FleetDocument(0)) is HoldReason.EMPTIED


@pytest.mark.parametrize("missed", [1, 31, 32, 63, 64, 200])
def test_a_pod_that_was_away_follows_however_much_it_missed(missed: int) -> None:
    """The marks are of the last 64 writes: what is further away follows by its serial."""
    later = after(THREE, TakeOut("a", "base"), *put(*(f"n-{number}" for number in range(missed))))
    assert len(later.writes) <= 64
    assert held(THREE, later) is None


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
    """And keeps what a pod that knew nothing wrote after the wipe, other paths as well: it was answered 200."""
    assert restored(THREE, NoDocument()) == THREE
    wiped = after(FleetDocument(0, (), (), {"note": b"1"}), Put("x", "/x", "base"), Put("a", "/a-2", "base"))
    start = restored(THREE, wiped)
    assert {entry.name: entry.path for entry in start.entries} == {
        "a": "/a-2",
        "b": "/adapters/b",
        "c": "/adapters/c",
        "x": "/x",
    }
    assert (start.serial, start.extra) == (3, {"note": b"1"})


def test_a_write_over_an_old_copy_brings_nothing_back_that_was_taken_out() -> None:
    """What the copy has from before is known; what a new pod put into it since is kept."""
    taken = after(THREE, TakeOut("a", "base"), Put("b", "/b-2", "base"))
    start = restored(taken, after(THREE, Put("x", "/x", "base")))
    assert {entry.name: entry.path for entry in start.entries} == {"b": "/b-2", "c": "/adapters/c", "x": "/x"}


def test_a_write_over_a_manifest_keeps_what_it_adds() -> None:
    """A person's line is not lost, and does not count more than what a sidecar wrote."""
    start = restored(THREE, MANIFEST)
    assert {entry.name: entry.path for entry in start.entries} == {
        entry.name: entry.path for entry in THREE.entries
    } | {"m": "/m"}


def test_everybody_takes_over_what_a_write_restored() -> None:
    """Pods that held the other document, pods that took it for the truth, and both after a while away."""
    wiped = after(FleetDocument(), Put("x", "/x", "base"), Put("a", "/a-2", "base"))
    written = after(restored(THREE, wiped), *put("new"))
    later = after(written, *(TakeOut(name, "base") for name in ("a", "b", "c", "x")), *put("y"))
    for known in (TWO, THREE, wiped):
        assert held(known, written) is None
        assert held(known, later) is None
    assert names(later) == ["new", "y"]
