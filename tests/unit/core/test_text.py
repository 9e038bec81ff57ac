from __future__ import annotations

import pytest

from lora_sidecar.core.text import NAME_LENGTH_SHOWN, encodable, printable


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("sql-assistant", NAME_LENGTH_SHOWN, "sql-assistant"),
        ("שלום 日本語", NAME_LENGTH_SHOWN, "שלום 日本語"),
        ("a\nb\x1b[2J\x00", NAME_LENGTH_SHOWN, "a\ufffdb\ufffd[2J\ufffd"),
        ("rtl \u202egnp", NAME_LENGTH_SHOWN, "rtl \ufffdgnp"),
        ("half \ud800", NAME_LENGTH_SHOWN, "half \ufffd"),
        ("abcd", 4, "abcd"),
        ("abcde", 4, "abc…"),
        ("a\n\ncde", 4, "a\ufffd\ufffd…"),
    ],
)
def test_what_is_shown_of_a_text(text: str, limit: int, shown: str) -> None:
    """A line of it, that ends, and that every encoding can carry."""
    assert printable(text, limit) == shown
    assert printable(shown, limit) == shown
    shown.encode()


def test_name_is_cut_where_no_limit_is_given() -> None:
    """Whoever forgets the limit has one."""
    assert len(printable("x" * 10_000)) == NAME_LENGTH_SHOWN


@pytest.mark.parametrize(
    ("text", "told"),
    [("sql", "sql"), ("日本\n", "日本\n"), ("half \ud800 of", "half \\ud800 of"), ("\\ud800", "\\ud800")],
)
def test_what_a_program_is_told_of_a_text(text: str, told: str) -> None:
    """The text itself, but for what UTF-8 cannot carry."""
    assert encodable(text) == told
