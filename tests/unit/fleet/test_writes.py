from __future__ import annotations

import pytest
from msgspec.structs import replace

from lora_sidecar.fleet.codec import encode
from lora_sidecar.fleet.document import MAX_BYTES, MAX_SERIAL, Entry, FleetDocument
from lora_sidecar.fleet.writes import Put, Refused, TakeOut, Unchanged, change, rewritten

SQL = Entry("sql", "/adapters/sql", "base", 1, "pod-0", "then", {"note": b'"mine"'})
OTHER = Entry("sql", "/elsewhere", "another", 2)
ANY = Entry("chat", "/adapters/chat", None, 3)
DOCUMENT = FleetDocument(3, (SQL, OTHER, ANY), ("2-aaaaaa", "3-bbbbbb"), {"owner": b'"me"'})


def same_but_for_its_mark(changed: object) -> FleetDocument:
    """A document that was written, without the mark that it ends with."""
    assert isinstance(changed, FleetDocument)
    assert changed.writes[-1].startswith(f"{changed.serial}-")
    return replace(changed, writes=changed.writes[:-1])


def test_a_new_adapter_is_added_at_the_end() -> None:
    """A diff of the document shows one line."""
    changed = change(DOCUMENT, Put("new", "/adapters/new", "base", "pod-1", "now"))
    new = Entry("new", "/adapters/new", "base", 4, "pod-1", "now")
    assert same_but_for_its_mark(changed) == FleetDocument(4, (SQL, OTHER, ANY, new), DOCUMENT.writes, DOCUMENT.extra)


def test_another_path_replaces_the_entry_in_its_place() -> None:
    """What a person noted beside it stays; the same name for another base model is left alone."""
    changed = change(DOCUMENT, Put("sql", "/adapters/sql-2", "base", "pod-1", "now"))
    moved = Entry("sql", "/adapters/sql-2", "base", 4, "pod-1", "now", SQL.extra)
    assert same_but_for_its_mark(changed) == FleetDocument(4, (moved, OTHER, ANY), DOCUMENT.writes, DOCUMENT.extra)


@pytest.mark.parametrize(
    "wish",
    [
        pytest.param(Put("sql", "/adapters/sql", "base", "pod-9", "later"), id="the same adapter"),
        pytest.param(Put("chat", "/adapters/chat", "base"), id="one that is for any base model"),
        pytest.param(TakeOut("absent", "base"), id="one that is not there"),
        pytest.param(TakeOut("sql", "third"), id="one of other base models"),
    ],
)
def test_what_is_so_already_is_no_change(wish: Put | TakeOut) -> None:
    """Repeats cost nothing: not even who asked and when is written."""
    assert change(DOCUMENT, wish) == Unchanged(3)


def test_a_path_of_ones_own_beside_an_entry_for_any_base_model() -> None:
    """The other base models keep theirs."""
    changed = change(DOCUMENT, Put("chat", "/adapters/chat-2", "base"))
    assert isinstance(changed, FleetDocument)
    assert changed.entries == (SQL, OTHER, ANY, Entry("chat", "/adapters/chat-2", "base", 4))


def test_an_adapter_is_taken_out_for_its_base_model_alone() -> None:
    """A canary on another model keeps its own."""
    changed = change(DOCUMENT, TakeOut("sql", "base"))
    assert same_but_for_its_mark(changed) == FleetDocument(4, (OTHER, ANY), DOCUMENT.writes, DOCUMENT.extra)


def test_what_is_for_any_base_model_is_taken_out_as_well() -> None:
    """Left alone it would load the adapter again."""
    both = FleetDocument(3, (SQL, Entry("sql", "/any", None, 2)))
    assert same_but_for_its_mark(change(both, TakeOut("sql", "base"))) == FleetDocument(4, ())


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        pytest.param(Put("n" * 257, "/a", "base"), "name has 257", id="a long name"),
        pytest.param(Put("a\nb", "/a", "base"), "name has control", id="a line break"),
        pytest.param(Put("a", "/" * 4097, "base"), "path has 4097", id="a long path"),
        pytest.param(Put("", "/a", "base"), "name is empty", id="no name"),
        pytest.param(Put("a", "/a", ""), "base is empty", id="no base model"),
    ],
)
def test_what_no_reader_would_take_is_not_written(wish: Put, reason: str) -> None:
    """One bad entry would make the whole document unreadable for everybody."""
    refused = change(DOCUMENT, wish)
    assert isinstance(refused, Refused)
    assert reason in refused.reason


def test_growth_ends_at_the_cap_and_says_so() -> None:
    """768 KiB: beyond it the API server would refuse everybody's writes."""
    document = FleetDocument(190, tuple(Entry(f"a-{number}", "/" + "p" * 4000, "base") for number in range(190)))
    refused = None
    while refused is None:
        changed = change(document, Put(f"new-{document.serial}", "/" + "p" * 400, "base"))
        assert not isinstance(changed, Unchanged)
        document, refused = (document, changed) if isinstance(changed, Refused) else (changed, None)
    assert str(MAX_BYTES) in refused.reason
    assert MAX_BYTES - 600 < len(encode(document).encode()) <= MAX_BYTES
    assert isinstance(change(document, TakeOut("a-0", "base")), FleetDocument)


def test_a_document_beyond_the_cap_may_still_shrink() -> None:
    """Somebody wrote it by hand: what makes it smaller is taken, what makes it larger is not."""
    large = FleetDocument(1, tuple(Entry(f"a-{number}", "/" + "p" * 4000, "base") for number in range(200)))
    assert len(encode(large).encode()) > MAX_BYTES
    assert isinstance(change(large, TakeOut("a-0", "base")), FleetDocument)
    assert isinstance(change(large, Put("a-0", "/short", "base")), FleetDocument)
    assert isinstance(change(large, Put("new", "/short", "base")), Refused)


def test_a_serial_that_nothing_can_follow_is_not_followed() -> None:
    """By hand any number may be written; the next one would be unreadable."""
    refused = change(FleetDocument(MAX_SERIAL, (SQL,)), Put("new", "/a", "base"))
    assert isinstance(refused, Refused)
    assert "serial" in refused.reason


def test_two_writes_from_one_document_have_marks_of_their_own() -> None:
    """By them a later document tells which of the two it came from."""
    one, other = (change(DOCUMENT, Put("new", f"/{path}", "base")) for path in "ab")
    assert isinstance(one, FleetDocument)
    assert isinstance(other, FleetDocument)
    assert one.serial == other.serial
    assert one.writes[-1] != other.writes[-1]
    assert rewritten(one).entries == one.entries
    assert rewritten(one).writes[:-1] == one.writes
