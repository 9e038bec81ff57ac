from __future__ import annotations

import pytest

from lora_sidecar.cli.inject.manifests.edit import Draft, with_documents
from lora_sidecar.cli.inject.manifests.page import CannotEditError, page_of
from lora_sidecar.cli.inject.manifests.tree import NotYamlError
from lora_sidecar.cli.inject.manifests.value import Path, Value, walk


def appended(text: str, path: Path, *values: Value) -> str:
    """A text with items put into a list, taken out again to see that nothing is left of them."""
    draft = Draft(page_of(text))
    draft.append(path, values)
    page = draft.finish()

    back = Draft(page)
    said = walk(page.root.value(), path)
    assert isinstance(said, list)
    back.remove_items(path, range(len(said) - len(values), len(said)))
    assert back.finish().text == text
    return page.text


def added(text: str, path: Path, key: str, value: Value) -> str:
    """A text with a key put into a mapping, taken out again to see that nothing is left of it."""
    draft = Draft(page_of(text))
    draft.add(path, key, value)
    page = draft.finish()

    back = Draft(page)
    back.remove_key((*path, key))
    assert back.finish().text == text
    return page.text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a:\n- x\n", "a:\n- x\n- y\n"),
        ("a:\n  - x\nb: 1\n", "a:\n  - x\n  - y\nb: 1\n"),
        ("a:\n    -   x\nb: 1\n", "a:\n    -   x\n    - y\nb: 1\n"),
        ("a:\n  - x", "a:\n  - x\n  - y"),
        ("a:\r\n  - x\r\n", "a:\r\n  - x\r\n  - y\r\n"),
        ("a:\r\n  - x", "a:\r\n  - x\r\n  - y"),
        ("a:\n  - x  # its comment\n", "a:\n  - x  # its comment\n  - y\n"),
        (
            "a:\n  - x\n    # its comment\n  # of nobody\nb: 1\n",
            "a:\n  - x\n    # its comment\n  - y\n  # of nobody\nb: 1\n",
        ),
        ("a:\n  - x\n\n  # of b\nb: 1\n", "a:\n  - x\n  - y\n\n  # of b\nb: 1\n"),
        ("a:\n  - x\n    # the last line", "a:\n  - x\n    # the last line\n  - y"),
        ("a:\n  - {x: 1,\n     y: 2}\n", "a:\n  - {x: 1,\n     y: 2}\n  - y\n"),
        ("a:\n  - x:\n", "a:\n  - x:\n  - y\n"),
        ("a:\n  - x:  # nothing\nb: 1\n", "a:\n  - x:  # nothing\n  - y\nb: 1\n"),
        ("a:\n  - |\n    x\n\n\nb: 1\n", "a:\n  - |\n    x\n\n\n  - y\nb: 1\n"),
        ("a:\n  - |+\n    x\n\n\nb: 1\n", "a:\n  - |+\n    x\n\n\n  - y\nb: 1\n"),
        ("a:\n  - >-\n    x\n    # text\n# comment\n", "a:\n  - >-\n    x\n    # text\n  - y\n# comment\n"),
        ("a:\n  - x\n    z\n  # c\n", "a:\n  - x\n    z\n  - y\n  # c\n"),
        ('a:\n  - "x\n    # z"\n', 'a:\n  - "x\n    # z"\n  - y\n'),
        ("a: &a\n  - x\n", "a: &a\n  - x\n  - y\n"),
        ("b: &x 1\na:\n  - *x\n", "b: &x 1\na:\n  - *x\n  - y\n"),
        ("a: !!seq\n  - x\n", "a: !!seq\n  - x\n  - y\n"),
        ("a: []\n", 'a: ["y"]\n'),
        ("a: [ ]\n", 'a: ["y" ]\n'),
        ("a: [x]\n", 'a: [x, "y"]\n'),
        ("a: [ x, ]  # c\n", 'a: [ x, "y", ]  # c\n'),
        ("a: [x,\n    z]\n", 'a: [x,\n    z,\n    "y"]\n'),
        ("a: [\n  x # c\n]\n", 'a: [\n  x,\n  "y" # c\n]\n'),
        ("a:\nb:\n- z\n", "a:\n- y\nb:\n- z\n"),
        ("a:  # nothing\nb:\n  - z\n", "a:  # nothing\n  - y\nb:\n  - z\n"),
        ("a:", "a:\n  - y"),
        ('{"a": ["x"]}', '{"a": ["x", "y"]}'),
        ('{\n\t"a": [\n\t\t"x"\n\t]\n}\n', '{\n\t"a": [\n\t\t"x",\n\t\t"y"\n\t]\n}\n'),
        ("---\na:\n- x\n...\n", "---\na:\n- x\n- y\n...\n"),
        ("\ufeffa:\n- x\n", "\ufeffa:\n- x\n- y\n"),
    ],
)
def test_an_item_of_a_list(before: str, after: str) -> None:
    """An item stands where its list has its items, behind the last one and its comments, and comes out again."""
    assert appended(before, ("a",), "y") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a:\n  b: 1\n", "a:\n  b: 1\n  k:\n    - v\n"),
        ("a:\n  b:\n  - 1\n", "a:\n  b:\n  - 1\n  k:\n  - v\n"),
        ("a:\n    b: 1\n    # c\n      # d\nz: 1\n", "a:\n    b: 1\n    k:\n      - v\n    # c\n      # d\nz: 1\n"),
        ("a:\n  b: 1\n    # of b\nz: 1\n", "a:\n  b: 1\n    # of b\n  k:\n    - v\nz: 1\n"),
        ("a: {}\n", 'a: {"k": ["v"]}\n'),
        ("a: {b: 1}\n", 'a: {b: 1, "k": ["v"]}\n'),
        ("a: {b: {c: 1}, }\n", 'a: {b: {c: 1}, "k": ["v"], }\n'),
        ("a:\nz: 1\n", "a:\n  k:\n    - v\nz: 1\n"),
        ("a:", "a:\n  k:\n    - v"),
        ("a:\n  b: |-\n    x\nz: 1\n", "a:\n  b: |-\n    x\n  k:\n    - v\nz: 1\n"),
        (
            '{\n    "a": {\n        "b": 1\n    }\n}\n',
            '{\n    "a": {\n        "b": 1,\n        "k": [\n            "v"\n        ]\n    }\n}\n',
        ),
    ],
)
def test_a_key_of_a_mapping(before: str, after: str) -> None:
    """A key stands where its mapping has its keys, in lines or in braces, and comes out again."""
    assert added(before, ("a",), "k", ["v"]) == after


def test_edits_that_end_in_one_place() -> None:
    """What ends deeper comes first, whatever the order in which it is asked for."""
    text = "spec:\n  volumes:\n  - a\n"
    draft = Draft(page_of(text))
    draft.add((), "z", "1")
    draft.add(("spec",), "k", "v")
    draft.append(("spec", "volumes"), ["b", "c"])

    assert draft.finish().text == "spec:\n  volumes:\n  - a\n  - b\n  - c\n  k: v\nz: '1'\n"


def test_the_first_key_of_an_item() -> None:
    """A key that stands behind its item's dash is taken out, and the next one takes its place."""
    draft = Draft(page_of("a:\n- args:\n  - x\n  image: y\n- b\n"))
    draft.remove_key(("a", 0, "args"))

    assert draft.finish().text == "a:\n- image: y\n- b\n"


def test_items_at_both_ends_of_brackets() -> None:
    """Items of a list in brackets are taken out with one comma each, wherever they stand."""
    for indices, left in (
        ((0,), "[b, c]"),
        ((1,), "[a, c]"),
        ((2,), "[a, b]"),
        ((0, 1), "[c]"),
        ((0, 1, 2), "[]"),
        ((0, 2), "[b]"),
    ):
        draft = Draft(page_of("x: [a, b, c]\n"))
        draft.remove_items(("x",), indices)
        assert draft.finish().text == f"x: {left}\n"


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        ("b: &x [1]\na: *x\n", ("a",), "a is an alias (*x)"),
        ("b: &x [1]\na: *x\n", ("b",), "b is used elsewhere too, as *x"),
        ("b: &x {a: [1]}\nc: *x\n", ("b", "a"), "b is used elsewhere too, as *x"),
        ("b: &x {a: [1]}\nc:\n  <<: *x\n", ("c", "a"), "c.a is not written out here"),
        ("a: null\n", ("a",), "a is no list"),
        ("a: ~\n", ("a",), "a is no list"),
        ("a: x\n", ("a",), "a is no list"),
        ("a: {}\n", ("a",), "a is no list"),
        ("a:\n  - x\n  -\n", ("a",), "ends in an item that says nothing"),
        ("a:\n  - - # - z\n      x\n", ("a", 0), "has a comment between a dash and its item"),
        # The text would end with the end of a line that it has not.
        ("a:\n  - |\n    x", ("a",), "cannot be changed without changing something beside it"),
    ],
)
def test_places_that_are_left_alone(text: str, path: Path, reason: str) -> None:
    """What is shared, is no list or cannot be told apart from what stands beside it is refused with the reason."""
    with pytest.raises(CannotEditError) as error:
        appended(text, path, "y")

    assert error.value.reason == reason


def test_a_key_that_is_written_the_long_way() -> None:
    """A mapping whose keys stand behind question marks is not edited."""
    with pytest.raises(CannotEditError):
        added("a:\n  ? b\n  : 1\nz: 1\n", ("a",), "k", ["v"])


@pytest.mark.parametrize("text", ["a: [\n", "a: b: c\n", "a: &x\n- *x\n", "", "# nothing\n", "a: 1\n...\nb: 2\n", "\0"])
def test_texts_that_are_no_document(text: str) -> None:
    """What is not one document of YAML is refused with the place where it ends to be one."""
    with pytest.raises(NotYamlError) as error:
        page_of(text).root.value()

    assert 0 <= error.value.offset <= len(text)


def test_further_documents() -> None:
    """A document stands behind another with its line of dashes, and the end of the file is as it was."""
    made: dict[str, Value] = {"kind": "ConfigMap", "data": {"a": "x\ny\n"}}

    assert with_documents(page_of("a: 1\n"), [made]) == "a: 1\n---\nkind: ConfigMap\ndata:\n  a: |\n    x\n    y\n"
    assert with_documents(page_of("a: 1"), [made]) == "a: 1\n---\nkind: ConfigMap\ndata:\n  a: |\n    x\n    y"
    assert with_documents(page_of("a: 1\r\n"), [{"b": "1"}]) == "a: 1\r\n---\r\nb: '1'\r\n"
    assert with_documents(page_of("a: 1\n"), []) == "a: 1\n"
    with pytest.raises(CannotEditError):
        with_documents(page_of("{a: 1}\n"), [made])
