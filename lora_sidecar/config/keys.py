"""The keys of a section, as its annotations describe them.

Guards against a second reading of the annotations: the reader, the schema, the example and the question what needs a
restart all go by what is said here.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from msgspec import NODEFAULT, Struct, inspect


class Key(Struct, frozen=True):
    """One key of a section: `kind` with all that is annotated; `default` is NODEFAULT where the key must be given."""

    name: str
    kind: inspect.Type
    description: str
    default: Any
    example: Any
    restart: bool

    @property
    def required(self) -> bool:
        """Whether a file must give it."""
        return self.default is NODEFAULT

    @property
    def kinds(self) -> tuple[inspect.Type, ...]:
        """The types that its value may be of, without what is annotated: one, but for a union."""
        kind, _ = plain(self.kind)
        return tuple(plain(one)[0] for one in kind.types) if isinstance(kind, inspect.UnionType) else (kind,)

    @property
    def listed(self) -> bool:
        """Whether its value is a list."""
        return isinstance(self.kinds[0], inspect.VarTupleType)

    @property
    def section(self) -> type[Struct] | None:
        """The section that is its value, or each of its values; None if it is none."""
        kind = self.kinds[0]
        kind = plain(kind.item_type)[0] if isinstance(kind, inspect.VarTupleType) else kind
        return kind.cls if isinstance(kind, inspect.StructType) else None


@cache
def keys(section: type[Struct]) -> tuple[Key, ...]:
    """Return the keys of a section, in their order."""
    info = inspect.type_info(section)
    if not isinstance(info, inspect.StructType):
        raise TypeError(section)
    return tuple(_key(field) for field in info.fields)


def _key(field: inspect.Field) -> Key:
    _, said = plain(field.type)
    example = said.get("examples", [None])[0]
    return Key(field.encode_name, field.type, said["description"], field.default, example, said.get("restart", False))


def plain(kind: inspect.Type) -> tuple[inspect.Type, dict[str, Any]]:
    """Return a type without what its annotation says beyond it, and that; what stands further out counts."""
    said: dict[str, Any] = {}
    while isinstance(kind, inspect.Metadata):
        said = {**(kind.extra or {}), **(kind.extra_json_schema or {}), **said}
        kind = kind.type
    return kind, said


def child(path: str, name: str) -> str:
    """Return the key path of `name` in the mapping at `path`; a name that is not word-like is quoted."""
    word = name if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) else shown(name)
    return f"{path}.{word}" if path else word


def shown(text: str, limit: int = 60) -> str:
    """Return a text in quotes for a message: one line, bounded, with nothing in it that a terminal would act on."""
    cut = text if len(text) <= limit else f"{text[:limit]}…"
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else _escaped(c) for c in cut) + '"'


def _escaped(character: str) -> str:
    return f"\\{character}" if character in '"\\' else f"\\u{ord(character):04x}"
