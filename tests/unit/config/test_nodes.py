from __future__ import annotations

import pytest

from lora_sidecar.config import nodes
from lora_sidecar.config.load import parse
from lora_sidecar.config.nodes import MAX_DEPTH, compose
from lora_sidecar.core.errors import Problem
from tests.support.configs import SERVER, expect


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        pytest.param(b"", (0, "", "is empty (name at least one server"), id="nothing"),
        pytest.param(b"# only a comment\n", (0, "", "is empty"), id="comment"),
        pytest.param(b"---\n...\n", (2, "", "is empty"), id="empty-document"),
        pytest.param(b"\nhello\n", (2, "", "must be a mapping of keys, is a text"), id="text"),
        pytest.param(b"- a\n", (1, "", "must be a mapping of keys, is a list"), id="list"),
        pytest.param(b"\xff\xfes\x00", (1, "", "is not UTF-8 text (save the file as UTF-8)"), id="utf-16"),
        pytest.param(b"a: 1\r\nb: \xe9\n", (2, "", "is not UTF-8 text"), id="latin-1"),
        pytest.param(b"a: 1\nb: \x00\n", (2, "", "U+0000"), id="nul"),
        pytest.param(b"a: 1\n# \x1b[31m\n", (2, "", "U+001B"), id="terminal-escape"),
        pytest.param("a: 1\n# \u2028\n".encode(), (2, "", "U+2028"), id="line-separator"),
        pytest.param("a: 1\n# \x85\n".encode(), (2, "", "U+0085"), id="next-line"),
        pytest.param(b"a:\n\t- b\n", (2, "", "indent with spaces, not with tabs"), id="tab"),
        pytest.param(b"a: b: c\n", (1, "", "is not valid YAML: mapping values"), id="colon"),
        pytest.param(b"a: 1\nb: 'x\n\ny\n", (5, "", "that began on line 2"), id="open-quote"),
        pytest.param(b"a: @b\n", (1, "", "quote the value"), id="at-sign"),
        pytest.param(b'a: "\\UFFFFFFFF"\n', (1, "", "an escape or a directive is out of range"), id="escape"),
        pytest.param(b"%YAML 1." + b"9" * 5000 + b"\n---\na: b\n", (1, "", "is not valid YAML"), id="directive"),
        pytest.param(b"\n" + b"[" * 10_000, (2, "[0]" * 21, "nested more than 20 levels deep"), id="brackets"),
        pytest.param(b"? " * 10_000, (1, "", "nested more than 20 levels deep"), id="question-marks"),
        pytest.param(b"[" + b"a," * 130_000 + b"]", (1, "[119999]", "is one value too many"), id="many-values"),
        pytest.param(b"#" * (1024 * 1024 + 1), (0, "", "is 1048577 bytes long: at most 1048576"), id="too-large"),
    ],
)
def test_unreadable_file_is_refused_with_its_line(data: bytes, wanted: tuple[int, str, str]) -> None:
    """What is no YAML mapping in UTF-8, or would cost too much to read, is refused with a line and a reason."""
    expect(data, wanted)


def test_largest_accepted_file_is_read() -> None:
    """The size cap is the published one, to the byte."""
    data = SERVER.encode()
    data += b"#" * (1024 * 1024 - len(data))

    assert len(parse(data, "test.yaml").servers) == 1


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_counted_as_editors_count_them(end: str) -> None:
    """Whatever ends the lines, and with a byte order mark before them, a problem names the line an editor shows."""
    text = "\ufeff" + end.join(["", "servers:", "- name: a", "  url: http://h", "log:", "  level: loud", ""])

    expect(text, (6, "log.level", "must be one of debug, error, info, warning"))


@pytest.mark.parametrize(("opening", "closing"), [("{a: ", "}"), ("[", "]")])
def test_values_are_nested_to_the_limit_and_no_deeper(opening: str, closing: str) -> None:
    """A key is as deep as its value."""
    deepest, objections = compose(f"{opening * MAX_DEPTH}1{closing * MAX_DEPTH}".encode())
    refused, (problem,) = compose(f"{opening * (MAX_DEPTH + 1)}1{closing * (MAX_DEPTH + 1)}".encode())

    assert deepest is not None
    assert objections == []
    assert refused is None
    assert problem.rule == "is nested more than 20 levels deep"


@pytest.mark.parametrize(("fits", "too_many"), [("[1, 2, 3, 4]", "[1, 2, 3, 4, 5]"), ("a: {b: 1}", "a: {b: 1, c: 1}")])
def test_values_are_counted_to_the_limit(monkeypatch: pytest.MonkeyPatch, fits: str, too_many: str) -> None:
    """Lists, mappings, keys and single values each count as one."""
    monkeypatch.setattr(nodes, "MAX_NODES", 5)

    assert compose(fits.encode())[1] == []
    assert [one.rule for one in compose(too_many.encode())[1]] == ["is one value too many: at most 5 are read"]


def test_a_hidden_character_is_told_with_what_to_do() -> None:
    """By its number: it would not be seen."""
    rule = "has the character U+0000, which may not stand in a YAML file here"

    assert compose(b"a: 1\nb: \0\n") == (None, [Problem(2, "", rule, "remove it")])


def test_values_on_one_line_share_its_place() -> None:
    """Each node of PyYAML has two places of its own, which is two thirds of what a large config takes."""
    node, _ = compose(b"[a, b,\n c]")

    assert node is not None
    first, second, third = node.value
    assert first.start_mark is second.start_mark is first.end_mark
    assert (first.start_mark.line, third.start_mark.line) == (0, 1)
