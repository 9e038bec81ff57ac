from __future__ import annotations

import pytest

from lora_sidecar.fleet.codec import decode, encode
from lora_sidecar.fleet.document import Entry, FleetDocument, Newer, NoDocument, Unreadable, wanted

GOLDEN = """{"version":1,"serial":58,
"adapters":[
{"name":"sql","path":"/adapters/sql","base":"Qwen/Qwen3-8B","serial":57,"by":"vllm-0","at":"2026-11-26T20:00:00Z"},
{"name":"chat","path":"/adapters/chat","base":"Qwen/Qwen3-8B","serial":58,"by":"vllm-2","at":"2026-11-26T20:01:00Z"}
],
"owner":{"team":"search"},"writes":["57-0a1b2c","58-9f2c41"]}
"""


def test_the_format_of_version_1() -> None:
    """An adapter a line, compact: what an older sidecar wrote is read, and written alike."""
    document = FleetDocument(
        58,
        (
            Entry("sql", "/adapters/sql", "Qwen/Qwen3-8B", 57, "vllm-0", "2026-11-26T20:00:00Z"),
            Entry("chat", "/adapters/chat", "Qwen/Qwen3-8B", 58, "vllm-2", "2026-11-26T20:01:00Z"),
        ),
        ("57-0a1b2c", "58-9f2c41"),
        {"owner": b'{"team":"search"}'},
    )
    assert encode(document) == GOLDEN
    assert decode(GOLDEN) == document


def test_an_empty_fleet() -> None:
    """A document that lists nothing is a document."""
    assert encode(FleetDocument(3)) == '{"version":1,"serial":3,\n"adapters":[],\n"writes":[]}\n'
    assert decode(encode(FleetDocument(3))) == FleetDocument(3)


def test_what_a_person_writes_by_hand_may_be_short() -> None:
    """Name and path are enough: the entry is then for any base model."""
    found = decode('{"version": 1, "adapters": [{"name": "sql", "path": "/adapters/sql"}]}')
    assert found == FleetDocument(0, (Entry("sql", "/adapters/sql"),))


@pytest.mark.parametrize("text", [None, "", "  \n"])
def test_no_text_is_no_document(text: str | None) -> None:
    """A new ConfigMap, or one that was wiped: never an empty fleet by itself."""
    assert decode(text) == NoDocument()


def test_unknown_fields_are_kept_to_the_letter() -> None:
    """Numbers of any size, nested values and escapes go through a rewrite unchanged, each on its adapter's line."""
    text = (
        '{"version": 1, "owner": {"team": "search"}, "adapters": [\n'
        '{"name": "sql", "path": "/a", "weight": 1e400, "big": 123456789012345678901234567890,\n'
        ' "tags": [1,\n  "\\u00e9"]}\n]}'
    )
    once = encode(decoded(text))
    assert '"weight":1e400,"big":123456789012345678901234567890,"tags":[1,   "\\u00e9"]}' in once
    assert '"owner":{"team": "search"}' in once
    assert encode(decoded(once)) == once


def decoded(text: str) -> FleetDocument:
    """A document that can be read."""
    found = decode(text)
    assert isinstance(found, FleetDocument)
    return found


def test_a_newer_version_is_known_as_such_whatever_else_it_says() -> None:
    """It may give any field another meaning, so nothing of it is judged."""
    found = decode('{"version": 2, "adapters": "elsewhere"}')
    assert found == Newer(2)
    assert "version 2" in str(found)


@pytest.mark.parametrize(
    ("adapters", "line", "rule"),
    [
        pytest.param('{"name":"a" "path":"b"}', 2, "not JSON", id="a comma is missing"),
        pytest.param('{"name":"a"}', 2, "adapters[0]", id="no path"),
        pytest.param('{"name":"a","path":"b"},\n\n{"name":"c","path":5}', 4, "adapters[1]", id="a number as path"),
        pytest.param('{"name":"a","path":"b"},\n{"name":"a","path":"c"}', 3, "'a' stands twice", id="one twice"),
        pytest.param(
            '{"name":"a","path":"b","base":"m"},\n{"name":"a","path":"c","base":"m"}', 3, "'m'", id="twice for one base"
        ),
        pytest.param('{"name":"a","path":"b","path":"c"}', 0, "'path' stands twice", id="a key twice"),
        pytest.param('{"name":"","path":"b"}', 2, "name is empty", id="an empty name"),
        pytest.param('{"name":"a","path":""}', 2, "path is empty", id="an empty path"),
        pytest.param('{"name":"a","path":"b","base":""}', 2, "base is empty", id="an empty base"),
        pytest.param('{"name":"a\\u0007","path":"b"}', 2, "do not print", id="a bell"),
        pytest.param('{"name":"' + "n" * 257 + '","path":"b"}', 2, "257 characters", id="a long name"),
        pytest.param('{"name":"a","path":"b","serial":-1}', 2, "serial must", id="a negative serial"),
        pytest.param("null", 2, "adapters[0]", id="no adapter"),
    ],
)
def test_a_mistake_in_an_adapter_is_named_with_its_line(adapters: str, line: int, rule: str) -> None:
    """Who edits by hand is told where, and which rule: the condition says it."""
    found = decode('{"version":1,"adapters":[\n' + adapters + "]}")
    assert isinstance(found, Unreadable)
    assert (found.line, rule in found.rule) == (line, True), found
    assert len(found.rule) < 300
    assert (f"line {line}: " in str(found)) == bool(line)


def test_the_line_is_that_of_the_adapter_and_not_of_its_double_elsewhere() -> None:
    """A field that nobody knows may hold the same text."""
    found = decode('{"version":1,"x":[{"name":1}],\n"adapters":[\n{"name":1}]}')
    assert isinstance(found, Unreadable)
    assert found.line == 3


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        pytest.param('{"version":1,"serial":9007199254740993}', 0, "serial must", id="a serial beyond JSON"),
        pytest.param('{"version":1,"adapters":{}}', 0, "array", id="an object of adapters"),
        pytest.param('{"version":1,"writes":["' + "x" * 65 + '"]}', 0, "writes must", id="a mark that is none"),
        pytest.param('{"adapters":[]}', 0, "version must", id="no version"),
        pytest.param('{"version":true}', 0, "version must", id="true as version"),
        pytest.param('{"version":0}', 0, "version must", id="version 0"),
        pytest.param('{"version":"1"}', 0, "version must", id="a version in quotes"),
        pytest.param("[]", 1, "not an object", id="an array"),
        pytest.param('{"version":1,"x":NaN}', 0, "NaN", id="not a number"),
        pytest.param("[" * 100_000, 0, "nested", id="an abyss"),
        pytest.param('{"version":1,"x":' + "9" * 5000 + "}", 0, "4300", id="a number without end"),
    ],
)
def test_a_mistake_around_the_adapters_is_named(text: str, line: int, rule: str) -> None:
    """What is no document is told by its rule, and never raises."""
    found = decode(text)
    assert isinstance(found, Unreadable)
    assert (found.line, rule in found.rule) == (line, True), found


def test_of_many_marks_the_last_ones_count() -> None:
    """A document does not grow by its past."""
    marks = [f"{number}-abcdef" for number in range(100)]
    assert decoded('{"version":1,"writes":["' + '","'.join(marks) + '"]}').writes == tuple(marks[-64:])


def test_the_same_name_for_two_base_models_is_two_entries() -> None:
    """A rollout to another base model shares the document with the old pods."""
    document = decoded(
        '{"version":1,"adapters":[{"name":"a","path":"/old","base":"old"},{"name":"a","path":"/new","base":"new"},'
        '{"name":"a","path":"/any"},{"name":"b","path":"/b"}]}'
    )
    assert {name: entry.path for name, entry in wanted(document, "old").items()} == {"a": "/old", "b": "/b"}
    assert {name: entry.path for name, entry in wanted(document, "new").items()} == {"a": "/new", "b": "/b"}
    assert {name: entry.path for name, entry in wanted(document, "other").items()} == {"a": "/any", "b": "/b"}
