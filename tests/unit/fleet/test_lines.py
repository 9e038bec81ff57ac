from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_sidecar.fleet.lines import LINE_CAP, LineSplitter, LineTooLongError


@given(st.lists(st.binary(min_size=1).map(lambda line: line.replace(b"\n", b"")).filter(bytes.strip)), st.data())
def test_lines_are_the_same_however_they_come(lines: list[bytes], data: st.DataObject) -> None:
    """The network cuts where it likes: within a line, at its end, or many at once."""
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    splitter = LineSplitter()
    found: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += splitter.feed(stream[start:end])
    assert found == lines


def test_a_line_of_a_mebibyte_is_whole() -> None:
    """Where the HTTP library's own reader stops at 128 KiB."""
    splitter = LineSplitter()
    assert splitter.feed(b"x" * 1024 * 1024) == []
    assert splitter.feed(b"y\n") == [b"x" * 1024 * 1024 + b"y"]


def test_what_has_no_end_does_not_fill_the_memory() -> None:
    """Beyond 2 MiB it is no watch, and the connection is of no use."""
    splitter = LineSplitter()
    splitter.feed(b"x" * LINE_CAP)
    with pytest.raises(LineTooLongError):
        splitter.feed(b"x")


def test_the_cap_is_of_one_line_and_not_of_the_stream() -> None:
    """A watch may go on for hours."""
    splitter = LineSplitter(10)
    for _ in range(10):
        assert splitter.feed(b"0123456789\n") == [b"0123456789"]
    with pytest.raises(LineTooLongError):
        splitter.feed(b"0123456789a\n")


def test_empty_lines_are_left_out() -> None:
    """Some proxies keep a connection alive by them."""
    assert LineSplitter().feed(b"\n \n{}\r\n\n") == [b"{}\r"]
