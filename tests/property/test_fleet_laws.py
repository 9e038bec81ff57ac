from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lora_sidecar.fleet.changes import Held, difference, judge
from lora_sidecar.fleet.codec import decode, encode
from lora_sidecar.fleet.document import (
    Entry,
    EntryKey,
    FleetDocument,
    Newer,
    NoDocument,
    Unreadable,
    fault_of,
    wanted,
)
from lora_sidecar.fleet.writes import Change, Put, Refused, TakeOut, Unchanged, change, restored, rewritten

PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
EXTRA = st.dictionaries(
    PRINTABLE.map(lambda name: f"x-{name}"), st.sampled_from([b"1", b"1e999", b'"a b"', b"[1,{}]", b"null"]), max_size=2
)
ENTRIES = st.builds(
    Entry,
    name=PRINTABLE,
    path=PRINTABLE,
    base=st.none() | PRINTABLE,
    serial=st.integers(0, 2**53),
    by=st.just("") | PRINTABLE,
    at=st.just("") | PRINTABLE,
    extra=EXTRA,
)


def _distinct(entries: list[Entry]) -> tuple[Entry, ...]:
    return tuple({entry.key: entry for entry in entries}.values())


DOCUMENTS = st.builds(
    FleetDocument,
    serial=st.integers(0, 2**53),
    entries=st.lists(ENTRIES, max_size=5).map(_distinct),
    writes=st.lists(PRINTABLE, max_size=3).map(tuple),
    extra=EXTRA,
)


@given(DOCUMENTS)
def test_a_document_is_read_as_it_was_written(document: FleetDocument) -> None:
    """Every field, known or not, and each adapter on a line of its own."""
    text = encode(document)
    assert decode(text) == document
    assert len(text.splitlines()) >= len(document.entries)
    lines = text.split("\n")
    for entry in document.entries:
        assert any(line.startswith('{"name":') and entry.path in line.replace("\\\\", "\\").replace('\\"', '"') for line in lines)  # fmt: skip # noqa: E501


@given(DOCUMENTS, st.data())
def test_damage_is_never_an_empty_fleet(document: FleetDocument, data: st.DataObject) -> None:
    """Text that was cut or changed anywhere is unreadable, or another document: it never raises."""
    text = encode(document)
    at = data.draw(st.integers(1, len(text) - 2))
    assert isinstance(decode(text[:at]), Unreadable)
    found = decode(text[:at] + data.draw(st.text(max_size=3)) + text[at + 1 :])
    assert isinstance(found, FleetDocument | Unreadable | Newer)


@given(st.text())
def test_no_text_crashes_it(text: str) -> None:
    """Whatever somebody puts under the key is a value."""
    assert isinstance(decode(text), FleetDocument | NoDocument | Unreadable | Newer)


@given(DOCUMENTS, st.builds(Put, PRINTABLE, PRINTABLE, PRINTABLE) | st.builds(TakeOut, PRINTABLE, PRINTABLE), st.data())
def test_a_change_does_what_is_wished_and_nothing_else(
    document: FleetDocument, wish: Change, data: st.DataObject
) -> None:
    """For pods of its base model; for all others nothing changes, and the same wish twice is one change."""
    if document.entries:
        some = data.draw(st.sampled_from(document.entries))
        base = some.base or wish.base
        wish = Put(some.name, wish.path, base) if isinstance(wish, Put) else TakeOut(some.name, base)
    after = change(document, wish)
    if not isinstance(after, FleetDocument):
        assert isinstance(after, Unchanged) or document.serial == 2**53
        return
    assert (after.serial, decode(encode(after))) == (document.serial + 1, after)
    assert after.extra == document.extra
    if isinstance(wish, Put):
        assert wanted(after, wish.base)[wish.name].path == wish.path
        assert all(entry in after.entries for entry in document.entries if entry.key != (wish.name, wish.base))
    else:
        assert wish.name not in wanted(after, wish.base)
        assert all(entry in after.entries for entry in document.entries if entry.name != wish.name)
    assert change(after, wish) == Unchanged(after.serial) or after.serial == 2**53
    other = f"{wish.base}-other"
    if isinstance(wish, Put):
        assert wanted(after, other).keys() == wanted(document, other).keys()
    changed = difference(document, after, wish.base)
    assert {entry.name for entry in (*changed.added, *changed.removed, *changed.moved)} <= {wish.name}
    assert not any(fault_of(entry) for entry in after.entries)


NAMES = st.sampled_from("abcd")
PATHS = st.sampled_from(["/1", "/2"])
PODS = st.integers(0, 3)


class Fleet(RuleBasedStateMachine):
    """Pods that read and write one ConfigMap, which is wiped and put back from old copies, and pods that know nothing.

    What a person edits line by line is not here: that is what they wanted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.text: str | None = None
        self.past: list[str | None] = [None]
        self.pods: list[FleetDocument | None] = [None, None]
        self.taken: set[EntryKey] = set()
        self.known: list[set[EntryKey]] = [set(), set()]
        self.writes = 0

    def read(self, pod: int) -> None:
        """The pod's watch tells what there is."""
        reading = decode(self.text)
        assert isinstance(reading, FleetDocument | NoDocument)
        judged = judge(self.pods[pod], reading, accepted=False)
        if isinstance(judged, FleetDocument):
            self.pods[pod] = judged
            self.known[pod] |= {entry.key for entry in judged.entries}

    def write(self, pod: int, wish: Change) -> None:
        """The pod publishes, as `FleetPublisher` does."""
        reading = decode(self.text)
        assert isinstance(reading, FleetDocument | NoDocument)
        in_force = self.pods[pod]
        start = judge(in_force, reading, accepted=False)
        is_held = isinstance(start, Held)
        document = restored(in_force or FleetDocument(), reading) if isinstance(start, Held) else start
        changed = change(document, wish)
        assert not isinstance(changed, Refused)
        if isinstance(changed, FleetDocument):
            self.text = encode(changed)
        elif is_held:
            self.text = encode(rewritten(document))
        self.past.append(self.text)
        self.writes += 1
        self.read(pod)

    @precondition(lambda self: self.writes < 25)
    @rule(pod=PODS, name=NAMES, path=PATHS)
    def load(self, pod: int, name: str, path: str) -> None:
        """Somebody loads an adapter at a pod."""
        self.write(pod % len(self.pods), Put(name, path, "base"))
        assert (name, "base") in self.known[pod % len(self.pods)]

    @precondition(lambda self: self.writes < 25)
    @rule(pod=PODS, name=NAMES)
    def unload(self, pod: int, name: str) -> None:
        """Somebody unloads an adapter at a pod."""
        self.taken.add((name, "base"))
        self.write(pod % len(self.pods), TakeOut(name, "base"))

    @rule(pod=PODS)
    def hear(self, pod: int) -> None:
        """A pod hears of the newest document, after whatever it missed."""
        self.read(pod % len(self.pods))

    @rule()
    def wipe(self) -> None:
        """`kubectl replace` with the manifest."""
        self.text = None

    @rule()
    def empty(self) -> None:
        """A sync of a manifest with an empty document."""
        self.text = encode(FleetDocument())

    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        """A backup is restored."""
        self.text = data.draw(st.sampled_from(self.past))

    @precondition(lambda self: len(self.pods) < 4)
    @rule()
    def start(self) -> None:
        """A new pod with an empty disk."""
        self.pods.append(None)
        self.known.append(set())

    @invariant()
    def nothing_is_lost_that_nobody_unloaded(self) -> None:
        """Whatever happens to the ConfigMap, a pod drops only what somebody unloaded."""
        for in_force, known in zip(self.pods, self.known, strict=True):
            if in_force is not None:
                assert known - {entry.key for entry in in_force.entries} <= self.taken

    def teardown(self) -> None:
        """Once every pod has written, all of them have the same, and what any knew is there."""
        for pod in range(len(self.pods)):
            self.read(pod)
            self.write(pod, Put(f"last-{pod}", "/x", "base"))
        for pod in range(len(self.pods)):
            self.read(pod)
        assert len({encode(document) for document in self.pods if document is not None}) == 1
        there = {entry.key for document in self.pods if document is not None for entry in document.entries}
        assert set().union(*self.known) - self.taken <= there


TestFleet = Fleet.TestCase
TestFleet.settings = settings(deadline=None, stateful_step_count=30)
