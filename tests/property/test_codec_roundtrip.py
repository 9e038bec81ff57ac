from __future__ import annotations

import random
from typing import get_args

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lora_sidecar.checkpoint.decode import Checkpoint, Corrupt, Format, TooNew, decode
from lora_sidecar.checkpoint.encode import encode
from lora_sidecar.core.model import Adapter, Desired, Incarnation, Origin, Paused, Suspect, Withdrawn
from tests.support.checkpoints import sealed, sealed_tree

CLEAN_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
FORMATS = st.sampled_from(get_args(Format))


def checkpoints(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Checkpoint]:
    """Checkpoints with every field varied."""
    adapters = st.builds(
        Adapter,
        name=texts,
        path=texts,
        origin=st.sampled_from(Origin),
        required=st.booleans(),
        priority=st.integers(-(2**63), 2**63 - 1),
        is_3d_lora_weight=st.booleans(),
        listed_as=st.none() | texts,
        base=st.none() | texts,
    )
    return st.builds(
        Checkpoint,
        generation=st.integers(0, 2**63 - 1),
        server=texts,
        desired=st.builds(
            Desired,
            adapters=st.lists(adapters, max_size=6).map(lambda some: {f"{one.name}+": _named(one) for one in some}),
            incarnation=st.builds(
                Incarnation,
                number=st.integers(0, 2**63 - 1),
                start_time=st.none() | st.floats(allow_nan=False, allow_infinity=False),
            ),
            listed=st.frozensets(texts, max_size=4),
            orphaned=st.dictionaries(texts, texts, max_size=4),
            withdrawn=st.dictionaries(
                texts.map(lambda name: f"{name}-"),
                st.builds(Withdrawn, st.none() | adapters, st.booleans()),
                max_size=3,
            ),
            paused=st.none() | st.builds(Paused, texts),
            suspects=st.dictionaries(
                texts,
                st.builds(Suspect, path=texts, deaths=st.integers(0, 2**63 - 1), accused=st.booleans(), files=texts),
                max_size=3,
            ),
        ),
    )


def _named(adapter: Adapter) -> Adapter:
    """The adapter under a name that no withdrawn one has."""
    return replace(adapter, name=f"{adapter.name}+")


@settings(deadline=None)
@given(checkpoint=checkpoints(CLEAN_TEXT), format_=FORMATS)
def test_what_was_written_is_what_is_read(checkpoint: Checkpoint, format_: Format) -> None:
    """Any checkpoint, whatever its names hold, is read back exactly, floats to the last bit."""
    assert decode(encode(checkpoint, format_)) == checkpoint


@settings(deadline=None)
@given(checkpoint=checkpoints(CLEAN_TEXT), format_=FORMATS, seed=st.integers())
def test_order_in_memory_leaves_no_trace(checkpoint: Checkpoint, format_: Format, seed: int) -> None:
    """Equal checkpoints are equal bytes, so an unchanged state can be told from a changed one."""
    desired = checkpoint.desired
    names, released = list(desired.adapters), list(desired.orphaned)
    random.Random(seed).shuffle(names)
    random.Random(seed).shuffle(released)
    shuffled = Checkpoint(
        checkpoint.generation,
        checkpoint.server,
        Desired(
            adapters={name: desired.adapters[name] for name in names},
            incarnation=desired.incarnation,
            listed=frozenset(sorted(desired.listed)),
            orphaned={name: desired.orphaned[name] for name in released},
            withdrawn=dict(reversed(list(desired.withdrawn.items()))),
            paused=desired.paused,
            suspects={name: desired.suspects[name] for name in sorted(desired.suspects, reverse=True)},
        ),
    )

    assert encode(shuffled, format_) == encode(checkpoint, format_)


@settings(deadline=None)
@given(checkpoint=checkpoints(CLEAN_TEXT))
def test_yaml_tools_read_the_same_names(checkpoint: Checkpoint) -> None:
    """The YAML file is YAML, whatever the names hold: line breaks, colons, words that YAML would convert."""
    tree = yaml.load(encode(checkpoint, "yaml"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    assert tree["server"] == checkpoint.server
    assert [adapter["name"] for adapter in tree["adapters"]] == sorted(checkpoint.desired.adapters)
    assert tree["listed"] == sorted(checkpoint.desired.listed)
    assert {one["name"]: one["path"] for one in tree["orphaned"]} == checkpoint.desired.orphaned


@settings(deadline=None)
@given(checkpoint=checkpoints(CLEAN_TEXT), format_=FORMATS, data=st.data())
def test_any_damage_is_detected(checkpoint: Checkpoint, format_: Format, data: st.DataObject) -> None:
    """A stretch of the file replaced by other bytes, moved or lost, never reads as a checkpoint."""
    good = encode(checkpoint, format_)
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, len(good)))
    bad = good[:start] + data.draw(st.binary(max_size=64)) + good[end:]

    assert bad == good or isinstance(decode(bad), Corrupt)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CLEAN_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CLEAN_TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(payload=st.binary(max_size=256) | CLEAN_TEXT.map(lambda text: text.encode(errors="replace")), format_=FORMATS)
def test_no_payload_raises(payload: bytes, format_: Format) -> None:
    """Whatever stands behind a sum that holds, decoding gives a value."""
    assert isinstance(decode(sealed(payload, format_)), Checkpoint | Corrupt | TooNew)


@settings(deadline=None)
@given(
    field=st.sampled_from(["version", "generation", "server", "incarnation", "adapters", "listed", "orphaned", "x"]),
    value=JSON_VALUES,
    format_=FORMATS,
)
def test_no_value_in_any_field_raises(field: str, value: object, format_: Format) -> None:
    """A field of any JSON value is taken or refused, and a refusal is one printable line."""
    tree = {
        "version": 1,
        "generation": 0,
        "server": "s",
        "incarnation": {"number": 0, "start_time": None},
        "adapters": [],
        "listed": [],
        "orphaned": [],
    } | {field: value}
    read = decode(sealed_tree(tree, format_))

    assert isinstance(read, Checkpoint | TooNew) or read.reason.isprintable()
