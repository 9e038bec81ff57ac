from __future__ import annotations

import pytest

from lora_sidecar.config import strict_yaml
from lora_sidecar.config.strict_yaml import MAX_DEPTH, child, load
from lora_sidecar.core.errors import Problem


@pytest.mark.parametrize(("opening", "closing"), [("{a: ", "}"), ("[", "]")])
def test_values_are_nested_to_the_limit_and_no_deeper(opening: str, closing: str) -> None:
    """A key is as deep as its value."""
    deepest, objections = load(f"{opening * MAX_DEPTH}1{closing * MAX_DEPTH}".encode())
    refused, (problem,) = load(f"{opening * (MAX_DEPTH + 1)}1{closing * (MAX_DEPTH + 1)}".encode())

    assert deepest is not None
    assert objections == ()
    assert refused is None
    assert problem.rule == "is nested more than 20 levels deep"


@pytest.mark.parametrize(("fits", "too_many"), [("[1, 2, 3, 4]", "[1, 2, 3, 4, 5]"), ("a: {b: 1}", "a: {b: 1, c: 1}")])
def test_values_are_counted_to_the_limit(monkeypatch: pytest.MonkeyPatch, fits: str, too_many: str) -> None:
    """Lists, mappings, keys and single values each count as one."""
    monkeypatch.setattr(strict_yaml, "MAX_NODES", 5)

    assert load(fits.encode())[1] == ()
    assert [one.rule for one in load(too_many.encode())[1]] == ["is one value too many: at most 5 are read"]


def test_a_hidden_character_is_told_with_what_to_do() -> None:
    """By its number: it would not be seen."""
    rule = "has the character U+0000, which may not stand in a YAML file here"

    assert load(b"a: 1\nb: \0\n") == (None, (Problem(2, "", rule, "remove it"),))


@pytest.mark.parametrize(
    ("name", "path"),
    [("level", "log.level"), ("Zone_9-z", "log.Zone_9-z"), ("a b", 'log."a b"'), ("a.b", 'log."a.b"'), ("", 'log.""')],
)
def test_a_key_stands_in_a_path_as_it_is_written_where_it_is_a_word(name: str, path: str) -> None:
    """In quotes otherwise, so that a path is read in one way."""
    assert child("log", name) == path
    assert child("", name) == path.removeprefix("log.")
