"""Reads a file's tree into the Structs that the table describes, and keeps every objection with its line.

Guards against the report that stops at the first mistake, so that a config is mended once and not once for each
mistake, and against a value that YAML converted and nobody wrote. Messages are for the person who wrote the file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from msgspec import NODEFAULT, UNSET, Struct

from lora_sidecar.config.strict_yaml import (
    Mapping,
    Meaning,
    Node,
    Rejected,
    Scalar,
    Sequence,
    child,
    described,
    meaning,
    shown,
    truth,
)
from lora_sidecar.config.table import Choice, Duration, Flag, Kind, Listing, Section, Slot, Text, Whole, slots
from lora_sidecar.config.values import Fault, duration
from lora_sidecar.core.errors import Problem

_SUGGESTIONS = 100  # a search for a similar key is slow, and a file of a thousand wrong keys is no config

_WANTED: dict[type, str] = {Flag: "true or false", Whole: "a whole number", Duration: "a duration such as 5s"}


class Found(Struct, frozen=True):
    """A value of the file that was read without objection, and its line."""

    value: Any
    line: int


class Reading:
    """The values of one file by key path, and the objections to it."""

    def __init__(self, root: type[Struct], problems: tuple[Problem, ...] = ()) -> None:
        self.problems = list(problems)
        self.found: dict[str, Found] = {}
        self.lengths: dict[str, int] = {}
        self._homes: dict[str, list[str]] = {}
        for name, home in _homes(root, ""):
            self._homes.setdefault(name, []).append(home)

    def object(self, line: int, path: str, fault: Fault) -> None:
        """Keep an objection."""
        self.problems.append(Problem(line, path, fault.rule, fault.hint))

    def sound(self, path: str) -> bool:
        """Return whether neither the key nor a section around it was objected to; a key that is not given is sound."""
        return not any(problem.key == path or path.startswith(f"{problem.key}.") for problem in self.problems)

    def entries(self, path: str) -> range:
        """Return the places in a list, those objected to as well; none where there is no list."""
        return range(self.lengths.get(path, 0))

    def read(self, kind: Kind, node: Node, path: str, *, nullable: bool = False) -> Any:  # noqa: ANN401 - by kind
        """Return the value of a node, or UNSET after objecting to it."""
        if isinstance(node, Rejected):
            return UNSET
        if nullable and isinstance(node, Scalar) and meaning(node) is Meaning.NULL:
            self.found[path] = Found(None, node.line)
            return None
        match kind:
            case Section():
                value = self._section(kind.type, node, path)
            case Listing():
                value = self._listing(kind, node, path)
            case _:
                value = _scalar(kind, node)
        if isinstance(value, Fault):
            self.object(node.line, path, value)
            return UNSET
        if value is not UNSET:
            self.found[path] = Found(value, node.line)
        return value

    def _section(self, section: type[Struct], node: Node, path: str) -> Any:  # noqa: ANN401 - the section, or UNSET
        if not isinstance(node, Mapping):
            return _misfit("a mapping of keys", node)
        known = {slot.name: slot for slot in slots(section)}
        values: dict[str, Any] = {}
        for key, value in node.entries:
            where = child(path, key.text)
            if slot := known.get(key.text):
                values[slot.name] = self.read(slot.kind, value, where, nullable=slot.nullable)
            else:
                self.object(key.line, where, Fault("is not a known key", self._suggestion(key.text, known)))
        for slot in known.values():
            if slot.default is NODEFAULT and slot.name not in values:
                self.object(node.line, child(path, slot.name), Fault("is missing", slot.doc))
                values[slot.name] = UNSET
        return UNSET if UNSET in values.values() else section(**values)

    def _listing(self, kind: Listing, node: Node, path: str) -> Any:  # noqa: ANN401 - a tuple, UNSET or a Fault
        if isinstance(node, Scalar) and meaning(node) is Meaning.NULL and not kind.fewest:
            return Fault("is empty, which YAML reads as null", "write [] for none")
        if not isinstance(node, Sequence):
            return _misfit("a list", node)
        if len(node.items) < kind.fewest:
            return Fault("must not be empty")
        if len(node.items) > kind.most:
            return Fault(f"has {len(node.items)} entries: at most {kind.most} are accepted")
        self.lengths[path] = len(node.items)
        item = kind.item or Text()
        values = [self.read(item, entry, f"{path}[{at}]") for at, entry in enumerate(node.items)]
        return UNSET if UNSET in values else tuple(values)

    def _suggestion(self, name: str, known: dict[str, Slot]) -> str:
        if len(self.problems) >= _SUGGESTIONS:
            return ""
        if near := difflib.get_close_matches(name[:60], known):
            return f'did you mean "{near[0]}"?'
        if homes := self._homes.get(name):
            return f"it belongs {' or '.join(f'under {home}' if home else 'at the top' for home in homes)}"
        return f"known here: {', '.join(known)}"


def _homes(section: type[Struct], path: str) -> Iterator[tuple[str, str]]:
    for slot in slots(section):
        yield slot.name, path
        inner = slot.kind.item if isinstance(slot.kind, Listing) else slot.kind
        if isinstance(inner, Section):
            mark = "[]" if isinstance(slot.kind, Listing) else ""
            yield from _homes(inner.type, child(path, slot.name) + mark)


def _misfit(wanted: str, node: Node) -> Fault:
    match node:
        case Mapping():
            return Fault(f"must be {wanted}, is a mapping")
        case Sequence():
            return Fault(f"must be {wanted}, is a list", "quote a text that begins with [" if "text" in wanted else "")
        case Scalar() if meaning(node) is Meaning.NULL:
            return Fault("is empty, which YAML reads as null", "give it a value, or remove the key")
        case Scalar():
            return Fault(f"must be {wanted}, is {described(node)}")
        case Rejected():
            return Fault(f"must be {wanted}")


def _scalar(kind: Flag | Whole | Duration | Text | Choice, node: Node) -> Any:  # noqa: ANN401 - by kind, or a Fault
    wanted = _WANTED.get(type(kind), "a text")
    if not isinstance(node, Scalar) or meaning(node) is Meaning.NULL:
        return _misfit(wanted, node)
    match kind:
        case Flag():
            if meaning(node) is Meaning.BOOLEAN:
                return truth(node)
            return Fault(f"must be true or false, is {_written(node)}", "without quotes")
        case Whole():
            return _whole(kind, node)
        case Duration():
            return _seconds(kind, node)
        case Choice():
            if node.text in kind.options and meaning(node) is Meaning.TEXT:
                return node.text
            return Fault(f"must be one of {', '.join(kind.options)}, is {_written(node)}")
        case Text():
            return _text(kind, node)


def _written(scalar: Scalar) -> str:
    return shown(scalar.text) if meaning(scalar) is Meaning.TEXT else described(scalar)


def _whole(kind: Whole, node: Scalar) -> int | str | Fault:
    if kind.word is not None and meaning(node) is Meaning.TEXT:
        wanted = f"{kind.word} or a whole number from {kind.low} to {kind.high}"
        return kind.word if node.text == kind.word else Fault(f"must be {wanted}, is {_written(node)}")
    if meaning(node) is not Meaning.NUMBER:
        return Fault(f"must be a whole number, is {_written(node)}", "without quotes")
    if not re.fullmatch("-?(0|[1-9][0-9]{0,17})", node.text):
        return Fault(f"must be a whole number in plain digits, is {shown(node.text)}, in YAML {described(node)}")
    value = int(node.text)
    if not kind.low <= value <= kind.high:
        return Fault(f"must be from {kind.low} to {kind.high}, is {value}")
    return value


def _seconds(kind: Duration, node: Scalar) -> float | Fault:
    if meaning(node) is Meaning.NUMBER:
        hint = (
            f"write {node.text}s" if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", node.text) else "write 5s, 100ms or 1m30s"
        )
        return Fault("is a number without a unit", hint)
    value = duration(node.text)
    if isinstance(value, Fault):
        return Fault(f"{value.rule}: {_written(node)}", value.hint)
    low, high = duration(kind.low), duration(kind.high)
    if isinstance(low, float) and isinstance(high, float) and not low <= value <= high:
        return Fault(f"must be from {kind.low} to {kind.high}, is {shown(node.text)}")
    return value


def _text(kind: Text, node: Scalar) -> str | Fault:
    text = node.text
    if meaning(node) is not Meaning.TEXT:
        if kind.secret:
            return Fault("is not read as a text by YAML: quote it")
        return Fault(f"is read by YAML as {described(node)}: quote it", f'write "{text}"' if len(text) < 60 else "")  # noqa: PLR2004
    if not text:
        return Fault("must not be empty")
    if len(text) > kind.longest:
        return Fault(f"is {len(text)} characters long: at most {kind.longest} are accepted")
    if odd := next((character for character in text if not character.isprintable()), None):
        return Fault(f"has the unprintable character U+{ord(odd):04X}")
    if text != text.strip():
        return Fault("must not begin or end with a space")
    return kind.read(text)
