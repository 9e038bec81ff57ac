from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from lora_sidecar.config import Config, LogConfig, parse
from lora_sidecar.config_reading import Reading
from lora_sidecar.config_table import Section
from lora_sidecar.config_values import (
    Fault,
    absolute_path,
    bind_address,
    is_loopback,
    regular_expression,
    server_url,
    split_bind,
)
from lora_sidecar.errors import ConfigError, Problem
from lora_sidecar.strict_yaml import load, shown

MESSAGES = Path(__file__).parents[1] / "golden" / "config" / "messages.txt"
"""Config after config, each with the messages that it is refused with, behind `=> `."""


def cases() -> list[tuple[str, list[str]]]:
    """Each config of the file with its messages."""
    found = []
    for block in MESSAGES.read_text().rstrip("\n").split("\n\n"):
        lines = block.split("\n")
        config = [line for line in lines if not line.startswith("=> ")]
        found.append(("\n".join(config), [line.removeprefix("=> ") for line in lines if line.startswith("=> ")]))
    return found


@pytest.mark.parametrize(("config", "messages"), cases())
def test_a_refused_config_reads_as_it_is_written_down(config: str, messages: list[str]) -> None:
    """Line, key, rule and hint: all that the person has who is to mend it."""
    with pytest.raises(ConfigError) as caught:
        parse(f"{config}\n".encode(), "test.yaml")

    assert [str(problem) for problem in caught.value.problems] == messages
    assert messages


@pytest.mark.parametrize(("before", "hint"), [(99, 'did you mean "level"?'), (100, "")])
def test_a_similar_key_is_sought_for_the_first_hundred_objections(before: int, hint: str) -> None:
    """The search is slow, and a file with more mistakes than that is no config."""
    node, _ = load(b"levle: x")
    assert node is not None
    reading = Reading(Config, (Problem(1, "", "is wrong"),) * before)
    reading.read(Section(LogConfig), node, "log")

    assert [(one.key, one.hint) for one in reading.problems[before:]] == [("log.levle", hint)]


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("localhosts", False),
        ("LOCALHOST", False),
    ],
)
def test_who_reaches_an_address_is_known(host: str, inside: bool) -> None:
    """Only what is certainly this pod's own needs no token."""
    assert is_loopback(host) is inside


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("h:0", ("h", 0)),
        ("h:65535", ("h", 65535)),
        ("[::1]:80", ("::1", 80)),
        ("a.b.:1", ("a.b.", 1)),
        ("1.2.3.4:1", ("1.2.3.4", 1)),
        ("1a.2b:1", ("1a.2b", 1)),
        (f"{'.'.join(['a' * 63] * 3)}.{'a' * 61}:1", (f"{'.'.join(['a' * 63] * 3)}.{'a' * 61}", 1)),
    ],
)
def test_an_address_is_split(text: str, split: tuple[str, int]) -> None:
    """Names and numbers, up to the longest."""
    assert split_bind(text) == split
    assert bind_address(text) == text


@pytest.mark.parametrize(
    "host", ["[::1", "::1]", "1.2.3.", "1.2.3.400.", f"{'.'.join(['a' * 63] * 3)}.{'a' * 62}", "a_", "[a]b", "1.2.3.4."]
)
def test_what_a_resolver_reads_in_its_own_way_is_no_host(host: str) -> None:
    """Digits at the end are a plain address, or nothing."""
    assert not isinstance(split_bind(f"{host}:1"), tuple)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("/", "/"),
        ("/a/", "/a"),
        ("/a//", "/a"),
        ("/aX", "/aX"),
        ("/.a/..b/c.", "/.a/..b/c."),
    ],
)
def test_an_absolute_path_loses_only_the_slash_at_its_end(written: str, read: str) -> None:
    """Dots are steps only where they stand alone."""
    assert absolute_path(written) == read


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("http://h/X/", "http://h/X"),
        ("http://h:1", "http://h:1"),
        ("http://h:65535", "http://h:65535"),
        ("http://h/a.b/~c-d_e", "http://h/a.b/~c-d_e"),
        ("http://h.", "http://h."),
        ("unix:///X", "unix:///X"),
        ("unix:///a.b", "unix:///a.b"),
    ],
)
def test_a_url_keeps_what_is_its_own(written: str, read: str) -> None:
    """Letters at its end, ports, and dots in names."""
    assert server_url(written) == read


def test_a_doubtful_expression_is_refused_whatever_warnings_are_shown() -> None:
    """By default Python shows them to nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = regular_expression("[[a]")

    assert found == Fault("is not a regular expression: Possible nested set at position 1")


def test_the_words_about_an_expression_are_bounded() -> None:
    """They may repeat the expression."""
    found = regular_expression(f"(?P={'a' * 200})")

    assert isinstance(found, Fault)
    assert len(found.rule) == len("is not a regular expression: ") + 120


def test_a_text_is_shown_without_anything_that_a_terminal_would_act_on() -> None:
    """Quotes and strokes with a stroke before them, the rest by number."""
    assert shown('a"b\\c\x1bd') == '"a\\"b\\\\c\\u001bd"'
    assert shown("aXb") == '"aXb"'
    assert shown("a" * 60) == '"' + "a" * 60 + '"'
    assert shown("a" * 61) == '"' + "a" * 60 + '…"'
