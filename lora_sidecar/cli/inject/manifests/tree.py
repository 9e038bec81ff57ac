"""A YAML document as values that know where in the text they stand.

The trap guarded against is a round trip: every YAML writer changes quotes, indentation or widths of what it only
passes on. So a document is read for positions, and changes are made to its text (`edit`). Offsets count characters of
the text that was read; `end` is the offset behind the value.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from collections.abc import Mapping as Map

from msgspec import Struct
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from lora_sidecar.cli.inject.manifests.value import Path, Value

_NULL = ("", "~", "null", "Null", "NULL")
_MERGE = "<<"


class Scalar(Struct, frozen=True):
    """One word or text; `style` is empty for a plain one, else the character that begins it (`|`, `>` or a quote)."""

    start: int
    end: int
    text: str
    style: str
    anchor: str | None

    @property
    def is_null(self) -> bool:
        """Whether it says that there is nothing."""
        return not self.style and self.text in _NULL


class Alias(Struct, frozen=True):
    """A reference (`*name`) to a value that stands elsewhere."""

    start: int
    end: int
    name: str


class Sequence(Struct, frozen=True):
    """A list: with dashes, or in brackets where `flow` is true. `start` is at its anchor or tag where it has one."""

    start: int
    end: int
    flow: bool
    anchor: str | None
    items: tuple[Node, ...]


class Mapping(Struct, frozen=True):
    """A mapping: by indentation, or in braces where `flow` is true. `start` is at its anchor or tag if it has one."""

    start: int
    end: int
    flow: bool
    anchor: str | None
    entries: tuple[tuple[Node, Node], ...]

    def get(self, key: str) -> Node | None:
        """Return the value of a key, or None."""
        return next((value for name, value in self.entries if isinstance(name, Scalar) and name.text == key), None)

    def key(self, key: str | int) -> Node | None:
        """Return a key as it is written, or None."""
        return next((name for name, _ in self.entries if isinstance(name, Scalar) and name.text == key), None)


Node = Scalar | Alias | Sequence | Mapping


class Root(Struct, frozen=True):
    """A whole document: its top value, what its anchors name, and which of them an alias refers to."""

    node: Node
    anchors: Map[str, Node]
    aliased: frozenset[str]

    def find(self, path: Path) -> Node | None:
        """Return the value at a path, not looking through aliases; None where there is none."""
        node: Node | None = self.node
        for step in path:
            if isinstance(node, Mapping) and isinstance(step, str):
                node = node.get(step)
            elif isinstance(node, Sequence) and isinstance(step, int) and step < len(node.items):
                node = node.items[step]
            else:
                return None
        return node

    def value(self) -> Value:
        """Return what the document says, aliases and merge keys followed. Raises `NotYamlError`."""
        try:
            return _value(self.node, self.anchors)
        except RecursionError as error:
            raise NotYamlError(self.node.start, "has an alias to what it stands in") from error


class NotYamlError(Exception):
    """A text that cannot be read as one YAML document; `offset` is where it stops making sense."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(offset, reason)
        self.offset = offset
        self.reason = reason


def read(text: str) -> Root | None:
    """Return the one document of a text, or None where there is none. Raises `NotYamlError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an anchor that is given twice is no matter of ours
            return _Reader(YAML().parse(text)).document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(filter(None, (error.context, error.problem)))
        raise NotYamlError(mark.index if mark else 0, reason) from error
    except (YAMLError, ValueError, OverflowError) as error:
        raise NotYamlError(getattr(error, "position", 0), str(error).partition("\n")[0]) from error
    except RecursionError as error:
        raise NotYamlError(0, "is nested too deeply") from error


class _Reader:
    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._anchors: dict[str, Node] = {}
        self._aliased: set[str] = set()

    def document(self) -> Root | None:
        found: Root | None = None
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                if found is not None:
                    raise NotYamlError(event.start_mark.index, "a second document begins here without a line of ---")
                node = self._node(next(self._events))
                if node != Scalar(node.start, node.start, "", "", None):
                    found = Root(node, self._anchors, frozenset(self._aliased))
        return found

    def _node(self, event: Event) -> Node:
        start, end = event.start_mark.index, event.end_mark.index
        node: Node
        match event:
            case AliasEvent():
                self._aliased.add(event.anchor)
                return Alias(start, end, event.anchor)
            case ScalarEvent():
                node = Scalar(start, end, event.value, event.style or "", event.anchor)
            case SequenceStartEvent():
                items, end = self._items()
                node = Sequence(start, end, bool(event.flow_style), event.anchor, items)
            case MappingStartEvent():
                entries, end = self._entries()
                node = Mapping(start, end, bool(event.flow_style), event.anchor, entries)
            case _:
                raise TypeError(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _items(self) -> tuple[tuple[Node, ...], int]:
        items = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            items.append(self._node(event))
        return tuple(items), event.end_mark.index

    def _entries(self) -> tuple[tuple[tuple[Node, Node], ...], int]:
        entries = []
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._node(event)
            entries.append((key, self._node(next(self._events))))
        return tuple(entries), event.end_mark.index


def _value(node: Node, anchors: Map[str, Node]) -> Value:
    match node:
        case Alias():
            return _value(anchors[node.name], anchors) if node.name in anchors else None
        case Scalar():
            return None if node.is_null else node.text
        case Sequence():
            return [_value(item, anchors) for item in node.items]
        case Mapping():
            return _mapping(node, anchors)


def _mapping(node: Mapping, anchors: Map[str, Node]) -> dict[str, Value]:
    own: dict[str, Value] = {}
    merged: dict[str, Value] = {}
    for key, value in node.entries:
        name = key.text if isinstance(key, Scalar) else ""
        said = _value(value, anchors)
        if name != _MERGE:
            own[name] = said
            continue
        for one in reversed(said) if isinstance(said, list) else [said]:
            merged |= one if isinstance(one, dict) else {}
    return merged | own
