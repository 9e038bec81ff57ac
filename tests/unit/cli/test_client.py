"""What the commands that ask a sidecar draw for a terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from lora_sidecar.cli.client import table

NOW = datetime(2026, 1, 1, 0, 2, tzinfo=UTC)
SINCE = "2026-01-01T00:00:00.000Z"


def an_adapter(name: str, **fields: Any) -> dict[str, Any]:
    """One of `GET /v1/adapters`."""
    plain = {"path": "/a", "origin": "requested", "required": False, "state": "listed", "reason": "", "proven": False}
    return {"server": "vllm", "name": name, "since": SINCE, "priority": 0, **plain, **fields}


def drawn(*adapters: dict[str, Any], width: int | None = None) -> list[str]:
    """The lines of the table of adapters."""
    server = {
        "server": "vllm",
        "state": "up",
        "since": SINCE,
        "detail": "",
        "failing": "",
        "heartbeat": SINCE,
        "incarnation": 2,
        "generation": 7,
        "conditions": [],
    }
    return table({"servers": [server], "adapters": list(adapters)}, NOW, width).splitlines()[2:]


def test_columns_stand_below_their_headings() -> None:
    """Each as wide as what is in it, with nothing behind the last one."""
    lines = drawn(an_adapter("sql", required=True), an_adapter("support-de", state="held", reason="paused: the disk"))
    assert lines == [
        "  NAME        STATE    ORIGIN     SINCE    PATH    REASON",
        "  sql*        listed   requested  2m       /a",
        "  support-de  held     requested  2m       /a      paused: the disk",
    ]


def test_nothing_known_is_said() -> None:
    """A sidecar without adapters has no empty table."""
    assert drawn() == ["  no adapters"]


def test_what_is_not_known_has_a_dash_and_what_is_proven_says_so() -> None:
    """Of a withdrawn adapter the config may say nothing."""
    gone = an_adapter("gone", path=None, origin=None, since=None, state="withdrawn", reason="unloaded by request")
    lines = drawn(gone, an_adapter("good", proven=True))
    assert lines[1].split(maxsplit=5) == ["gone", "withdrawn", "-", "-", "-", "unloaded by request"]
    assert lines[2].split()[-1] == "proven"


@pytest.mark.parametrize("name", ["007", "1.50", "1e3", "-0", "nan", "0x10", "True"])
def test_name_that_looks_like_a_number_stays_as_it_is(name: str) -> None:
    """It is what has to be typed to unload it."""
    assert drawn(an_adapter(name), an_adapter("12"))[1].split()[0] == name


def test_what_does_not_print_is_replaced_and_what_is_too_wide_is_cut() -> None:
    """A name cannot clear the screen, begin a line or turn the direction of the text."""
    lines = drawn(an_adapter("a\x1b[2J\nb\u202e"), an_adapter("\ud83d" + "c" * 256), width=40)
    assert len(lines) == 3
    assert all(line.isprintable() and len(line) <= 40 for line in lines)
    assert lines[1].startswith("  a\ufffd[2J\ufffdb\ufffd")
    assert lines[2].endswith("…")
