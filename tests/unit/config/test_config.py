"""The configuration: what is accepted, what is refused with which words, and what the shipped files say."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from msgspec import Struct, structs

from lora_sidecar.config.settings import (
    MAX_PROBLEMS,
    AdapterConfig,
    AdoptConfig,
    CheckpointConfig,
    Config,
    HeartbeatConfig,
    LogConfig,
    OpsConfig,
    PolicyConfig,
    PreflightConfig,
    RestoreConfig,
    ServerConfig,
    TlsConfig,
    json_schema,
    parse,
    restart_needed,
)
from lora_sidecar.config.table import Listing, Section, slots
from lora_sidecar.config.values import duration, format_duration, split_bind
from lora_sidecar.core.errors import ConfigError, Problem
from tests.support.paths import ROOT

SHIPPED = ROOT / "config"
SERVER = "servers: [{name: a, url: http://h}]\n"
"""One sound server on line 1, so that a case's own text begins on line 2."""


def problems(text: str | bytes) -> tuple[Problem, ...]:
    """Return the problems that the parser finds in a config."""
    with pytest.raises(ConfigError) as caught:
        parse(text.encode() if isinstance(text, str) else text, "test.yaml")
    return caught.value.problems


def expect(text: str | bytes, *wanted: tuple[int, str, str]) -> None:
    """Assert that exactly the wanted problems are found, each with its line, key and a fragment of its words."""
    found = problems(text)

    assert [(line, key) for line, key, _ in wanted] == [(problem.line, problem.key) for problem in found], found
    for (_, _, fragment), problem in zip(wanted, found, strict=True):
        assert fragment in f"{problem.rule} ({problem.hint})"


def server(**keys: str) -> str:
    """Return a config of one server, each key on a line of its own from line 2."""
    given = {"name": "a", "url": "http://h"} | keys
    return "servers:\n- " + "\n  ".join(f"{key}: {value}" for key, value in given.items()) + "\n"


def adapter(**keys: str) -> str:
    """Return a config of one server and one adapter, each of its keys on a line of its own from line 3."""
    given = {"name": "x", "path": "/x"} | keys
    return f"{SERVER}adapters:\n- " + "\n  ".join(f"{key}: {value}" for key, value in given.items()) + "\n"


def test_minimal_config_parses_to_defaults_with_only_what_it_sets() -> None:
    """The smallest file is enough, and adds nothing to the defaults but its server."""
    config = parse((SHIPPED / "minimal.yaml").read_bytes(), "minimal.yaml")

    assert Config(servers=(ServerConfig(name="vllm", url="http://127.0.0.1:8000"),)) == config


def test_commented_config_spells_every_default() -> None:
    """The reference file may be believed: each value that it shows is the value in force without it."""
    config = parse((SHIPPED / "sidecar.yaml").read_bytes(), "sidecar.yaml")

    assert (
        Config(
            servers=(ServerConfig(name="vllm", url="http://127.0.0.1:8000"),),
            adapters=(AdapterConfig(name="sql-assistant", path="/adapters/sql-assistant"),),
        )
        == config
    )


def test_commented_config_names_every_key() -> None:
    """No key is missing from the reference file: its tree has every key of the table, a comment those of tls."""
    text = (SHIPPED / "sidecar.yaml").read_text()

    def check(section: type[Struct], tree: Any) -> None:
        assert [slot.name for slot in slots(section)] == list(tree)
        for slot in slots(section):
            value = tree[slot.name]
            inner = slot.kind.item if isinstance(slot.kind, Listing) else slot.kind
            if isinstance(inner, Section) and value is not None:
                check(inner.type, value[0] if isinstance(value, list) else value)

    check(Config, yaml.safe_load(text))
    for field in structs.fields(TlsConfig):
        assert re.search(rf"# +{field.name}: null ", text)


def test_every_commented_bound_is_the_bound_in_force() -> None:
    """The reference file's figures are those of the table: each range that the schema states stands in a comment."""
    text = (SHIPPED / "sidecar.yaml").read_text()
    stated = [
        found
        for key in ("heartbeat", "restore", "preflight", "checkpoint")
        for found in re.findall(r"From (\S+) to (\S+)\.", str(json_schema()["properties"][key]))
    ]

    assert len(stated) == 13
    for low, high in stated:
        assert re.search(rf"\b({low}|initial) to ({high}|interval)\b", text), (low, high)


def test_defaults_are_the_published_numbers() -> None:
    """The numbers that operators plan with do not change by accident."""
    config = parse(SERVER.encode(), "test.yaml")

    assert config == Config(
        servers=(ServerConfig(name="a", url="http://h", engine="auto", api_key_file=None, base_model=None, tls=None),),
        adapters=(),
        policy=PolicyConfig(
            adopt=AdoptConfig(enabled=True, max=1000, roots=(), names=None),
            on_external_unload="forget",
            on_files_gone="warn",
        ),
        heartbeat=HeartbeatConfig(
            interval=5.0, probe_timeout=3.0, list_timeout=5.0, away_interval=0.1, down_after_timeouts=3, liveness=30.0
        ),
        preflight=PreflightConfig(enabled=True, timeout=10.0, allow_pickle=False, roots=()),
        checkpoint=CheckpointConfig(directory="/var/lib/lora-sidecar", format="json", timeout=5.0),
        ops=OpsConfig(bind=":9400"),
        log=LogConfig(level="info", format="auto"),
    )
    assert config.restore.timeout == 300.0
    assert structs.astuple(config.restore.backoff) == (1.0, 60.0, 600.0, 600.0, 3600.0)


def test_every_key_reaches_its_place() -> None:
    """No key is read into another's place: a file that sets each to a value of its own gives exactly those."""
    text = """
servers:
- {name: a-0, url: "HTTPS://H.Example:443/team/", engine: sglang, api_key_file: /k,
   admin_api_key_file: /a, base_model: org/base, max_lora_rank: 32, max_cpu_loras: 9, base_model_config: /base,
   tls: {ca_file: /ca, cert_file: /cert, key_file: /key}}
- {name: b, url: unix:///run/vllm.sock}
- {name: c, url: "http://[::1]:8001"}
adapters:
- {name: "007", path: /a/, required: true, priority: -3, is_3d_lora_weight: on, servers: [c, a-0]}
- {name: "naïve 模型", path: org/name-1.0}
policy: {adopt: {enabled: false, max: 7, roots: [/r/, /], names: "team-.*"}, on_external_unload: restore,
         on_files_gone: unload}
heartbeat: {interval: 1m30s, probe_timeout: 50ms, list_timeout: 0.5s, away_interval: 20ms, down_after_timeouts: 9,
            liveness: 1h}
restore: {timeout: 2m, backoff: {initial: 2s, max: 3s, parked: 1h, reset_after: 24h, quarantine: 2h}}
preflight: {enabled: false, timeout: 7s, allow_pickle: true, roots: [/q/]}
checkpoint: {directory: /c/, format: yaml, timeout: 4s}
ops: {bind: "[::]:0"}
log: {level: debug, format: pretty}
"""
    config = parse(text.encode(), "test.yaml")

    assert config.servers == (
        ServerConfig(
            *("a-0", "https://h.example/team", "sglang", "/k", "/a", "org/base"),
            *(32, 9, "/base", TlsConfig("/ca", "/cert", "/key")),
        ),
        ServerConfig("b", "unix:///run/vllm.sock"),
        ServerConfig("c", "http://[::1]:8001"),
    )
    assert config.adapters == (
        AdapterConfig("007", "/a/", required=True, priority=-3, is_3d_lora_weight=True, servers=("c", "a-0")),
        AdapterConfig("naïve 模型", "org/name-1.0"),
    )
    assert config.policy == PolicyConfig(AdoptConfig(False, 7, ("/r", "/"), "team-.*"), "restore", "unload")  # noqa: FBT003
    assert structs.astuple(config.heartbeat) == (90.0, 0.05, 0.5, 0.02, 9, 3600.0)
    assert config.restore.timeout == 120.0
    assert structs.astuple(config.restore.backoff) == (2.0, 3.0, 3600.0, 86400.0, 7200.0)
    assert config.preflight == PreflightConfig(False, 7.0, True, ("/q",))  # noqa: FBT003
    assert config.checkpoint == CheckpointConfig("/c", "yaml", 4.0)
    assert config.ops == OpsConfig("[::]:0")
    assert config.log == LogConfig("debug", "pretty")
    Draft202012Validator(json_schema()).validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        pytest.param(b"", (0, "", "is empty (name at least one server"), id="nothing"),
        pytest.param(b"# only a comment\n", (0, "", "is empty"), id="comment"),
        pytest.param(b"---\n...\n", (2, "", "is empty"), id="empty-document"),
        pytest.param(b"\nhello\n", (2, "", "must be a mapping of keys, is a text"), id="text"),
        pytest.param(b"- a\n", (1, "", "must be a mapping of keys, is a list"), id="list"),
        pytest.param(b"\xff\xfes\x00", (1, "", "is not UTF-8 text (save the file as UTF-8)"), id="utf-16"),
        pytest.param(b"a: 1\r\nb: \xe9\n", (2, "", "is not UTF-8 text"), id="latin-1"),
        pytest.param(b"a: 1\nb: \x00\n", (2, "", "U+0000"), id="nul"),
        pytest.param(b"a: 1\n# \x1b[31m\n", (2, "", "U+001B"), id="terminal-escape"),
        pytest.param("a: 1\n# \u2028\n".encode(), (2, "", "U+2028"), id="line-separator"),
        pytest.param("a: 1\n# \x85\n".encode(), (2, "", "U+0085"), id="next-line"),
        pytest.param(b"a:\n\t- b\n", (2, "", "indent with spaces, not with tabs"), id="tab"),
        pytest.param(b"a: b: c\n", (1, "", "is not valid YAML: mapping values"), id="colon"),
        pytest.param(b"a: 1\nb: 'x\n\ny\n", (5, "", "that began on line 2"), id="open-quote"),
        pytest.param(b"a: @b\n", (1, "", "quote the value"), id="at-sign"),
        pytest.param(b'a: "\\UFFFFFFFF"\n', (1, "", "an escape or a directive is out of range"), id="escape"),
        pytest.param(b"%YAML 1." + b"9" * 5000 + b"\n---\na: b\n", (1, "", "is not valid YAML"), id="directive"),
        pytest.param(b"\n" + b"[" * 10_000, (2, "[0]" * 21, "nested more than 20 levels deep"), id="brackets"),
        pytest.param(b"? " * 10_000, (1, "", "nested more than 20 levels deep"), id="question-marks"),
        pytest.param(b"[" + b"a," * 130_000 + b"]", (1, "[119999]", "is one value too many"), id="many-values"),
        pytest.param(b"#" * (1024 * 1024 + 1), (0, "", "is 1048577 bytes long: at most 1048576"), id="too-large"),
    ],
)
def test_unreadable_file_is_refused_with_its_line(data: bytes, wanted: tuple[int, str, str]) -> None:
    """What is no YAML mapping in UTF-8, or would cost too much to read, is refused with a line and a reason."""
    expect(data, wanted)


def test_largest_accepted_file_is_read() -> None:
    """The size cap is the published one, to the byte."""
    data = SERVER.encode()
    data += b"#" * (1024 * 1024 - len(data))

    assert len(parse(data, "test.yaml").servers) == 1


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_counted_as_editors_count_them(end: str) -> None:
    """Whatever ends the lines, and with a byte order mark before them, a problem names the line an editor shows."""
    text = "\ufeff" + end.join(["", "servers:", "- name: a", "  url: http://h", "log:", "  level: loud", ""])

    expect(text, (6, "log.level", "must be one of debug, info, warning, error"))


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
        pytest.param("policy: {replace: soon}\n", [(2, "policy.replace", "never, safe")], id="replace-soon"),
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
        ("engine", "tgi", "must be one of auto, vllm, sglang"),
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


@pytest.mark.parametrize(("have", "lack"), [("cert_file", "key_file"), ("key_file", "cert_file")])
def test_certificate_and_key_go_together(have: str, lack: str) -> None:
    """Half a client identity is refused, whichever half."""
    text = server(url="https://h", tls=f"{{{have}: /x, {lack}: null}}")

    expect(text, (4, f"servers[0].tls.{have}", f"needs {lack} beside it"))


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
        ("log: {level: WARN}", "log.level", 'must be one of debug, info, warning, error, is "WARN"'),
        ("log: {format: text}", "log.format", "must be one of auto, json, pretty"),
    ],
)
def test_setting_is_checked(text: str, key: str, fragment: str) -> None:
    """Each setting refuses what it could not be used with."""
    expect(f"{SERVER}{text}\n", (2, key, fragment))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param("servers: []\n", [(1, "servers", "must not be empty")], id="no-server"),
        pytest.param("adapters: []\n", [(1, "servers", "is missing")], id="servers-missing"),
        pytest.param("servers:\n", [(1, "servers", "is empty, which YAML reads as null")], id="servers-null"),
        pytest.param(
            "servers:\n" + "".join(f"- {{name: a{n}, url: http://h{n}}}\n" for n in range(65)),
            [(2, "servers", "has 65 entries: at most 64")],
            id="too-many-servers",
        ),
        pytest.param(
            "servers:\n- {name: a, url: http://h:80/}\n- {name: a, url: HTTP://H}\n",
            [
                (3, "servers[1].name", "is the same as servers[0].name on line 2"),
                (3, "servers[1].url", "is the same as servers[0].url on line 2"),
            ],
            id="servers-alike",
        ),
        pytest.param(
            f"{SERVER}adapters:\n- {{name: x, path: x}}\n- {{name: x, path: /x}}\n",
            [
                (3, "adapters[0].path", "must be an absolute path"),
                (4, "adapters[1].name", "is the same as adapters[0].name on line 3"),
            ],
            id="adapters-alike",
        ),
        pytest.param(
            adapter(name="base").replace("name: a,", "name: a, base_model: base,"),
            [(3, "adapters[0].name", "is the name of the base model, servers[0].base_model")],
            id="adapter-named-as-the-base-model",
        ),
        pytest.param(
            f"{SERVER}heartbeat:\n  interval: 10s\n",
            [
                (
                    3,
                    "heartbeat.liveness",
                    "38s = 2 x interval (10s) + probe_timeout (3s) + list_timeout (5s) + 2 x checkpoint.timeout (5s)",
                )
            ],
            id="liveness-by-default-too-short",
        ),
        pytest.param(
            f"{SERVER}checkpoint:\n  timeout: 20s\nheartbeat:\n  liveness: 20s\n",
            [(5, "heartbeat.liveness", "must be at least 58s")],
            id="liveness-too-short",
        ),
        pytest.param(
            f"{SERVER}heartbeat:\n  interval: 1s\n  away_interval: 2s\n",
            [(4, "heartbeat.away_interval", "must be at most heartbeat.interval (1s), is 2s")],
            id="away-slower-than-at-home",
        ),
        pytest.param(
            f"{SERVER}restore: {{backoff: {{max: 500ms}}}}\n",
            [(2, "restore.backoff.initial", "must be at most restore.backoff.max (500ms), is 1s")],
            id="backoff-upside-down-by-default",
        ),
        pytest.param(
            f"{SERVER}heartbeat:\n  interval: 5\n  liveness: 1s\n",
            [(3, "heartbeat.interval", "without a unit")],
            id="one-mistake-one-message",
        ),
        pytest.param(
            f"{SERVER}checkpoint: 3\nheartbeat: {{liveness: 1s}}\n",
            [(2, "checkpoint", "must be a mapping")],
            id="one-mistake-one-message-of-a-section",
        ),
    ],
)
def test_keys_must_fit_each_other(text: str, wanted: list[tuple[int, str, str]]) -> None:
    """What is sound alone and cannot work together is refused with the figures, once."""
    expect(text, *wanted)


@pytest.mark.parametrize(
    "heartbeat",
    [
        "{liveness: 28s}",
        "{interval: 100ms, away_interval: 100ms}",
        "{interval: 300ms, probe_timeout: 100ms, liveness: 15.7s}",
    ],
)
def test_keys_that_just_fit_are_accepted(heartbeat: str) -> None:
    """A bound itself is accepted, whatever the rounding of the sums."""
    assert parse(f"{SERVER}heartbeat: {heartbeat}\n".encode(), "test.yaml").servers


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


def test_long_values_are_cut_in_messages() -> None:
    """A message stays a line that can be read, whatever was pasted into the file."""
    for text in (f"{'k' * 9000}: 1\n", f"log: {{level: {'x' * 9000}}}\n", f"heartbeat: {{interval: {'5' * 9000}}}\n"):
        assert all(len(str(problem)) < 400 for problem in problems(SERVER + text))


def test_schema_is_a_schema() -> None:
    """Editors can use it: it is valid by its own draft."""
    Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("name", ["sidecar.yaml", "minimal.yaml"])
def test_shipped_config_is_valid_by_the_schema(name: str) -> None:
    """The schema accepts what we ship."""
    Draft202012Validator(json_schema()).validate(yaml.safe_load((SHIPPED / name).read_text()))


@pytest.mark.parametrize(
    "text",
    [
        "servers: []\n",
        "adapters: []\n",
        f"{SERVER}polcy: {{}}\n",
        f"{SERVER}heartbeat: {{interval: 5}}\n",
        f"{SERVER}heartbeat: {{interval: 5sec}}\n",
        f"{SERVER}log: {{level: loud}}\n",
        f"{SERVER}policy:\n",
        adapter(name="7"),
        adapter(name='" a"'),
        adapter(path="./x"),
        adapter(priority="1001"),
        adapter(required='"true"'),
        server(name="A"),
        server(url="ftp://h"),
        server(url="http://h?x"),
        server(api_key_file="k"),
        server(tls="{ca: /x}"),
        f"{SERVER}ops: {{bind: localhost}}\n",
    ],
)
def test_schema_refuses_what_it_can_say(text: str) -> None:
    """An editor marks the common mistakes, and the parser agrees with each of them."""
    assert list(Draft202012Validator(json_schema()).iter_errors(yaml.safe_load(text)))
    assert problems(text)


def test_schema_states_defaults_as_they_are_written() -> None:
    """An editor that fills in the defaults writes a file that parses to the defaults."""

    def filled(body: dict[str, Any]) -> Any:
        if body.get("type") != "object":
            return body["default"]
        return {key: filled(inner) for key, inner in body["properties"].items()}

    top = {key: filled(body) for key, body in json_schema()["properties"].items() if key != "servers"}
    text = yaml.safe_dump(top | {"servers": [{"name": "a", "url": "http://h"}]})

    assert parse(text.encode(), "test.yaml") == parse(SERVER.encode(), "test.yaml")


BASE = """servers:
- {name: a, url: https://h}
- {name: b, url: http://b}
"""


@pytest.mark.parametrize(
    ("new", "wanted"),
    [
        (BASE, ()),
        ("servers:\n- {name: b, url: http://b:80/}\n- {name: a, url: https://h}\n", ()),
        (BASE.replace("https://h", "https://i"), ("servers[0].url",)),
        (BASE.replace("http://b", "http://b, engine: vllm"), ("servers[1].engine",)),
        (BASE.replace("http://b", "http://b, api_key_file: /k"), ("servers[1].api_key_file",)),
        (BASE.replace("http://b", "http://b, admin_api_key_file: /k"), ("servers[1].admin_api_key_file",)),
        (BASE.replace("https://h", "https://h, tls: {ca_file: /c}"), ("servers[0].tls",)),
        (BASE.replace("http://b", "http://b, base_model: m"), ()),
        (BASE.replace("name: a", "name: c"), ("servers",)),
        (BASE + "- {name: c, url: http://c}\n", ("servers",)),
        (BASE + "adapters: [{name: x, path: /x}]\npolicy: {adopt: {max: 3}}\nrestore: {timeout: 9s}\n", ()),
        (BASE + "heartbeat: {interval: 4s}\nlog: {level: debug}\n", ()),
        (BASE + "checkpoint: {directory: /c}\n", ("checkpoint.directory",)),
        (BASE + "checkpoint: {format: yaml, timeout: 4s}\n", ("checkpoint.format", "checkpoint.timeout")),
        (BASE + "ops: {bind: '127.0.0.1:9400'}\nlog: {format: json}\n", ("ops.bind", "log.format")),
    ],
)
def test_restart_is_asked_for_only_where_it_is_needed(new: str, wanted: tuple[str, ...]) -> None:
    """Exactly the changes that cannot be applied live are named; order and spelling are no change."""
    assert restart_needed(parse(BASE.encode(), "old.yaml"), parse(new.encode(), "new.yaml")) == wanted


def test_bind_address_is_split_for_the_socket() -> None:
    """The one who listens gets host and port, an IPv6 address without brackets."""
    assert [split_bind(text) for text in ("0.0.0.0:9400", "[::1]:0", "localhost:80")] == [
        ("0.0.0.0", 9400),
        ("::1", 0),
        ("localhost", 80),
    ]


def test_bounds_hold_to_the_value_itself() -> None:
    """Every duration's own bounds are durations, in order, with its default between them."""
    for section in (HeartbeatConfig, type(RestoreConfig().backoff), CheckpointConfig, RestoreConfig):
        for slot in slots(section):
            if isinstance(slot.default, float):
                low, high = getattr(slot.kind, "low", ""), getattr(slot.kind, "high", "")
                values = [duration(low), slot.default, duration(high)]
                assert all(float(a) < float(b) for a, b in itertools.pairwise(values))  # type: ignore[arg-type]


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


TWO_SERVERS = """servers:
- {name: a, url: http://a}
- {name: b, url: http://b}
"""


def test_adapters_are_declared_on_the_servers_that_they_name() -> None:
    """An adapter without servers is for all of them, in the order of the file."""
    text = TWO_SERVERS + "adapters: [{name: x, path: /x}, {name: y, path: /y, servers: [b]}]\n"
    config = parse(text.encode(), "test.yaml")

    assert [[one.name for one in config.declared_on(server)] for server in ("a", "b")] == [["x"], ["x", "y"]]


@pytest.mark.parametrize(
    ("servers", "key", "rule"),
    [
        ("[c]", "adapters[0].servers[0]", "is not the name of a server"),
        ("[a, a]", "adapters[0].servers[1]", "is named twice"),
        ("[]", "adapters[0].servers", "must not be empty"),
        ("[A]", "adapters[0].servers[0]", ""),
        ("a", "adapters[0].servers", "must be a list"),
    ],
)
def test_servers_of_an_adapter_must_exist(servers: str, key: str, rule: str) -> None:
    """An adapter that no server would ever have is a mistake, and not silently nowhere."""
    text = TWO_SERVERS + f"adapters: [{{name: x, path: /x, servers: {servers}}}]\n"
    with pytest.raises(ConfigError) as raised:
        parse(text.encode(), "test.yaml")

    (problem,) = raised.value.problems
    assert problem.key == key
    assert rule in problem.rule


def test_admin_key_is_for_sglang_alone() -> None:
    """A second key for vLLM is a misunderstanding that would only show in the outage."""
    with pytest.raises(ConfigError) as raised:
        parse(server(engine="vllm", admin_api_key_file="/k").encode(), "test.yaml")

    assert [problem.key for problem in raised.value.problems] == ["servers[0].admin_api_key_file"]
    sound = parse(server(engine="auto", admin_api_key_file="/k").encode(), "test.yaml")
    assert sound.servers[0].admin_api_key_file == "/k"


@pytest.mark.parametrize(
    "bind", ["127.0.0.1:9401", "127.8.9.1:0", '"[::1]:9401"', "localhost:9401"], ids=["v4", "v4-other", "v6", "name"]
)
def test_control_port_on_loopback_needs_no_token(bind: str) -> None:
    """The containers of the pod share the loopback; it is the default."""
    assert parse(f"{SERVER}control: {{bind: {bind}}}\n".encode(), "test.yaml").control.token_file is None


@pytest.mark.parametrize(
    "bind", ["0.0.0.0:9401", '"[::]:9401"', "10.0.0.7:9401", "example.org:9401", "localhost.example:1"]
)
@pytest.mark.parametrize("token", ["", "\n  token_file: null"], ids=["not-given", "null"])
def test_control_port_elsewhere_needs_a_token(bind: str, token: str) -> None:
    """Whoever reaches it can load and unload: without a token the config is refused, at the line of the address."""
    text = f"{SERVER}control:{token}\n  bind: {bind}\n"
    (found,) = problems(text)

    assert (found.line, found.key) == (text.count("\n"), "control.bind")
    assert "control.token_file is needed" in found.rule
    assert "127.0.0.1" in found.hint
    mended = parse(f"{SERVER}control: {{bind: {bind}, token_file: /run/token}}\n".encode(), "test.yaml")
    assert mended.control.token_file == "/run/token"


def test_fault_in_the_token_file_is_told_once() -> None:
    """A bad token_file is one problem and not two."""
    expect(SERVER + "control: {bind: 0.0.0.0:1, token_file: relative}\n", (2, "control.token_file", "absolute path"))
