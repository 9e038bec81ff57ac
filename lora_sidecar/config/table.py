"""One table, three uses: the Structs of `config.py` say type, bounds, default and meaning of each key once.

Here is what an annotation can say, and what follows from it without reading a file: the JSON Schema, and which change
needs a restart. Guards against a schema, a parser and a documentation that are kept by hand and drift apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from msgspec import NODEFAULT, Struct, structs

from lora_sidecar.config.strict_yaml import child
from lora_sidecar.config.values import DURATION_PATTERN, TRIMMED_PATTERN, Fault, format_duration


class Flag(Struct, frozen=True):
    """A YAML boolean."""


class Whole(Struct, frozen=True):
    """A whole number within bounds, or a word where one is named."""

    low: int
    high: int
    word: str | None = None


class Duration(Struct, frozen=True):
    """Seconds, written as a number with a unit; bounds in the same notation."""

    low: str
    high: str


class Text(Struct, frozen=True):
    """A printable, non-empty text without spaces around it; `pattern` is what a JSON Schema can say, `read` the rule.

    A `secret` text is never repeated in a message, since people put the key where its file's name belongs.
    """

    read: Callable[[str], str | Fault] = str
    pattern: str = TRIMMED_PATTERN
    longest: int = 4096
    secret: bool = False


class Choice(Struct, frozen=True):
    """One of a few words."""

    options: tuple[str, ...]


class Section(Struct, frozen=True):
    """A mapping that becomes a Struct."""

    type: type[Struct]


class Listing(Struct, frozen=True):
    """A list; `item` is taken from the annotation where it is None."""

    most: int
    fewest: int = 0
    item: Kind | None = None


Kind = Flag | Whole | Duration | Text | Choice | Section | Listing


class Key(Struct, frozen=True):
    """What an annotation says of a key: its meaning for people, its kind where the type leaves it open."""

    doc: str
    kind: Kind | None = None
    restart: bool = False


class Slot(Struct, frozen=True):
    """One key of a section, complete; `default` is NODEFAULT where the key must be given."""

    name: str
    doc: str
    kind: Kind
    nullable: bool
    default: Any
    restart: bool


@cache
def slots(section: type[Struct]) -> tuple[Slot, ...]:
    """Return the keys of a section, in their order."""
    return tuple(_slot(field) for field in structs.fields(section))


def _slot(field: structs.FieldInfo) -> Slot:
    hint, key = get_args(field.type)
    options = get_args(hint)
    nullable = NoneType in options
    if nullable:
        (hint,) = (option for option in options if option is not NoneType)
    return Slot(field.encode_name, key.doc, _kind(hint, key.kind), nullable, field.default, key.restart)


def _kind(hint: Any, stated: Kind | None) -> Kind:  # noqa: ANN401 - a type hint
    if isinstance(stated, Listing) and stated.item is None:
        return Listing(stated.most, stated.fewest, _kind(get_args(hint)[0], None))
    if stated is not None:
        return stated
    if get_origin(hint) is Literal:
        return Choice(get_args(hint))
    return Flag() if hint is bool else Section(hint)


def schema(kind: Kind, *, nullable: bool = False) -> dict[str, Any]:
    """Return the JSON Schema of a kind of value as it stands in the file."""
    body = _schema(kind)
    return body | {"type": [body["type"], "null"]} if nullable else body


def _schema(kind: Kind) -> dict[str, Any]:
    match kind:
        case Flag():
            return {"type": "boolean"}
        case Whole():
            number = {"type": "integer", "minimum": kind.low, "maximum": kind.high}
            return number if kind.word is None else {"anyOf": [number, {"const": kind.word}]}
        case Duration():
            return {"type": "string", "pattern": DURATION_PATTERN}
        case Text():
            return {"type": "string", "minLength": 1, "maxLength": kind.longest, "pattern": kind.pattern}
        case Choice():
            return {"type": "string", "enum": list(kind.options)}
        case Listing():
            items = schema(kind.item or Text())
            return {"type": "array", "minItems": kind.fewest, "maxItems": kind.most, "items": items}
        case Section():
            keys = slots(kind.type)
            return {
                "type": "object",
                "additionalProperties": False,
                "required": [slot.name for slot in keys if slot.default is NODEFAULT],
                "properties": {slot.name: _slot_schema(slot) for slot in keys},
            }


def _slot_schema(slot: Slot) -> dict[str, Any]:
    body = schema(slot.kind, nullable=slot.nullable)
    doc = slot.doc
    if isinstance(slot.kind, Duration):
        doc = f"{doc} From {slot.kind.low} to {slot.kind.high}."
    default: dict[str, Any] = {}
    if slot.default is not NODEFAULT and not isinstance(slot.kind, Section):
        default = {"default": written(slot)}
    return {"description": doc, **body, **default}


def written(slot: Slot) -> Any:  # noqa: ANN401 - by kind
    """Return a key's default as it would stand in the file."""
    if isinstance(slot.default, float):
        return format_duration(slot.default)
    return list(slot.default) if isinstance(slot.default, tuple) else slot.default


def changed(old: Struct, new: Struct, path: str = "") -> Iterator[str]:
    """Yield the key paths, below sections but not in lists, that differ between two Structs and need a restart."""
    for slot in slots(type(new)):
        before, after = getattr(old, slot.name), getattr(new, slot.name)
        where = child(path, slot.name)
        if isinstance(slot.kind, Section) and not slot.restart:
            yield from changed(before, after, where)
        elif slot.restart and before != after:
            yield where
