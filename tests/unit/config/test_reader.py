from __future__ import annotations

import pytest
from msgspec import inspect

from lora_sidecar.config.load import parse
from lora_sidecar.config.nodes import compose
from lora_sidecar.config.process import LogConfig
from lora_sidecar.config.reader import Reading
from lora_sidecar.config.settings import Config
from lora_sidecar.core.errors import ConfigError, Problem
from tests.support.configs import SERVER, adapter, expect, problems, server


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param("adapters: &a []\n", [(2, "adapters", "has an anchor (&)")], id="anchor"),
        pytest.param("adapters: *a\n", [(2, "adapters", "is an alias (*)")], id="alias"),
        pytest.param("*a : []\n", [(2, "", "is an alias (*)")], id="alias-as-key"),
        pytest.param("log: {level: !!str info}\n", [(2, "log.level", "has a tag (!)")], id="tag"),
        pytest.param("log: !x {level: info}\n", [(2, "log", "has a tag (!)")], id="tag-on-section"),
        pytest.param(
            "log: {<<: *a}\n", [(2, 'log."<<"', "is an alias"), (2, 'log."<<"', "is not a known key")], id="merge"
        ),
        pytest.param("---\nlog: {}\n", [(2, "", "begins a second YAML document")], id="second-document"),
        pytest.param("log: {}\n\nlog: {}\n", [(4, "log", "is given twice: first on line 2")], id="duplicate"),
        pytest.param(
            "log:\n  level: info\n  'level': info\n", [(4, "log.level", "first on line 3")], id="duplicate-quoted"
        ),
        pytest.param("? [a]\n: b\n", [(2, "", "a key that is not a single word")], id="list-as-key"),
        pytest.param("polcy: {}\n", [(2, "polcy", 'did you mean "policy"?')], id="misspelt"),
        pytest.param(
            "heartbeat: {intervall: 5s}\n",
            [(2, "heartbeat.intervall", 'did you mean "interval"?')],
            id="misspelt-below",
        ),
        pytest.param("interval: 5s\n", [(2, "interval", "it belongs under heartbeat")], id="misplaced"),
        pytest.param("policy: {bind: x}\n", [(2, "policy.bind", "it belongs under ops")], id="misplaced-below"),
        pytest.param("log: {servers: x}\n", [(2, "log.servers", "it belongs at the top")], id="misplaced-from-top"),
        pytest.param(
            "name: x\n", [(2, "name", "it belongs under servers[] or under adapters[]")], id="misplaced-twice"
        ),
        pytest.param("ops: {zzz: 1}\n", [(2, "ops.zzz", "known here: bind")], id="unknown"),
        pytest.param('"a\\u001b b": 1\n', [(2, '"a\\u001b b"', "is not a known key")], id="odd-key"),
        pytest.param("policy: {replace: yes}\n", [(2, "policy.replace", "is the boolean true")], id="replace-by-yes"),
        pytest.param("policy: {replace: soon}\n", [(2, "policy.replace", "always, never, safe")], id="replace-soon"),
        pytest.param("policy:\nlog: {}\n", [(2, "policy", "is empty, which YAML reads as null")], id="empty-section"),
        pytest.param(
            "policy: 3\n", [(2, "policy", "must be a mapping of keys, is the number 3")], id="number-as-section"
        ),
        pytest.param("policy: on\n", [(2, "policy", "is the boolean true")], id="boolean-as-section"),
        pytest.param("adapters:\n", [(2, "adapters", "reads as null (write [] for none)")], id="empty-list"),
        pytest.param("adapters: {name: x}\n", [(2, "adapters", "must be a list, is a mapping")], id="mapping-as-list"),
        pytest.param(
            "adapters:\n- x\n", [(3, "adapters[0]", "must be a mapping of keys, is a text")], id="text-as-entry"
        ),
        pytest.param(
            "adapters:\n- required: true\n",
            [(3, "adapters[0].name", "is missing"), (3, "adapters[0].path", "is missing")],
            id="missing",
        ),
    ],
)
def test_structure_is_strict(text: str, wanted: list[tuple[int, str, str]]) -> None:
    """What YAML would quietly resolve, drop or leave empty is an error that says where and what to do."""
    expect(SERVER + text, *wanted)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("on", "the boolean true"),
        ("No", "the boolean false"),
        ("007", "the number 7"),
        ("0x1F", "the number 31"),
        ("1_000", "the number 1000"),
        ("1.0", "the number 1.0"),
        (".inf", "the number inf"),
        (".NaN", "the number nan"),
        ("12:30:00", "the number 45000"),
        ("0b_", 'the number "0b_"'),
        ("9" * 5000, 'the number "9999'),
        ("2024-01-01", 'the date "2024-01-01"'),
        ("2024-99-99", 'the date "2024-99-99"'),
    ],
)
def test_converted_text_is_refused_and_explained(written: str, read: str) -> None:
    """A name that YAML turns into something else is refused with what it became; quoted, it is that name."""
    expect(adapter(name=written), (3, "adapters[0].name", f"is read by YAML as {read}"))
    if len(written) < 60:
        assert f'write "{written}"' in problems(adapter(name=written))[0].hint
        assert parse(adapter(name=f'"{written}"').encode(), "test.yaml").adapters[0].name == written


@pytest.mark.parametrize("written", ["", "~", "null", "Null"])
def test_null_is_refused_where_a_text_is_needed(written: str) -> None:
    """A key without a value is not read as the text "null" nor as an empty one."""
    expect(adapter(path=written), (4, "adapters[0].path", "is empty, which YAML reads as null"))


@pytest.mark.parametrize(
    ("key", "written", "fragment"),
    [
        ("name", '""', "must not be empty"),
        ("name", "A", "lower-case letters"),
        ("name", "-a", "lower-case letters"),
        ("name", "a_b", "lower-case letters"),
        ("name", "../a", "lower-case letters"),
        ("name", "a" * 64, "at most 63"),
        ("name", '"a\\n"', "unprintable character U+000A"),
        ("url", "127.0.0.1:8000", "must begin with http://, https:// or unix://"),
        ("url", "ftp://h", "must begin with"),
        ("url", "http://", "has no valid host"),
        ("url", "http://:80", "has no valid host"),
        ("url", "http://a..b", "has no valid host"),
        ("url", "http://1.2.3.400", "has no valid host"),
        ("url", "http://127.1", "has no valid host"),
        ("url", "'http://[::g]:80'", "has no valid host"),
        ("url", "'http://[fe80::1%eth0]:80'", "has no valid host"),
        ("url", "http://::1:80", "an IPv6 address stands in brackets"),
        ("url", '"http://h:"', "must have a port from 1 to 65535"),
        ("url", "http://h:0", "must have a port"),
        ("url", "http://h:65536", "must have a port"),
        ("url", "http://h:80x", "must have a port"),
        ("url", "http://h?a=b", "must have no query"),
        ("url", '"http://h#"', "no fragment"),
        ("url", "http://h/a b", "without spaces"),
        ("url", "http://hé", "must be ASCII"),
        ("url", "http://h/a//b", "not a plain prefix"),
        ("url", "http://h/../b", "not a plain prefix"),
        ("url", "http://h/v1/", "without /v1"),
        ("url", "unix://run/x.sock", "three slashes"),
        ("url", "unix:///", "absolute path"),
        ("url", "unix:///run/", "absolute path"),
        ("url", f"unix:///{'a' * 107}", "108 bytes: the kernel takes at most 107"),
        ("engine", "tgi", "must be one of auto, sglang, vllm"),
        ("engine", "off", "is the boolean false"),
        ("engine", "null", "is empty"),
        ("base_model", '" a"', "must not begin or end with a space"),
        ("tls", "{ca_file: /x}", "is only for an https url"),
        ("tls", "true", "must be a mapping of keys"),
    ],
)
def test_server_key_is_checked(key: str, written: str, fragment: str) -> None:
    """A server that could not be reached, or not be named in files and metrics, is refused."""
    line = {"name": 2, "url": 3}.get(key, 4)

    expect(server(**{key: written}), (line, f"servers[0].{key}", fragment))


@pytest.mark.parametrize(
    "text",
    [
        server(url="http://me:hunter2@h"),
        server(url="hunter2"),
        server(url="http://h/?key=hunter2"),
        server(url="http://hunter2:hunter2"),
        server(api_key_file="hunter2"),
        server(api_key_file="hunter2\n  api_key_file: x"),
        server(api_key="hunter2"),
        server(url="https://h", tls="{key_file: hunter2}"),
    ],
)
def test_secret_in_the_wrong_place_is_not_repeated(text: str) -> None:
    """A key that was put where it does not belong does not travel on into the log."""
    assert "hunter2" not in str(problems(text))


def test_secret_that_is_a_number_is_not_repeated() -> None:
    """Not even an explanation of YAML's conversions repeats what may be a secret."""
    expect(server(api_key_file="0123"), (4, "servers[0].api_key_file", "is not read as a text by YAML"))
    assert "0123" not in str(problems(server(api_key_file="0123")))


@pytest.mark.parametrize(
    ("key", "written", "fragment"),
    [
        ("name", '""', "must not be empty"),
        ("name", '" a"', "must not begin or end with a space"),
        ("name", '"a\\tb"', "unprintable character U+0009"),
        ("name", '"a\\u202eb"', "unprintable character U+202E"),
        ("name", '"\\ud800"', "unprintable character U+D800"),
        ("name", "a" * 257, "is 257 characters long: at most 256"),
        ("name", "[a]", "must be a text, is a list"),
        ("path", "./x", "relative path would depend on the server's working directory"),
        ("path", "../x", "must be an absolute path, or a hub id"),
        ("path", "x", "must be an absolute path, or a hub id"),
        ("path", "a/b/c", "must be an absolute path, or a hub id"),
        ("path", "'~/x'", "the server's home is not known here"),
        ("path", "s3://b/x", "must be an absolute path, or a hub id"),
        ("path", f"/{'a' * 4096}", "at most 4096"),
        ("path", '"/a\\0"', "unprintable character U+0000"),
        ("required", '"true"', 'must be true or false, is "true" (without quotes)'),
        ("required", "1", "must be true or false, is the number 1"),
        ("required", "maybe", 'must be true or false, is "maybe"'),
        ("priority", '"1"', 'must be a whole number, is "1" (without quotes)'),
        ("priority", "1.0", "in plain digits"),
        ("priority", "010", "in YAML the number 8"),
        ("priority", "1:30", "in YAML the number 90"),
        ("priority", "1001", "must be from -1000 to 1000, is 1001"),
        ("priority", "-" + "9" * 5000, "in plain digits"),
        ("priority", "true", "must be a whole number, is the boolean true"),
        ("priority", "null", "is empty"),
    ],
)
def test_adapter_key_is_checked(key: str, written: str, fragment: str) -> None:
    """An adapter that the engine could not be asked for, or would find by accident only, is refused."""
    line = {"name": 3, "path": 4}.get(key, 5)

    expect(adapter(**{key: written}), (line, f"adapters[0].{key}", fragment))


@pytest.mark.parametrize(
    ("written", "fragment"),
    [
        ("5", "is a number without a unit (write 5s)"),
        ("0.5", "is a number without a unit (write 0.5s)"),
        ("1:30", "is a number without a unit"),
        (".inf", "is a number without a unit"),
        ("-5s", "is not a duration"),
        ("5 s", "is not a duration"),
        ("5S", "is not a duration"),
        ("5sec", "is not a duration"),
        ("1s1m", "is not a duration"),
        ("1d", "is not a duration"),
        ('"\\u0665s"', "is not a duration"),
        ('""', "is not a duration"),
        ("true", "is not a duration: the boolean true"),
        ("50ms", 'must be from 100ms to 5m, is "50ms"'),
        ("5m1ms", 'must be from 100ms to 5m, is "5m1ms"'),
        ("999999999h", "must be from 100ms to 5m"),
        ("null", "is empty"),
        ("[5s]", "must be a duration such as 5s, is a list"),
    ],
)
def test_duration_is_checked(written: str, fragment: str) -> None:
    """A duration has a unit and is within its bounds, or the message says how to write it."""
    expect(f"{SERVER}heartbeat:\n  interval: {written}\n", (3, "heartbeat.interval", fragment))


@pytest.mark.parametrize(
    ("text", "key", "fragment"),
    [
        ("policy: {adopt: {max: 0}}", "policy.adopt.max", "must be from 1 to 10000, is 0"),
        ("policy: {adopt: {roots: /x}}", "policy.adopt.roots", "must be a list, is a text"),
        ("policy: {adopt: {roots: [x]}}", "policy.adopt.roots[0]", "must be an absolute path"),
        ("policy: {adopt: {roots: [/x/../y]}}", "policy.adopt.roots[0]", "must not have . or .."),
        ("policy: {adopt: {roots: [null]}}", "policy.adopt.roots[0]", "is empty"),
        ("policy: {adopt: {names: '(a'}}", "policy.adopt.names", "is not a regular expression in RE2's syntax"),
        ("policy: {adopt: {names: '(?=a)b'}}", "policy.adopt.names", "look-around and references back are not in it"),
        (f"policy: {{adopt: {{names: '{'a' * 257}'}}}}", "policy.adopt.names", "at most 256"),
        ("policy: {on_external_unload: off}", "policy.on_external_unload", "must be one of forget, restore"),
        ("heartbeat: {down_after_timeouts: 0}", "heartbeat.down_after_timeouts", "must be from 1 to 100"),
        ("restore: {timeout: 500ms}", "restore.timeout", "must be from 1s to 1h"),
        ("checkpoint: {directory: data}", "checkpoint.directory", "must be an absolute path"),
        ("checkpoint: {format: toml}", "checkpoint.format", "must be one of json, yaml"),
        ("ops: {bind: 9400}", "ops.bind", "is read by YAML as the number 9400"),
        ("ops: {bind: localhost}", "ops.bind", "must be host:port (write :9400 for every address"),
        ("ops: {bind: ':'}", "ops.bind", "must end with a port"),
        ("ops: {bind: 'h:65536'}", "ops.bind", "must end with a port from 0 to 65535"),
        ("ops: {bind: '::1:9400'}", "ops.bind", "IPv6 address without brackets"),
        ("ops: {bind: '[1.2.3.4]:9400'}", "ops.bind", "no IPv6 address between the brackets"),
        ("ops: {bind: 'a b:9400'}", "ops.bind", "has no valid host"),
        ("ops: {bind: [x]}", "ops.bind", "quote a text that begins with ["),
        ("log: {level: WARN}", "log.level", 'must be one of debug, error, info, warning, is "WARN"'),
        ("log: {format: text}", "log.format", "must be one of auto, json, pretty"),
    ],
)
def test_setting_is_checked(text: str, key: str, fragment: str) -> None:
    """Each setting refuses what it could not be used with."""
    expect(f"{SERVER}{text}\n", (2, key, fragment))


@pytest.mark.parametrize(("written", "read"), [("auto", "auto"), ("1", 1), ("16", 16)])
def test_concurrency_is_a_number_or_left_to_us(written: str, read: int | str) -> None:
    """A number from 1 to 16, or the word auto, which is the default."""
    config = parse(f"{SERVER}\nrestore: {{concurrency: {written}}}".encode(), "test.yaml")

    assert config.restore.concurrency == read
    assert parse(SERVER.encode(), "test.yaml").restore.concurrency == "auto"


@pytest.mark.parametrize("written", ["0", "17", "automatic", "'4'", "2.0", "null", "[]"])
def test_any_other_concurrency_is_refused(written: str) -> None:
    """What is neither is named with its line and key."""
    with pytest.raises(ConfigError, match=r"restore\.concurrency"):
        parse(f"{SERVER}\nrestore: {{concurrency: {written}}}".encode(), "test.yaml")


@pytest.mark.parametrize(("before", "hint"), [(99, 'did you mean "level"?'), (100, "")])
def test_a_similar_key_is_sought_for_the_first_hundred_objections(before: int, hint: str) -> None:
    """The search is slow, and a file with more mistakes than that is no config."""
    node, _ = compose(b"levle: x")
    assert node is not None
    reading = Reading(Config, (Problem(1, "", "is wrong"),) * before)
    reading.read(inspect.type_info(LogConfig), node, "log")

    assert [(one.key, one.hint) for one in reading.problems[before:]] == [("log.levle", hint)]


def test_long_values_are_cut_in_messages() -> None:
    """A message stays a line that can be read, whatever was pasted into the file."""
    for text in (f"{'k' * 9000}: 1\n", f"log: {{level: {'x' * 9000}}}\n", f"heartbeat: {{interval: {'5' * 9000}}}\n"):
        assert all(len(str(problem)) < 400 for problem in problems(SERVER + text))
