from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import NODEFAULT, Struct
from msgspec.structs import replace

from lora_sidecar.config.settings import AdapterConfig, Config, ServerConfig, json_schema
from lora_sidecar.config.table import Choice, Duration, Flag, Key, Listing, Section, Text, Whole, changed, schema, slots
from lora_sidecar.config.values import DURATION_PATTERN
from lora_sidecar.reconcile.policy import Policy


class Inner(Struct, frozen=True):
    """A section of one key."""

    size: Annotated[int, Key("Size.", Whole(1, 9), restart=True)] = 5


class Outer(Struct, frozen=True):
    """One key of each kind."""

    name: Annotated[str, Key("Name.", Text(longest=7, pattern="^a"))]
    word: Annotated[int, Key("Word.", Whole(1, 2, "auto"))] = 2
    room: Annotated[int | None, Key("Room.", Whole(1, 2))] = None
    mode: Annotated[Literal["a", "b"], Key("Mode.", restart=True)] = "a"
    flag: Annotated[bool, Key("Flag.")] = False
    wait: Annotated[float, Key("Wait.", Duration("1s", "5m"))] = 90.0
    inner: Annotated[Inner, Key("Inner.")] = Inner()
    whole: Annotated[Inner, Key("Whole.", restart=True)] = Inner()
    many: Annotated[tuple[Inner, ...], Key("Many.", Listing(3, 1), restart=True)] = ()
    texts: Annotated[tuple[str, ...], Key("Texts.", Listing(4, item=Text(longest=2)))] = ("x",)


def test_the_keys_of_a_section_are_read_from_its_annotations() -> None:
    """Kind, whether it may be null, default, and whether it needs a restart."""
    found = [(one.name, one.doc, one.kind, one.nullable, one.default, one.restart) for one in slots(Outer)]

    assert found == [
        ("name", "Name.", Text(longest=7, pattern="^a"), False, NODEFAULT, False),
        ("word", "Word.", Whole(1, 2, "auto"), False, 2, False),
        ("room", "Room.", Whole(1, 2), True, None, False),
        ("mode", "Mode.", Choice(("a", "b")), False, "a", True),
        ("flag", "Flag.", Flag(), False, False, False),
        ("wait", "Wait.", Duration("1s", "5m"), False, 90.0, False),
        ("inner", "Inner.", Section(Inner), False, Inner(), False),
        ("whole", "Whole.", Section(Inner), False, Inner(), True),
        ("many", "Many.", Listing(3, 1, Section(Inner)), False, (), True),
        ("texts", "Texts.", Listing(4, item=Text(longest=2)), False, ("x",), False),
    ]


def test_a_schema_says_all_that_is_checked() -> None:
    """In the words of JSON Schema, with what each key means and stands for when it is left out."""
    size = {"description": "Size.", "type": "integer", "minimum": 1, "maximum": 9, "default": 5}
    inner: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "required": [],
        "properties": {"size": size},
    }
    body = schema(Section(Outer))
    keys = body.pop("properties")

    assert body == {"type": "object", "additionalProperties": False, "required": ["name"]}
    assert schema(Flag()) == {"type": "boolean"}
    assert schema(Whole(1, 2), nullable=True) == {"type": ["integer", "null"], "minimum": 1, "maximum": 2}
    word = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 2}, {"const": "auto"}]}
    assert schema(Whole(1, 2, "auto")) == word
    assert keys == {
        "name": {"description": "Name.", "type": "string", "minLength": 1, "maxLength": 7, "pattern": "^a"},
        "word": {"description": "Word.", **word, "default": 2},
        "room": {
            "description": "Room.",
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": 2,
            "default": None,
        },
        "mode": {"description": "Mode.", "type": "string", "enum": ["a", "b"], "default": "a"},
        "flag": {"description": "Flag.", "type": "boolean", "default": False},
        "wait": {
            "description": "Wait. From 1s to 5m.",
            "type": "string",
            "pattern": DURATION_PATTERN,
            "default": "1m30s",
        },
        "inner": {"description": "Inner.", **inner},
        "whole": {"description": "Whole.", **inner},
        "many": {"description": "Many.", "type": "array", "minItems": 1, "maxItems": 3, "items": inner, "default": []},
        "texts": {
            "description": "Texts.",
            "type": "array",
            "minItems": 0,
            "maxItems": 4,
            "items": schema(Text(longest=2)),
            "default": ["x"],
        },
    }


def test_the_schema_introduces_itself() -> None:
    """An editor shows its title and its description."""
    found = json_schema()

    assert found["title"] == "lora-sidecar"
    assert found["description"] == "Configuration of lora-sidecar. Durations are texts such as 5s, 100ms or 1m30s."
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_what_needs_a_restart_is_named_by_its_path() -> None:
    """Below sections; a section that needs one as a whole, and a list, is named itself."""
    old = Outer("a")

    assert list(changed(old, old)) == []
    assert list(changed(old, replace(old, name="ab", flag=True, wait=1.0, texts=()))) == []
    assert list(changed(old, replace(old, mode="b", inner=Inner(6), whole=Inner(6), many=(Inner(),)))) == [
        "mode",
        "inner.size",
        "whole",
        "many",
    ]
    assert list(changed(old, replace(old, inner=Inner(6)), "x")) == ["x.inner.size"]


def test_a_policy_is_what_the_config_asks_of_that_server() -> None:
    """Its own limit of adapters, and the rules of all."""
    servers = (
        ServerConfig("one", "http://h:1", max_cpu_loras=3),
        ServerConfig("two", "http://h:2", max_cpu_loras=5),
        ServerConfig("three", "http://h:3"),
    )
    config = Config(servers=servers)

    assert [Policy.of(config, name).capacity for name in ("one", "two", "three", "none", "")] == [
        3,
        5,
        None,
        None,
        None,
    ]
    plain = Policy.of(config)
    assert plain == Policy(config.policy, config.restore.backoff, config.heartbeat, declares=False)
    asked = replace(
        config,
        adapters=(AdapterConfig("a", "/a"),),
        policy=replace(
            config.policy, on_external_unload="restore", on_files_gone="unload", replace="never", prune=True
        ),
    )
    other = Policy.of(asked)
    assert (other.rules, other.declares) == (asked.policy, True)
