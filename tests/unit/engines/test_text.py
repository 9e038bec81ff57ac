from __future__ import annotations

import pytest

from lora_sidecar.engines.text import MESSAGE_LIMIT, error_text, is_route_absent, sentence


@pytest.mark.parametrize(
    ("status", "body", "absent"),
    [
        (404, b'{"detail":"Not Found"}', True),
        (404, b"", True),
        (404, b"[]", True),
        (404, b'{"error":{"message":"x"}}', False),
        (404, b'{"object":"error","message":"x"}', False),
        (404, b'{"error":"x"}', False),
        (405, b'{"detail":"Method Not Allowed"}', False),
        (200, b"", False),
        (500, b'{"detail":"Not Found"}', False),
    ],
)
def test_absent_route_is_told_from_absent_adapter(status: int, body: bytes, absent: bool) -> None:
    """The router's 404 and a handler's 404 have different bodies."""
    assert is_route_absent(status, body) is absent


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"message":"a"}}', "a"),
        (b'{"message":"a","error":5}', "a"),
        (b'{"error":"a"}', "a"),
        (b'{"detail":"a"}', "a"),
        (b'{"detail":[{"loc":"x"}]}', '{"detail":[{"loc":"x"}]}'),
        (b"plain text", "plain text"),
        (b"", ""),
        (b'{"error":{"message":"a\\n\\u001b[2J  b"}}', "a \ufffd[2J b"),
        (b"\xff", "\ufffd"),
    ],
)
def test_servers_own_sentence_is_found(body: bytes, text: str) -> None:
    """Wherever a version of vLLM, or something in front of it, puts it."""
    assert error_text(body) == text


@pytest.mark.parametrize("text", ["x" * 10**6, "\n" * 10**6, "\x1b" * 500, "\ud800" * 500, "😀" * 500, "a " * 500, ""])
def test_sentence_is_one_bounded_printable_line(text: str) -> None:
    """Whatever a server says fits on a line of the log."""
    said = sentence(text)

    assert len(said) <= MESSAGE_LIMIT
    assert said.isprintable()
    said.encode()


def test_a_sentence_is_cut_where_it_is_too_long_and_not_before() -> None:
    """Of a text without end only the beginning is looked at, whatever is in it."""
    assert sentence("a" * MESSAGE_LIMIT) == "a" * MESSAGE_LIMIT
    assert sentence("a" * (MESSAGE_LIMIT + 1)) == "a" * (MESSAGE_LIMIT - 1) + "…"
    assert sentence(" " * (4 * MESSAGE_LIMIT - 1) + "ab") == "a"
