"""Whatever bytes a ConfigMap delivers, the parser returns a config or says what is wrong, and soon."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from lora_sidecar.config.changes import restart_needed
from lora_sidecar.config.load import MAX_PROBLEMS, parse
from lora_sidecar.config.reference import json_schema
from lora_sidecar.config.settings import Config
from lora_sidecar.config.values import duration, format_duration, matches, regular_expression
from lora_sidecar.core.errors import ConfigError
from tests.support.paths import ROOT

VALID = tuple((ROOT / "config" / f"{name}.yaml").read_text() for name in ("minimal", "sidecar"))
BARE = tuple(re.sub(r" *#.*\n", "\n", text) for text in VALID)
SCHEMA = Draft202012Validator(json_schema())
PIECES = (
    *"\n \t:-?[]{},#&*!|>'\"%@`~<=\r\\\0\ufeff\u2028\x85",
    *("  ", ": ", "- ", "\n- ", "\n  ", "---\n", "...\n", "? ", "<<: ", "&a ", "*a", "!!str ", "!<x>"),
    *("%YAML 1.1\n", "%TAG ! x\n", "servers:", "name: a", "url: http://h", "adapters:", "path: /x"),
    *("policy:", "heartbeat:", "interval:", "liveness:", "tls:", "5s", "100ms", "[::1]:80"),
    *("on", "null", "007", "1.0", "12:30:00", "2024-01-01", "2024-99-99", ".inf", "0b_", "1e999", "9" * 5000),
    *('"\\U0011FFFF"', '"\\ud800"', '"\\x"', "'", "é", "\x1b[31m", "[[", "{a: " * 30),
)
"""What YAML files, good and bad, are made of."""


def outcome(data: bytes) -> Config | ConfigError:
    """Return what the parser made of the data, after checking what it promises of either."""
    try:
        config = parse(data, "test.yaml")
    except ConfigError as error:
        check_report(error, data)
        return error
    assert restart_needed(config, config) == ()
    return config


def check_report(error: ConfigError, data: bytes) -> None:
    """Assert that a report is bounded, sorted, printable, and names lines that the file has."""
    assert 1 <= len(error.problems) <= MAX_PROBLEMS + 1
    lines = [problem.line for problem in error.problems[:MAX_PROBLEMS]]
    assert lines == sorted(lines)
    assert max(lines) <= 1 + len(re.findall(rb"\r\n?|\n", data))
    assert all(problem.rule for problem in error.problems)
    assert str(error).isprintable()


@given(st.binary(max_size=300))
@example(b"\xef\xbb\xbf")
@example(b"\xff\xfe[\x00")
def test_any_bytes(data: bytes) -> None:
    """Bytes of any kind are no config, and that is all."""
    assert isinstance(outcome(data), ConfigError)


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=40).map("".join))
def test_text_of_yamls_own_pieces(text: str) -> None:
    """Indicators, escapes, directives and converted scalars in any order do no harm."""
    outcome(text.encode(errors="surrogatepass"))


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A shipped config with some pieces cut out, put in or exchanged."""
    text = draw(st.sampled_from(BARE))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.integers(0, 12))
        text = text[:start] + draw(st.sampled_from(PIECES) | st.text(max_size=5)) + text[end:]
    return text


@settings(max_examples=400)
@given(mutated())
def test_mutated_config(text: str) -> None:
    """A slip of the finger in a sound config leaves a sound config or a report."""
    outcome(text.encode(errors="surrogatepass"))


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["5s", "1m", "/x"])
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@settings(max_examples=300)
@given(st.data())
def test_any_value_at_any_key(data: st.DataObject) -> None:
    """A wrong value is one report at its key or below; the schema accepts every file that the parser accepts."""
    tree: dict[str, Any] = yaml.safe_load(data.draw(st.sampled_from(VALID)))
    place: Any = tree
    where: list[str] = []
    while True:
        keys: list[Any] = list(range(len(place))) if isinstance(place, list) else sorted(place)
        key = data.draw(st.sampled_from(keys))
        where.append(f"[{key}]" if isinstance(key, int) else f".{key}")
        inner = place[key]
        if not (isinstance(inner, dict | list) and inner and data.draw(st.booleans())):
            break
        place = inner
    place[key] = data.draw(JSON)

    # Escaped, since the emitter would write a text with odd characters as it stands.
    found = outcome(yaml.safe_dump(tree, allow_unicode=False).encode())

    path = "".join(where).removeprefix(".")
    if isinstance(found, Config):
        SCHEMA.validate(tree)
    else:
        related = ("heartbeat.liveness", "heartbeat.away_interval", "restore.backoff.initial")
        assert all(p.key.startswith(path) or p.key in related or not p.key for p in found.problems), found.problems


LARGE = 200_000
ADAPTERS = b"servers: [{name: a, url: 'http://h'}]\nadapters:\n" + b"".join(
    b"- {name: x%d, path: /x, servers: [b, b, b]}\n" % number for number in range(10_000)
)

HOSTILE = [
    pytest.param(b"[" * LARGE, id="brackets"),
    pytest.param(b"{a: " * (LARGE // 4), id="braces"),
    pytest.param(b"- " * (LARGE // 2), id="dashes"),
    pytest.param(b"? " * (LARGE // 2), id="question-marks"),
    pytest.param(b"\n" * LARGE, id="lines"),
    pytest.param(b'"' + b"a\n" * (LARGE // 2 - 1), id="open-quote"),
    pytest.param(b"a: |\n" + b" \n" * (LARGE // 2 - 3), id="empty-block"),
    pytest.param(b"".join(b"k%d:\n" % number for number in range(60_000)), id="unknown-keys"),
    pytest.param(b"aa: 1\n" * (LARGE // 6), id="one-key-again-and-again"),
    pytest.param(b"[" + b"&a a," * 119_000 + b"]", id="anchors"),
    pytest.param(b"[" + b"[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]," * 6000 + b"]", id="as-deep-as-is-allowed"),
    pytest.param(b"[" + b"1:1," * 20_000 + b"]", id="numbers-to-the-base-of-sixty"),
    pytest.param(b"servers: " + b"9" * (LARGE - 9), id="digits"),
    pytest.param(b"servers: [{name: " + b"a" * (LARGE - 40) + b", url: x}]", id="one-long-text"),
    pytest.param(b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n", id="alias-bomb"),
    pytest.param(ADAPTERS, id="adapters-of-no-server"),
]


# Far above what any of them takes on a busy machine (three seconds of a quiet one, in a thread that lets others run),
# and far below what one that is not linear would take.
@pytest.mark.timeout(60)
@pytest.mark.parametrize("data", HOSTILE)
def test_hostile_file_is_refused_soon(data: bytes) -> None:
    """A file that is made to be slow costs no more than its size, up to the largest that is read."""
    assert isinstance(outcome(data), ConfigError)


MEASURED = """
import sys
from lora_sidecar.config.load import parse
from lora_sidecar.core.errors import ConfigError

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

data, before = sys.stdin.buffer.read(), peak()
try:
    parse(data, "test.yaml")
except ConfigError:
    print(peak() - before)
"""


@pytest.mark.parametrize("data", [HOSTILE[7], HOSTILE[-1]])
def test_hostile_file_costs_little_memory(data: bytes) -> None:
    """A container of 128 MiB survives the worst: 45 MB are the sidecar's own."""
    told = subprocess.run([sys.executable, "-c", MEASURED], input=data, capture_output=True, check=True)

    assert 0 < int(told.stdout) < 64 * 1024


PATTERN = st.lists(
    st.sampled_from(["a", "b", "é", ".", "(", ")", "[ab]", "[^a]", "*", "+", "?", "{2}", "{3,}", "{0,40}", "|", r"\w"]),
    min_size=1,
    max_size=40,
).map("".join)
NAME = st.lists(st.sampled_from(["a", "b", "é", "aaaa", "ab" * 20]), max_size=60).map("".join).filter(bool)


@settings(max_examples=400, deadline=2000)
@given(PATTERN, NAME)
@example("(a+)+b", "a" * 256)
@example("(a|a)*b", "a" * 256)
def test_no_name_keeps_a_pattern_busy(pattern: str, name: str) -> None:
    """A pattern that is accepted decides on any name at once, whoever chose the name."""
    if regular_expression(pattern) == pattern:
        matches(pattern, name[:256])


def test_thousand_adapters_are_read() -> None:
    """A large honest config is read whole."""
    adapters = "".join(f"- {{name: sql-{n}, path: /adapters/sql-{n}, priority: {n % 100}}}\n" for n in range(1000))
    config = outcome(f"{VALID[0]}adapters:\n{adapters}".encode())

    assert isinstance(config, Config)
    assert len(config.adapters) == 1000


@given(st.integers(0, 24 * 3600 * 1000))
def test_duration_survives_being_written(milliseconds: int) -> None:
    """Every duration of whole milliseconds is read back as it was written."""
    assert duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=1e-9)
