from __future__ import annotations

import pytest

from lora_sidecar.config.keys import child, shown


@pytest.mark.parametrize(
    ("name", "path"),
    [("level", "log.level"), ("Zone_9-z", "log.Zone_9-z"), ("a b", 'log."a b"'), ("a.b", 'log."a.b"'), ("", 'log.""')],
)
def test_a_key_stands_in_a_path_as_it_is_written_where_it_is_a_word(name: str, path: str) -> None:
    """In quotes otherwise, so that a path is read in one way."""
    assert child("log", name) == path
    assert child("", name) == path.removeprefix("log.")


def test_a_text_is_shown_without_anything_that_a_terminal_would_act_on() -> None:
    """Quotes and strokes with a stroke before them, the rest by number."""
    assert shown('a"b\\c\x1bd') == '"a\\"b\\\\c\\u001bd"'
    assert shown("aXb") == '"aXb"'
    assert shown("a" * 60) == '"' + "a" * 60 + '"'
    assert shown("a" * 61) == '"' + "a" * 60 + '…"'
