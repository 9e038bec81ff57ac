from __future__ import annotations

import time

import pytest

from lora_sidecar.config.values import Fault, matches, reachable, regular_expression


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
