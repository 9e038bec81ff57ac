from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
from msgspec.structs import replace

from lora_sidecar.checkpoint import lines
from lora_sidecar.checkpoint.decode import Checkpoint, Format, decode
from lora_sidecar.checkpoint.encode import LONG as APART
from lora_sidecar.checkpoint.encode import Encoder, encode
from lora_sidecar.checkpoint.lines import Lines
from lora_sidecar.core.model import Adapter, Desired, Incarnation, Origin

BETWEEN = b"|"
BLOCK = 64
MANY = {f"a{number:05}": Adapter(f"a{number:05}", f"/a/{number}", Origin.LEARNED) for number in range(500)}


def lines_of(adapters: Mapping[str, Adapter], listed: Collection[str] = ()) -> tuple[bytes, bytes]:
    """Both texts, where nothing was kept."""
    return whole(Lines(BETWEEN).of(adapters, listed))


def whole(made: tuple[list[bytes], list[bytes]]) -> tuple[bytes, bytes]:
    """Both texts in one piece each."""
    lines, names = made
    return b"".join(lines), b"".join(names)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that 500 adapters have several."""
    monkeypatch.setattr(lines, "BLOCK", BLOCK)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the adapters whose lines were written, as they are."""
    names: list[str] = []
    usual = lines._adapter

    def noting(adapter: Adapter) -> str:
        names.append(adapter.name)
        return usual(adapter)

    monkeypatch.setattr(lines, "_adapter", noting)
    return names


def test_only_what_changed_is_encoded(written: list[str]) -> None:
    """Of 500 adapters one has another path, one is new and one is gone: two lines are written, and one forgotten."""
    kept = Lines(BETWEEN)
    kept.of(MANY, MANY.keys())
    written.clear()
    later = {name: adapter for name, adapter in MANY.items() if name != "a00007"}
    later |= {"a00300": replace(MANY["a00300"], path="/b"), "new": Adapter("new", "/new", Origin.REQUESTED)}

    assert whole(kept.of(later, later.keys())) == lines_of(later, later.keys())

    assert written[:2] == ["a00300", "new"]
    written.clear()
    kept.of(later | {"a00007": MANY["a00007"]}, ())
    assert written == ["a00007"]


@pytest.mark.parametrize("count", [1, 200])
def test_a_save_that_breaks_off_leaves_nothing_out(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory half-way through the new lines: the next save has them all, as if nothing had been kept."""
    kept = Lines(BETWEEN)
    later = MANY | {f"b{number:03}": Adapter(f"b{number:03}", "/b", Origin.LEARNED) for number in range(count)}
    kept.of(MANY, MANY.keys())
    with monkeypatch.context() as patch:
        patch.setattr(lines, "_sound", _out_of_memory)
        with pytest.raises(MemoryError):
            kept.of(later, later.keys())

    assert whole(kept.of(later, later.keys())) == lines_of(later, later.keys())


def _out_of_memory(made: list[str]) -> list[bytes]:
    raise MemoryError(len(made))


def test_equal_adapters_that_are_not_the_same_are_written_anew(written: list[str]) -> None:
    """What was kept is found by the very value it was made of: to compare all fields would cost what it saves."""
    kept = Lines(BETWEEN)
    kept.of(MANY, ())
    written.clear()

    assert whole(kept.of(MANY | {"a00001": replace(MANY["a00001"])}, ())) == lines_of(MANY)

    assert written[0] == "a00001"


@pytest.mark.parametrize("listed", [frozenset(), frozenset({"a00499", "a00001"}), frozenset({"a00001", "gone"})])
def test_names_that_are_listed(listed: frozenset[str]) -> None:
    """None of what is desired, some of it, or a name that is not desired any more, each in the order of the names."""
    expected = "".join(f'|"{name}"' for name in sorted(listed)).encode()
    kept = Lines(BETWEEN)
    assert [whole(kept.of(MANY, names))[1] for names in (listed, MANY.keys(), listed)][::2] == [expected, expected]


def test_a_change_touches_its_block_alone() -> None:
    """The other texts are the very objects of before; where most adapters are gone, their blocks are gone as well."""
    kept = Lines(BETWEEN)
    before, names = kept.of(MANY, MANY.keys())
    assert [len(text.split(BETWEEN)) - 1 for text in before] == [BLOCK] * 7 + [500 - 7 * BLOCK]
    assert [len(text.split(BETWEEN)) - 1 for text in names] == [BLOCK] * 7 + [500 - 7 * BLOCK]

    later = {name: one for name, one in MANY.items() if name != "a00130"} | {"a00128x": MANY["a00000"]}
    after, _ = kept.of(later, ())
    assert [a is b for a, b in zip(before, after, strict=True)] == [True, True, False, True, True, True, True, True]

    few = {name: one for name, one in later.items() if name >= "a00490"}
    assert len(kept.of(few, ())[0]) == 1
    assert kept.of({}, ()) == ([], [])
    assert whole(kept.of(MANY, ())) == lines_of(MANY)


@pytest.mark.parametrize(("more", "blocks"), [(BLOCK, 1), (BLOCK + 1, 3)])
def test_a_block_that_has_grown_is_cut(more: int, blocks: int) -> None:
    """At more than twice its length: into as many whole ones as there are, and the rest."""
    kept = Lines(BETWEEN)
    adapters = dict(list(MANY.items())[:BLOCK])
    kept.of(adapters, ())
    adapters = dict(list(MANY.items())[: BLOCK + more])

    texts, _ = kept.of(adapters, ())
    assert [len(text.split(BETWEEN)) - 1 for text in texts] == ([2 * BLOCK] if blocks == 1 else [BLOCK, BLOCK, 1])


@pytest.mark.parametrize("format_", ["json", "yaml"])
def test_a_checkpoint_with_kept_lines_is_the_same_file(format_: Format) -> None:
    """Lines of an earlier checkpoint make no difference to the bytes, nor those of another one."""
    kept = Encoder(format_)
    for adapters in (
        MANY,
        dict(list(MANY.items())[:50]),
        {"\ud800\x7f\n": Adapter("\ud800\x7f\n", "é", Origin.LEARNED)},
        {},
    ):
        checkpoint = Checkpoint(1, "vllm", Desired(adapters, Incarnation(1), frozenset(adapters)))
        assert b"".join(kept.pieces(checkpoint)) == encode(checkpoint, format_)


@pytest.mark.parametrize("format_", ["json", "yaml"])
def test_long_values_are_not_copied_into_the_whole(format_: Format) -> None:
    """From 8 KiB on a value is a piece by itself; what is shorter is put together with its neighbours."""
    for length, apart in ((APART - 1, False), (APART, True), (APART + 1, True)):
        value = b'"%b"' % (b"s" * (length - 2))
        checkpoint = Checkpoint(1, value[1:-1].decode(), Desired({}, Incarnation(1)))
        made = Encoder(format_).pieces(checkpoint)
        assert (value in made) is apart
        assert decode(b"".join(made)) == checkpoint
    assert len(Encoder(format_).pieces(Checkpoint(1, "s", Desired({}, Incarnation(1))))) == 1
