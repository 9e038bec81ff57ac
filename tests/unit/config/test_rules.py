from __future__ import annotations

import pytest

from lora_sidecar.config.load import parse
from lora_sidecar.core.errors import ConfigError
from tests.support.configs import SERVER, adapter, expect, problems, server


@pytest.mark.parametrize(("have", "lack"), [("cert_file", "key_file"), ("key_file", "cert_file")])
def test_certificate_and_key_go_together(have: str, lack: str) -> None:
    """Half a client identity is refused, whichever half."""
    text = server(url="https://h", tls=f"{{{have}: /x, {lack}: null}}")

    expect(text, (4, f"servers[0].tls.{have}", f"needs {lack} beside it"))


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


TWO_SERVERS = """servers:
- {name: a, url: http://a}
- {name: b, url: http://b}
"""


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
