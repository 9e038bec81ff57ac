from __future__ import annotations

import json
from typing import Any

import pytest

from lora_sidecar.checkpoint.decode import Corrupt, Format, decode
from tests.support.checkpoints import ADAPTER, PAYLOAD, sealed, sealed_tree

WITHDRAWN = {"name": "a", "pending": True, "declared": None}
SUSPECT = {"name": "a", "path": "/a", "deaths": 1, "accused": False, "files": ""}


def broken(reason: str) -> Corrupt:
    """A file whose sum holds, and that breaks a rule."""
    return Corrupt(f"the checksum holds, but the content does not: {reason}")


@pytest.mark.parametrize("format_", ["json", "yaml"])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"adapters": [ADAPTER, ADAPTER]}, "adapters holds 'a' twice"),
        ({"listed": ["b", "a", "b", "a"]}, "listed holds 'b' twice"),
        ({"orphaned": [{"name": "a", "path": "/a"}, {"name": "a", "path": "/b"}]}, "orphaned holds 'a' twice"),
        ({"withdrawn": [WITHDRAWN, WITHDRAWN]}, "withdrawn holds 'a' twice"),
        ({"suspects": [SUSPECT, SUSPECT]}, "suspects holds 'a' twice"),
        ({"adapters": [ADAPTER], "withdrawn": [WITHDRAWN]}, "'a' is desired and withdrawn"),
        ({"generation": -1}, "Expected `int` >= 0 - at `$.generation`"),
        ({"incarnation": {"number": -1, "start_time": None}}, "Expected `int` >= 0 - at `$.incarnation.number`"),
        ({"suspects": [SUSPECT | {"deaths": -1}]}, "Expected `int` >= 0 - at `$.suspects[0].deaths`"),
    ],
)
def test_a_broken_rule_is_named(fields: dict[str, Any], reason: str, format_: Format) -> None:
    """With the name that breaks it."""
    assert decode(sealed_tree(PAYLOAD | fields, format_)) == broken(reason)


def test_what_is_just_allowed_is_read() -> None:
    """A first generation, an incarnation before any, a suspect that killed nobody yet."""
    fields = {
        "generation": 0,
        "incarnation": {"number": 0, "start_time": 0.0},
        "suspects": [SUSPECT | {"deaths": 0}],
    }

    assert not isinstance(decode(sealed_tree(PAYLOAD | fields, "json")), Corrupt)


@pytest.mark.parametrize("start_time", ["1e999", "-1e999"])
def test_an_endless_start_time_is_named(start_time: str) -> None:
    """As a number too large for a float reads."""
    text = json.dumps(PAYLOAD)[1:].replace('"start_time": null', f'"start_time": {start_time}')

    assert decode(sealed(text.encode(), "json")) == broken("the start time is not finite")


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_a_word_that_python_takes_for_a_number_is_refused(word: str) -> None:
    """JSON has none of them."""
    text = json.dumps(PAYLOAD)[1:].replace('"start_time": null', f'"start_time": {word}')

    assert decode(sealed(text.encode(), "json")) == broken(f"{word} is not a number")


def test_a_name_that_stands_twice_in_an_object_is_named() -> None:
    """The first one that does."""
    assert decode(sealed(b'"a": 1, "b": 1, "b": 2, "a": 2}', "json")) == broken("'b' stands twice in one object")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("version: 1", "the last line does not end"),
        ("version: 1\nversion: 1\n", "line 4: version stands twice"),
        ("version: 1\nserver\n", "line 4 is neither a field nor an item"),
        ("- 1\n", "line 3 is neither a field nor an item"),
        ("version: 1\n- 1\n", "line 4 is neither a field nor an item"),
        ("listed:\n- 1\nversion: 1\n- 1\n", "line 6 is neither a field nor an item"),
    ],
)
def test_a_line_that_does_not_fit_is_numbered(lines: str, reason: str) -> None:
    """As an editor counts the lines of the file."""
    assert decode(sealed(lines.encode(), "yaml")) == broken(reason)
