from __future__ import annotations

import hashlib
import json
import math
from typing import Any, get_args

import msgspec
import pytest
import yaml
from msgspec.structs import replace

from lora_sidecar.checkpoint import decode as codec
from lora_sidecar.checkpoint.decode import MAX_BYTES, VERSION, Checkpoint, Corrupt, Format, TooNew, decode
from lora_sidecar.checkpoint.encode import encode
from lora_sidecar.core.model import Adapter, Desired, Incarnation, Origin, Paused, Suspect, Withdrawn
from tests.support.checkpoints import ADAPTER, PAYLOAD, a_checkpoint, sealed, sealed_tree
from tests.support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden" / "checkpoint"
FORMATS: tuple[Format, ...] = get_args(Format)

# What the golden files hold: each field with a value that is not its default, and names that are hard to write down.
EVERYTHING = Checkpoint(
    generation=42,
    server="vllm",
    desired=Desired(
        adapters={
            adapter.name: adapter
            for adapter in (
                Adapter("sql-assistant", "/adapters/sql-assistant", Origin.DECLARED, required=True, priority=10),
                Adapter("experts", "org/experts", Origin.REQUESTED, priority=-3, is_3d_lora_weight=True),
                Adapter("Überblick 😀", "/adapters/ü", Origin.ADOPTED, base="/models/llama"),
                Adapter('two\nlines, "quoted"', "/a\\b", Origin.ADOPTED, base="/models/llama"),
                Adapter("hidden \u202e\x7f\u2028", "/c", Origin.ADOPTED, base=""),
            )
        },
        incarnation=Incarnation(number=7, start_time=1753000000.1234567),
        listed=frozenset({"sql-assistant", "off"}),
        orphaned={"old": "/adapters/old", "older\n": "/adapters/older"},
    ),
)
# An optional field, in a file of its own: it is left out where there is nothing to say.
LINK = Adapter("link", "/adapters/current", Origin.DECLARED, listed_as="/adapters/v1")
WITH_LINK = Checkpoint(1, "vllm", Desired({"link": LINK}, Incarnation(1)))
# What was added to version 1: left out of the file where it says nothing.
ADDED = Checkpoint(
    generation=1,
    server="vllm",
    desired=Desired(
        adapters={},
        incarnation=Incarnation(1),
        withdrawn={
            "sql": Withdrawn(
                Adapter("sql", "/adapters/sql", Origin.DECLARED, required=True, listed_as="/adapters/v1"), pending=False
            ),
            "chat": Withdrawn(),
        },
        paused=Paused("disk is being moved"),
    ),
)
# The optional fields, in a file of their own: they are left out where there is nothing to say.
SUSPECTS = {
    "experts": Suspect("org/experts", 2, accused=True, files="5f3c"),
    "two\nlines": Suspect("/a\\b"),
}
WITH_SUSPECTS = replace(EVERYTHING, desired=replace(EVERYTHING.desired, suspects=SUSPECTS))
SMALL = a_checkpoint(2)
STORED = {"everything": EVERYTHING, "link": WITH_LINK, "suspects": WITH_SUSPECTS, "requests": ADDED}


def with_fields(**fields: object) -> bytes:
    """A file whose checksum holds, of an otherwise sound payload with these fields in it."""
    return sealed_tree(PAYLOAD | fields, "json")


@pytest.mark.parametrize("version", range(1, VERSION + 1))
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("part", "stored"),
    [("", "everything"), ("-listed-as", "link"), ("-suspects", "suspects"), ("-requests", "requests")],
)
def test_golden_file_of_every_version_is_read(version: int, format_: Format, part: str, stored: str) -> None:
    """A file written by any version is read as what was stored in it."""
    data = (GOLDEN / f"v{version}{part}.{format_}").read_bytes()

    assert decode(data) == STORED[stored]


@pytest.mark.parametrize("format_", FORMATS)
def test_half_a_character_is_damage(format_: Format) -> None:
    """The sum holds, and yet: no log, no page and no next save could hold the name."""
    read = decode((GOLDEN / f"v1-lone-surrogate.{format_}").read_bytes())

    assert read == Corrupt("a text in it is no Unicode text: it holds half a character")


@pytest.mark.parametrize("field", ["generation", "number", "deaths", "priority"])
def test_a_number_that_others_cannot_hold_is_damage(field: str) -> None:
    """Beyond 64 bits, or of thousands of digits: metrics and other programs could not tell it."""
    adapter = ADAPTER | ({"priority": 2**63} if field == "priority" else {})
    suspect = {"name": "a", "path": "/a", "deaths": 2**63 if field == "deaths" else 1, "accused": False, "files": ""}
    read = decode(
        with_fields(
            generation=2**63 if field == "generation" else 1,
            incarnation={"number": 2**63 if field == "number" else 1, "start_time": None},
            adapters=[adapter],
            suspects=[suspect],
        )
    )

    assert isinstance(read, Corrupt)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("part", "stored"),
    [("", "everything"), ("-listed-as", "link"), ("-suspects", "suspects"), ("-requests", "requests")],
)
def test_encoding_is_the_golden_file(format_: Format, part: str, stored: str) -> None:
    """What is written does not change by a byte without a new version; what is optional has a file of its own."""
    assert encode(STORED[stored], format_) == (GOLDEN / f"v{VERSION}{part}.{format_}").read_bytes()


def test_every_old_version_has_a_migration() -> None:
    """No version that was ever released is left without a way to the newest."""
    assert set(codec._MIGRATIONS) == set(range(1, VERSION))


def test_old_version_passes_through_each_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file two versions old is read by applying both steps in order."""

    def to_3(tree: dict[str, Any]) -> dict[str, Any]:
        return tree | {"version": 3, "server": tree["server"] + " by 3"}

    def to_4(tree: dict[str, Any]) -> dict[str, Any]:
        return tree | {"version": 4, "server": tree["server"] + " by 4"}

    monkeypatch.setattr(codec, "VERSION", 4)
    monkeypatch.setattr(codec, "_MIGRATIONS", {2: to_3, 3: to_4})
    read = decode(with_fields())

    assert isinstance(read, Checkpoint)
    assert read.server == "vllm by 3 by 4"


def test_every_field_of_the_model_is_in_the_file() -> None:
    """A field added to the model cannot be left out of the file unnoticed."""
    tree = json.loads(encode(WITH_SUSPECTS, "json")) | json.loads(encode(ADDED, "json"))

    (link,) = json.loads(encode(WITH_LINK, "json"))["adapters"]
    assert set(link) == {field.name for field in msgspec.structs.fields(Adapter)}
    assert set(tree["withdrawn"][1]["declared"]) == {field.name for field in msgspec.structs.fields(Adapter)}
    assert set(tree["withdrawn"][1]) == {"name"} | {field.name for field in msgspec.structs.fields(Withdrawn)}
    assert set(tree["incarnation"]) == {field.name for field in msgspec.structs.fields(Incarnation)}
    assert set(tree["suspects"][0]) == {"name"} | {field.name for field in msgspec.structs.fields(Suspect)}
    assert {field.name for field in msgspec.structs.fields(Desired)} <= set(tree)


@pytest.mark.parametrize("format_", FORMATS)
def test_withdrawn_and_paused_come_back_as_they_were(format_: Format) -> None:
    """What was asked for through the control port survives the file, in either format."""
    assert decode(encode(ADDED, format_)) == ADDED


def test_desired_and_withdrawn_at_once_is_corrupt() -> None:
    """A name that is wanted and unwanted leaves no reading that could be acted upon."""
    withdrawn = [{"name": "a", "pending": True, "declared": None}]
    found = decode(sealed_tree({**PAYLOAD, "adapters": [ADAPTER], "withdrawn": withdrawn}, "json"))

    assert isinstance(found, Corrupt)
    assert "'a' is desired and withdrawn" in found.reason


@pytest.mark.parametrize("format_", FORMATS)
def test_each_flipped_bit_is_detected(format_: Format) -> None:
    """No single flipped bit, header and whitespace included, leaves a file that is accepted or called newer."""
    data = bytearray(encode(SMALL, format_))
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        assert isinstance(decode(bytes(data)), Corrupt), bit
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("format_", FORMATS)
def test_each_truncation_is_detected(format_: Format) -> None:
    """A file cut short at any length is corrupt."""
    data = encode(SMALL, format_)

    assert all(isinstance(decode(data[:length]), Corrupt) for length in range(len(data)))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("tail", [b" ", b"\n", b"\0", b"x", b"{}"])
def test_appended_bytes_are_detected(format_: Format, tail: bytes) -> None:
    """Nothing may follow the end of a file, not even a line break."""
    assert isinstance(decode(encode(SMALL, format_) + tail), Corrupt)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"\0" * 4096, "it holds only zero bytes, as after a power loss"),
        (b"<html></html>", "its first line is not that of a checkpoint"),
        (b"{}", "its first line is not that of a checkpoint"),
        (b"\xff\xfe\x00", "its first line is not that of a checkpoint"),
        (b"format: lora-sidecar/checkpoint\nversion: 1\n", "its second line holds no checksum"),
        (b"X\0\0", "its first line is not that of a checkpoint"),
        (b" " * (MAX_BYTES + 1), f"it is larger than {MAX_BYTES} bytes"),
        (b" " * MAX_BYTES, "its first line is not that of a checkpoint"),
    ],
    ids=["empty", "zeros", "html", "json", "binary", "no-sum", "zeros-at-the-end", "huge", "just-not-too-large"],
)
def test_what_is_no_checkpoint_is_named(data: bytes, reason: str) -> None:
    """A person reads what kind of wrong file it is."""
    assert decode(data) == Corrupt(reason)


def test_hand_edited_file_is_refused_with_the_sum_that_would_mend_it() -> None:
    """An edit by hand is not taken silently, and the message holds the sum to write if it was meant."""
    edited = encode(SMALL, "yaml").replace(b'"/adapters/2"', b'"/adapters/3"')
    refused = decode(edited)
    assert isinstance(refused, Corrupt)
    assert refused.hint == "if it was edited on purpose, write the second sum in place of the first"
    stated, actual = (word.rstrip(",:") for word in refused.reason.split() if len(word.rstrip(",:")) == 64)
    mended = decode(edited.replace(stated.encode(), actual.encode()))

    assert isinstance(mended, Checkpoint)
    assert mended.desired.adapters["adapter-2"].path == "/adapters/3"


@pytest.mark.parametrize("format_", FORMATS)
def test_sum_is_that_of_the_lines_after_the_second(format_: Format) -> None:
    """`tail -n +3 FILE | sha256sum` gives the sum that the second line states."""
    first, second, payload = encode(SMALL, format_).split(b"\n", 2)

    assert b"lora-sidecar/checkpoint" in first
    assert hashlib.sha256(payload).hexdigest().encode() in second


@pytest.mark.parametrize("format_", FORMATS)
def test_newer_version_is_told_from_damage(format_: Format) -> None:
    """A sound file of a later version says so, whatever else that version put into it."""
    assert decode(sealed_tree({"version": 3, "news": ["x"]}, format_)) == TooNew(3)
    assert decode(sealed_tree({"version": 999_999}, format_)) == TooNew(999_999)


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, None, 10**6, 10**12, [1]])
def test_absurd_version_is_corrupt(version: object) -> None:
    """A version that no program can have written is damage, not the future."""
    assert decode(with_fields(version=version)) == Corrupt("its version is not a positive whole number")


@pytest.mark.parametrize(
    "fields",
    [
        {"generation": "1"},
        {"generation": True},
        {"generation": 1.5},
        {"generation": -1},
        {"server": None},
        {"incarnation": {"number": 1}},
        {"incarnation": {"number": -1, "start_time": None}},
        {"incarnation": {"number": 1, "start_time": "5"}},
        {"incarnation": {"number": 1, "start_time": True}},
        {"incarnation": {"number": 1, "start_time": 10**400}},
        {"incarnation": {"number": 1, "start_time": math.nan}},
        {"incarnation": {"number": 1, "start_time": math.inf}},
        {"adapters": {}},
        {"adapters": [None]},
        {"adapters": [ADAPTER | {"origin": "stolen"}]},
        {"adapters": [ADAPTER | {"required": 1}]},
        {"adapters": [ADAPTER | {"name": 7}]},
        {"adapters": [ADAPTER | {"extra": 1}]},
        {"adapters": [{name: value for name, value in ADAPTER.items() if name != "path"}]},
        {"adapters": [ADAPTER, ADAPTER | {"path": "/b"}]},
        {"listed": ["a", "a"]},
        {"listed": "a"},
        {"orphaned": [{"name": "a", "path": "/a"}, {"name": "a", "path": "/b"}]},
        {"orphaned": {"a": "/a"}},
        pytest.param({"un\nknown \ud800": 1}, id="unknown"),
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_sealed_nonsense_is_corrupt(fields: dict[str, Any]) -> None:
    """Content that breaks a rule is refused with one printable line, though its checksum holds."""
    read = decode(with_fields(**fields))

    assert isinstance(read, Corrupt)
    assert read.reason.isprintable()
    assert read.reason.isascii()
    assert len(read.reason) < 400


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(sealed(b'"version": 1}', "json"), id="fields-missing"),
        pytest.param(sealed(b'"version": 1, "version": 2}', "json"), id="key-twice"),
        pytest.param(with_fields(incarnation={})[:-1] + b"\n}", id="broken-sum"),
        pytest.param(sealed(b'"version": ' + b"[" * 1_000_000, "json"), id="open-brackets"),
        pytest.param(sealed(b'"version": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "json"), id="nested-arrays"),
        pytest.param(sealed(b'"version": ' + b'{"a":' * 200_000 + b"1" + b"}" * 200_001, "json"), id="nested-objects"),
        pytest.param(sealed(b'"version": 1, "generation": ' + b"9" * 100_000 + b"}", "json"), id="endless-number"),
        pytest.param(sealed(b'"version": 1e999}', "json"), id="infinite-version"),
        pytest.param(sealed(b'"version": 1, "server": "\xff"}', "json"), id="not-utf8"),
        pytest.param(sealed(b"", "json"), id="no-payload"),
        pytest.param(sealed(b"", "yaml"), id="yaml-no-payload"),
        pytest.param(sealed(b"version: 1", "yaml"), id="yaml-no-last-line-break"),
        pytest.param(sealed(b"version: 1\nversion: 2\n", "yaml"), id="yaml-key-twice"),
        pytest.param(sealed(b"version: 1\nlisted: &a []\nadapters: *a\n", "yaml"), id="yaml-alias"),
        pytest.param(sealed(b'version: 1\nserver: !!python/name:os.system "x"\n', "yaml"), id="yaml-tag"),
        pytest.param(sealed(b"version: 1\n<<: {}\n", "yaml"), id="yaml-merge"),
        pytest.param(sealed(b"- 1\n", "yaml"), id="yaml-item-without-a-field"),
        pytest.param(sealed(b"version: 1\nserver: on\n", "yaml"), id="yaml-bare-word"),
        pytest.param(sealed(b"version: " + b"[" * 1_000_000 + b"\n", "yaml"), id="yaml-open-brackets"),
        pytest.param(sealed(b"version: 1\nserver: \xff\n", "yaml"), id="yaml-not-utf8"),
    ],
)
def test_sealed_trap_for_the_parser_is_corrupt(data: bytes) -> None:
    """No content raises, crashes the parser or is half accepted, even where its checksum was made to hold."""
    assert isinstance(decode(data), Corrupt)


def test_json_file_is_json() -> None:
    """Any JSON tool reads the file."""
    tree = json.loads(encode(EVERYTHING, "json"))

    assert (tree["format"], tree["version"], tree["generation"]) == ("lora-sidecar/checkpoint", 2, 42)
    assert {adapter["name"] for adapter in tree["adapters"]} == set(EVERYTHING.desired.adapters)


def test_yaml_file_is_yaml() -> None:
    """A YAML tool reads the same values from the YAML file as a JSON tool from the JSON file."""
    whole = {name: one for name, one in EVERYTHING.desired.adapters.items() if not name.startswith("half")}
    checkpoint = msgspec.structs.replace(
        EVERYTHING, desired=msgspec.structs.replace(EVERYTHING.desired, adapters=whole)
    )
    from_yaml = yaml.safe_load(encode(checkpoint, "yaml"))
    from_json = json.loads(encode(checkpoint, "json"))

    assert from_yaml.pop("sha256") != from_json.pop("sha256")
    assert from_yaml == from_json


@pytest.mark.parametrize("format_", FORMATS)
def test_documented_example_is_a_checkpoint(format_: Format) -> None:
    """The specification shows a file that is one, to the last byte."""
    document = (ROOT / "docs" / "checkpoint-format.md").read_text()
    example = document.split(f"```{format_}\n")[1].split("```\n")[0].encode()
    read = decode(example)

    assert isinstance(read, Checkpoint)
    assert encode(read, format_) == example


def test_empty_checkpoint_is_kept() -> None:
    """That nothing is desired is remembered, and differs from nothing being known."""
    nothing = Checkpoint(0, "vllm", Desired(adapters={}, incarnation=Incarnation(0)))

    assert [decode(encode(nothing, format_)) for format_ in FORMATS] == [nothing, nothing]


@pytest.mark.parametrize("start_time", [math.nan, math.inf, -math.inf])
def test_start_time_that_is_no_number_is_stored_as_unknown(start_time: float) -> None:
    """A server that publishes nonsense as its start time leaves a file that can be read."""
    desired = Desired(adapters={}, incarnation=Incarnation(1, start_time))
    read = decode(encode(Checkpoint(1, "vllm", desired), "json"))

    assert isinstance(read, Checkpoint)
    assert read.desired.incarnation.start_time is None


def test_hidden_characters_are_escaped() -> None:
    """`cat` shows what the file holds: no character in it moves the cursor, reverses the text or is a line break."""
    text = encode(EVERYTHING, "yaml").decode()

    assert all(line.isprintable() for line in text.split("\n"))
    assert "Überblick 😀" in text
    plain = Checkpoint(1, "a\x7fb", Desired({}, Incarnation(1)))
    assert b'"a\\u007fb"' in encode(plain, "yaml")
    assert decode(encode(plain, "yaml")) == plain
