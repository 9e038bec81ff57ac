from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from msgspec import Struct, inspect

from lora_sidecar.config.inventory import AdapterConfig, ServerConfig
from lora_sidecar.config.keys import Key, keys
from lora_sidecar.config.load import parse
from lora_sidecar.config.reference import example, json_schema
from lora_sidecar.config.settings import Config
from lora_sidecar.config.values import DURATION_PATTERN
from tests.support.configs import SERVER, adapter, problems, server
from tests.support.paths import ROOT

SHIPPED = ROOT / "config"


def sections(section: type[Struct] = Config) -> Iterator[type[Struct]]:
    """A section and all that are in it."""
    yield section
    for key in keys(section):
        if key.section is not None:
            yield from sections(key.section)


KEYS = [pytest.param(key, id=f"{section.__name__}.{key.name}") for section in sections() for key in keys(section)]


def test_the_shipped_reference_is_what_the_program_prints() -> None:
    """`lora-sidecar config example > config/sidecar.yaml` is all that a new key needs beside its field."""
    assert (SHIPPED / "sidecar.yaml").read_text() == example()


def test_the_reference_names_every_key() -> None:
    """Its tree has every key in its order; those of a section that may be null stand in a comment."""

    def check(section: type[Struct], tree: Any) -> None:
        assert [key.name for key in keys(section)] == list(tree)
        for key in keys(section):
            value = tree[key.name]
            if key.section is not None and value is not None:
                check(key.section, value[0] if isinstance(value, list) else value)

    check(Config, yaml.safe_load(example()))
    assert [line.strip() for line in example().splitlines() if re.match(" +#   [a-z]", line)] == [
        "#   ca_file: null",
        "#   cert_file: null",
        "#   key_file: null",
    ]


def test_the_reference_can_be_read() -> None:
    """No line is longer than an editor is wide, and none ends with a space."""
    assert max(map(len, example().splitlines())) <= 120
    assert not re.search(" $", example(), re.MULTILINE)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_explained(key: Key) -> None:
    """Each has its meaning, the words that it takes where they are few, and an example where it has no default."""
    assert key.description.endswith(".")
    for kind in key.kinds:
        if isinstance(kind, inspect.LiteralType):
            mentioned = {*re.findall(r"[a-z]+", key.description), key.default}
            assert set(kind.values) <= mentioned
    assert not key.required or key.example is not None or key.section is not None


@pytest.mark.parametrize("key", KEYS)
def test_a_number_has_bounds_and_its_default_keeps_them(key: Key) -> None:
    """A duration without bounds would be one that no message and no schema can explain."""
    for kind in key.kinds:
        if isinstance(kind, inspect.FloatType | inspect.IntType):
            assert kind.ge is not None
            assert kind.le is not None
            assert kind.ge < kind.le
            assert not isinstance(key.default, float | int) or kind.ge <= key.default <= kind.le


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
        if "$ref" not in body:
            return body["default"]
        inner = json_schema()["$defs"][body["$ref"].rpartition("/")[2]]["properties"]
        assert {key: filled(part) for key, part in inner.items()} == body["default"]
        return body["default"]

    properties = json_schema()["properties"]
    top = {key: filled(body) for key, body in properties.items() if key != "servers"}
    text = yaml.safe_dump(top | {"servers": [{"name": "a", "url": "http://h"}]})

    assert parse(text.encode(), "test.yaml") == parse(SERVER.encode(), "test.yaml")


def test_the_schema_introduces_itself() -> None:
    """An editor shows its title and its description."""
    found = json_schema()

    assert found["title"] == "lora-sidecar"
    assert found["description"] == "Configuration of lora-sidecar. Durations are texts such as 5s, 100ms or 1m30s."
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_schema_explains_durations() -> None:
    """A pattern cannot say from where to where; the description does, also of one that may be null."""
    sections = json_schema()["$defs"]
    health = sections["ServerHealthConfig"]["properties"]["wedged_after"]

    assert sections["HeartbeatConfig"]["properties"]["interval"] == {
        "description": "The time between two looks at a server that answers. From 100ms to 5m.",
        "type": "string",
        "pattern": DURATION_PATTERN,
        "default": "5s",
    }
    assert health["anyOf"][0] == {"description": "From 30s to 24h.", "type": "string", "pattern": DURATION_PATTERN}
    assert health["default"] == "30m"
