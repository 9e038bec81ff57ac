"""The config's reference, derived from the settings: a JSON Schema for editors, a commented example for people.

Guards against a reference that is kept by hand and falls behind: `config/sidecar.yaml` is what `example` prints.
"""

from __future__ import annotations

import textwrap
from typing import Any, Final

import msgspec
import yaml
from msgspec import Struct, inspect

from lora_sidecar.config.keys import Key, keys
from lora_sidecar.config.settings import Config
from lora_sidecar.config.values import DURATION_PATTERN, format_duration

_WIDTH: Final = 120

_HEAD: Final = """\
# Every key of the config with its default. Only servers, with a name and a url, has to be given.
#
# Durations are a number with a unit: 100ms, 5s, 1m30s, 2h. Sizes and counts are plain numbers. File names are absolute.
# Unknown keys, duplicate keys, anchors, aliases and tags are errors, and so is a text that YAML converts
# (on, 007, 1.0, 12:30:00): quote it. The file is UTF-8 and at most 1 MiB.
#
# A change is applied while the program runs, but for the keys that say "Applied at a restart."
"""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the file, for editors; the parser checks more than it can say."""
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "lora-sidecar",
        "description": "Configuration of lora-sidecar. Durations are texts such as 5s, 100ms or 1m30s.",
    }
    _, sections = msgspec.json.schema_components((Config,), ref_template="#/$defs/{name}")
    whole: dict[str, Any] = _as_written(sections.pop(Config.__name__))
    return whole | head | {"$defs": _as_written(sections)}


def _as_written(part: Any) -> Any:  # noqa: ANN401 - of any part of a JSON document
    """A part of a schema with seconds as the durations that stand in the file; all its other numbers are whole."""
    match part:
        case {"type": "number", "minimum": low, "maximum": high, **rest}:
            text = f"{rest.pop('description', '')} From {format_duration(low)} to {format_duration(high)}."
            return {"description": text.strip(), "type": "string", "pattern": DURATION_PATTERN, **_as_written(rest)}
        case dict():
            return {name: _as_written(value) for name, value in part.items()}
        case list():
            return [_as_written(value) for value in part]
        case float():
            return format_duration(part)
        case _:
            return part


def example() -> str:
    """Return a commented file with every key and its default; its one server and its one adapter are made up."""
    return _HEAD + "".join("\n" + "".join(f"{line}\n" for line in _key(key)) for key in keys(Config))


def _key(key: Key) -> list[str]:
    """The lines of one key, its comment first; a section that may be null is shown as a comment."""
    comment = " ".join((key.description, *_bounds(key), *(["Applied at a restart."] if key.restart else [])))
    above = [f"# {line}" for line in textwrap.wrap(comment, _WIDTH - 8, break_long_words=False, break_on_hyphens=False)]
    if key.section is None:
        return [*above, f"{key.name}: {_value(key)}"]
    inner = _section(key.section)
    if key.listed:
        return [*above, f"{key.name}:", f"  - {inner[0]}", *(f"    {line}" for line in inner[1:])]
    if key.default is None:
        return [*above, *(f"#   {line}" for line in inner), f"{key.name}: null"]
    return [*above, f"{key.name}:", *(f"  {line}" for line in inner)]


def _section(section: type[Struct]) -> list[str]:
    return [line for key in keys(section) for line in _key(key)]


def _value(key: Key) -> str:
    value = key.example if key.required else _as_written(key.default)
    dumped: str = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, width=4 * _WIDTH)
    return dumped.removesuffix("...\n").rstrip()


def _bounds(key: Key) -> list[str]:
    """The bounds of a number or a duration as a sentence; none for another value."""
    for kind in key.kinds:
        match kind:
            case inspect.FloatType(ge=float(low), le=float(high)):
                return [f"From {format_duration(low)} to {format_duration(high)}."]
            case inspect.IntType(ge=int(low), le=int(high)):
                return [f"From {low} to {high}."]
            case _:
                continue
    return []
