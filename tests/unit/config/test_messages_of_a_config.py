from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from lora_sidecar.config.reading import Reading
from lora_sidecar.config.settings import Config, LogConfig, ServerConfig, parse
from lora_sidecar.config.strict_yaml import load, shown
from lora_sidecar.config.table import Kind, Listing, Section, Text
from lora_sidecar.config.values import (
    Fault,
    absolute_path,
    bind_address,
    is_loopback,
    server_url,
    split_bind,
)
from lora_sidecar.core.errors import ConfigError, Problem
from tests.support.paths import ROOT

MESSAGES = ROOT / "tests" / "golden" / "config" / "messages.txt"
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


@pytest.mark.parametrize(("mistakes", "last"), [(100, "k99"), (101, ""), (102, "")])
def test_more_than_a_hundred_mistakes_are_counted(mistakes: int, last: str) -> None:
    """A hundred are all told; what is more has one line, without a place and with what to do."""
    text = "servers: [{name: a, url: 'http://h'}]\n" + "".join(f"k{number}: 1\n" for number in range(mistakes))
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "test.yaml")

    problems = caught.value.problems
    assert len(problems) == min(mistakes, 101)
    assert problems[99].key == "k99"
    assert problems[-1].key == last
    if mistakes > 100:
        assert problems[-1] == Problem(0, "", f"has {mistakes - 100} more problems", "mend these first")


def read(kind: Kind, text: str) -> tuple[Any, list[str]]:
    """The value of a text by its kind, and the objections to it."""
    node, _ = load(text.encode())
    assert node is not None
    reading = Reading(Config)
    return reading.read(kind, node, "here"), [f"{one.key}: {one.rule}" for one in reading.problems]


def test_what_was_objected_to_is_no_value() -> None:
    """Neither what holds it, nor a section that lacks what it needs: no rule between keys goes by them."""
    assert read(Section(ServerConfig), "url: http://h") == (UNSET, ["here.name: is missing"])
    assert read(Section(ServerConfig), "{name: a, url: 7}")[0] is UNSET
    assert read(Listing(2, item=Text()), "[a, 7]")[0] is UNSET
    assert read(Listing(2, item=Text()), "[a, b]") == (("a", "b"), [])


def test_limits_are_what_is_still_accepted() -> None:
    """The first that is too many, or too long, is one more than they say."""
    assert read(Listing(2, item=Text()), "[a, b, c]") == (UNSET, ["here: has 3 entries: at most 2 are accepted"])
    assert read(Text(longest=3), "abc") == ("abc", [])
    assert read(Text(longest=3), "abcd") == (UNSET, ["here: is 4 characters long: at most 3 are accepted"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # Nobody can say what a server's name would have been.
        ("adapters: [{name: a, path: /a, servers: [s]}]", ["servers"]),
        ("servers: 7\nadapters: [{name: a, path: /a, servers: [s]}]", ["servers"]),
        ("servers: [{url: 'http://h'}]\nadapters: [{name: a, path: /a, servers: [s]}]", ["servers[0].name"]),
        # One that is no text hides no other.
        (
            "servers: [{name: s, url: 'http://h'}]\nadapters: [{name: a, path: /a, servers: [7, t, s, s]}]",
            ["adapters[0].servers[0]", "adapters[0].servers[1]", "adapters[0].servers[3]"],
        ),
        # A limit that was objected to is none to hold another against.
        (
            "servers: [{name: s, url: 'http://h'}]\nrestore: {backoff: {initial: 10m, max: soon}}",
            ["restore.backoff.max"],
        ),
        (
            "servers: [{name: s, url: 'http://h'}]\nrestore: {backoff: {initial: soon, max: 10ms}}",
            ["restore.backoff.initial"],
        ),
    ],
)
def test_one_mistake_gives_one_message(text: str, told: list[str]) -> None:
    """A key that was objected to takes part in no rule between keys."""
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "test.yaml")

    assert sorted(problem.key for problem in caught.value.problems) == told


@pytest.mark.parametrize(
    ("url", "read_as"),
    [
        ("http://h/v1X", "http://h/v1X"),
        ("http://h/a://b", Fault("has a path that is not a plain prefix", "such as http://127.0.0.1:8000/prefix")),
    ],
)
def test_a_url_is_taken_apart_from_the_left(url: str, read_as: str | Fault) -> None:
    """Its first :// ends the scheme, and only /v1 itself is the API's."""
    assert server_url(url) == read_as


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
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
        (":9400", ("", 9400)),
        ("0.0.0.0:9400", ("0.0.0.0", 9400)),
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


def test_a_text_is_shown_without_anything_that_a_terminal_would_act_on() -> None:
    """Quotes and strokes with a stroke before them, the rest by number."""
    assert shown('a"b\\c\x1bd') == '"a\\"b\\\\c\\u001bd"'
    assert shown("aXb") == '"aXb"'
    assert shown("a" * 60) == '"' + "a" * 60 + '"'
    assert shown("a" * 61) == '"' + "a" * 60 + '…"'
