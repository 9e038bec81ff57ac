from __future__ import annotations

import pytest

from lora_sidecar.config.load import MAX_PROBLEMS, parse
from lora_sidecar.core.errors import ConfigError, Problem
from tests.support.configs import SERVER, expect, problems
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


def test_every_problem_is_reported_by_line() -> None:
    """A file is mended once: structure, values and rules are all reported, in the order of the lines."""
    text = """servers:
  - name: A
    url: http://u:p@h
  - {name: b, url: http://h, tls: {}}
adapters:
  - {name: on, path: ./x, prority: 1}
  - {name: *x, path: /x}
log: {level: loud}
log: {}
heartbeat: {liveness: 2s}
"""
    expect(
        text,
        (2, "servers[0].name", "lower-case"),
        (3, "servers[0].url", "no user"),
        (4, "servers[1].tls", "https"),
        (6, "adapters[0].name", "the boolean true"),
        (6, "adapters[0].path", "absolute"),
        (6, "adapters[0].prority", 'did you mean "priority"?'),
        (7, "adapters[1].name", "alias"),
        (8, "log.level", "must be one of"),
        (9, "log", "given twice"),
        (10, "heartbeat.liveness", "must be at least 28s"),
    )


def test_error_is_one_line_that_names_the_file() -> None:
    """The error alone is enough for a log line: what was attempted, the file, the lines, the rules."""
    with pytest.raises(ConfigError) as caught:
        parse(b"servers: []\n\xc3\xa9: '\\n'\n", "/etc/lora-sidecar/sidecar.yaml")

    assert str(caught.value).startswith(
        "read config /etc/lora-sidecar/sidecar.yaml: line 1: servers: must not be empty; line 2:"
    )
    assert "\n" not in str(caught.value)


def test_report_is_bounded() -> None:
    """A file of thousands of mistakes is reported in a hundred, and a count of the others."""
    found = problems(SERVER + "".join(f"k{number}: 1\n" for number in range(5000)))

    assert len(found) == MAX_PROBLEMS + 1
    assert "has 4900 more problems" in found[-1].rule
    assert sum(len(str(problem)) for problem in found) < 30_000


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
