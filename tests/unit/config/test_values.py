from __future__ import annotations

import time

import pytest

from lora_sidecar.config.load import parse
from lora_sidecar.config.values import (
    Fault,
    absolute_path,
    bind_address,
    duration,
    format_duration,
    is_loopback,
    matches,
    reachable,
    regular_expression,
    server_url,
    split_bind,
)
from tests.support.configs import server


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("HTTP://Vllm.Svc:080/Team/a/", "http://vllm.svc/Team/a"),
        ("http://h/team/v1", "http://h/team/v1"),
        ("https://h:443", "https://h"),
        ("https://h:80", "https://h:80"),
        ("'http://[2001:DB8::1]:80'", "http://[2001:db8::1]"),
        ("unix:///run/vllm/@vllm.sock", "unix:///run/vllm/@vllm.sock"),
        (f"unix:///{'a' * 106}", f"unix:///{'a' * 106}"),
    ],
)
def test_url_is_read_into_one_spelling(written: str, read: str) -> None:
    """Two spellings of one server are one url, to which a path can be appended."""
    assert parse(server(url=written).encode(), "test.yaml").servers[0].url == read


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("5s", 5.0),
        ("100ms", 0.1),
        ("1m30s", 90.0),
        ("2h", 7200.0),
        ("0.5s", 0.5),
        ("1h1m1s1ms", 3661.001),
        ("1.5m", 90.0),
    ],
)
def test_duration_is_read_in_seconds(written: str, seconds: float) -> None:
    """Each unit counts for what it says, alone and together."""
    assert duration(written) == pytest.approx(seconds, abs=1e-12)


@pytest.mark.parametrize("milliseconds", [0, 1, 10, 999, 1000, 5000, 90_000, 600_000, 3_600_000, 86_400_000, 5_025_678])
def test_duration_is_written_as_it_is_read(milliseconds: int) -> None:
    """What a message prints can be copied into the file."""
    assert duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


def test_duration_is_written_in_its_largest_units() -> None:
    """A person reads 1m30s and not 90000 ms."""
    assert [format_duration(s) for s in (0, 0.1, 1, 90, 600, 3600, 0.0005)] == [
        "0s",
        "100ms",
        "1s",
        "1m30s",
        "10m",
        "1h",
        "0.0005s",
    ]


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


@pytest.mark.parametrize(
    ("pattern", "name", "whole"),
    [
        ("team-.*", "team-a", True),
        ("team-.*", "my-team-a", False),
        ("[a-z]+(-[a-z0-9]+)*", "sql-7b-v2", True),
        ("(?i)SQL", "sql", True),
        ("(a|b)?x{0,3}", "axx", True),
        (r"\w+", "naïve", False),
        (r"\pL+", "naïve", True),
    ],
)
def test_a_pattern_matches_the_whole_name(pattern: str, name: str, whole: bool) -> None:
    """Never a part of it; the classes with a stroke know ASCII only, as the reference says."""
    assert regular_expression(pattern) == pattern
    assert matches(pattern, name) is whole


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("(a+)+b", "a" * 256),
        ("(x+x+)+y", "x" * 256),
        ("(a|a)*b", "a" * 256),
        (".*.*.*.*.*.*.*.*b", "a" * 256),
        ("(a?){200}a{200}b", "a" * 256),
        ("(.*){1000}b", "é" * 256),
        ("(.*a.*b)?" * 28 + "c", "ab" * 128),
    ],
)
def test_a_name_that_a_client_chose_does_not_keep_a_pattern_busy(pattern: str, name: str) -> None:
    """Whatever the pattern, the longest name takes milliseconds: Python's own matcher would be busy for ever."""
    assert regular_expression(pattern) == pattern
    begun = time.perf_counter()

    assert not matches(pattern, name)

    assert time.perf_counter() - begun < 1.0


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        ("(a", "is not a regular expression in RE2's syntax: missing ): (a"),
        ("a{,3}", "has {,n} or a number of digits"),
        ("a{99999999999}", "has {,n} or a number of digits"),
        ("a{1001}", "is not a regular expression in RE2's syntax: invalid repetition size: {1001}"),
        (r"(a)\1", "is not a regular expression in RE2's syntax: invalid escape sequence"),
        (r"a\Z", "is not a regular expression in RE2's syntax: invalid escape sequence"),
        ("(a{1000})" * 100, "is not a regular expression in RE2's syntax: pattern too large"),
        ("(" * 200, "is not a regular expression in RE2's syntax: missing )"),
    ],
)
def test_a_pattern_that_could_mean_something_else_is_refused(
    pattern: str, rule: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing that Python reads in one way is taken in another; and the library writes nothing to our log."""
    fault = regular_expression(pattern)

    assert isinstance(fault, Fault)
    assert fault.rule.startswith(rule)
    assert len(fault.rule) < 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("host", "from_here"),
    [
        ("", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "::1"),
        ("127.0.0.7", "127.0.0.7"),
        ("::1", "::1"),
        ("10.0.0.7", "10.0.0.7"),
        ("localhost", "localhost"),
    ],
)
def test_who_listens_everywhere_is_asked_on_loopback(host: str, from_here: str) -> None:
    """Any other host is asked as it is written."""
    assert reachable(host) == from_here
