"""Reads a file's nodes into the Structs that describe it, and keeps every objection with its line and its key path.

Guards against the report that stops at the first mistake, so that a config is mended once and not once for each
mistake; against a duplicate key, of which YAML silently keeps the last; and against a plain `on`, `007` or `12:30:00`,
which YAML turns into another value than the one written. Messages are for the person who wrote the file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import yaml
from msgspec import UNSET, Struct, inspect

from lora_sidecar.config.keys import Key, child, keys, plain, shown
from lora_sidecar.config.nodes import REFUSED, line_of
from lora_sidecar.config.values import Fault, duration, format_duration
from lora_sidecar.core.errors import Problem

_SUGGESTIONS: Final = 100  # a search for a similar key is slow, and a file of a thousand wrong keys is no config

_YAML: Final = "tag:yaml.org,2002:"
_NULL: Final = f"{_YAML}null"
_BOOLEAN: Final = f"{_YAML}bool"
_NUMBERS: Final = (f"{_YAML}int", f"{_YAML}float")
_CONVERTED: Final = (_NULL, _BOOLEAN, *_NUMBERS, f"{_YAML}timestamp")


class Found(Struct, frozen=True):
    """A value of the file that was read without objection, and its line."""

    value: Any
    line: int


class Reading:
    """The values of one file by key path, and the objections to it."""

    def __init__(self, root: type[Struct], problems: Iterable[Problem] = ()) -> None:
        self.problems = list(problems)
        self.found: dict[str, Found] = {}
        self._lengths: dict[str, int] = {}
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
        return range(self._lengths.get(path, 0))

    def read(self, kind: inspect.Type, node: yaml.Node, path: str = "") -> Any:  # noqa: ANN401 - by kind
        """Return the value of a node, or UNSET after objecting to it."""
        if node.tag == REFUSED:
            return UNSET
        kind, said = plain(kind)
        match kind:
            case inspect.UnionType():
                return self._union(kind, node, path)
            case inspect.StructType():
                value = self._section(kind.cls, node, path)
            case inspect.VarTupleType():
                value = self._listing(kind, node, path)
            case _:
                value = _scalar(kind, node, said)
        if isinstance(value, Fault):
            self.object(line_of(node), path, value)
            return UNSET
        if value is not UNSET:
            self.found[path] = Found(value, line_of(node))
        return value

    def _union(self, kind: inspect.UnionType, node: yaml.Node, path: str) -> Any:  # noqa: ANN401 - by kind
        """Read a value that may be null as well, or a number that may be a word as well."""
        if node.tag == _NULL and any(isinstance(option, inspect.NoneType) for option in kind.types):
            self.found[path] = Found(None, line_of(node))
            return None
        options = [option for option in kind.types if not isinstance(option, inspect.NoneType)]
        if isinstance(node, yaml.ScalarNode) and _is_text(node):
            match options:
                case [inspect.IntType(ge=low, le=high), inspect.LiteralType(values=words)] if node.value not in words:
                    wanted = f"{', '.join(map(str, words))} or a whole number from {low} to {high}"
                    self.object(line_of(node), path, Fault(f"must be {wanted}, is {_written(node)}"))
                    return UNSET
                case _:
                    return self.read(options[-1], node, path)
        return self.read(options[0], node, path)

    def _section(self, section: type[Struct], node: yaml.Node, path: str) -> Any:  # noqa: ANN401 - one, UNSET or a Fault
        """Return the section that a mapping spells."""
        if not isinstance(node, yaml.MappingNode):
            return _misfit("a mapping of keys", node)
        known = {key.name: key for key in keys(section)}
        values: dict[str, Any] = {}
        for name, (at, value) in self._entries(node, path).items():
            where = child(path, name)
            if key := known.get(name):
                values[name] = self.read(key.kind, value, where)
            else:
                self.object(line_of(at), where, Fault("is not a known key", self._suggestion(name, known)))
        for key in known.values():
            if key.required and key.name not in values:
                fault = Fault("is missing", f"{key.description.partition('. ')[0].removesuffix('.')}.")
                self.object(line_of(node), child(path, key.name), fault)
                values[key.name] = UNSET
        return UNSET if UNSET in values.values() else section(**values)

    def _entries(self, node: yaml.MappingNode, path: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the nodes of key and value by key, each key once."""
        entries: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag == REFUSED:
                continue
            if not isinstance(key, yaml.ScalarNode):
                self.object(line_of(key), path, Fault("has a key that is not a single word"))
            elif first := entries.get(key.value):
                rule = f"is given twice: first on line {line_of(first[0])}"
                self.object(line_of(key), child(path, key.value), Fault(rule, "keep one of them"))
            else:
                entries[key.value] = key, value
        return entries

    def _listing(self, kind: inspect.VarTupleType, node: yaml.Node, path: str) -> Any:  # noqa: ANN401 - as above
        if node.tag == _NULL and not kind.min_length:
            return Fault("is empty, which YAML reads as null", "write [] for none")
        if not isinstance(node, yaml.SequenceNode):
            return _misfit("a list", node)
        if len(node.value) < (kind.min_length or 0):
            return Fault("must not be empty")
        if kind.max_length is not None and len(node.value) > kind.max_length:
            return Fault(f"has {len(node.value)} entries: at most {kind.max_length} are accepted")
        self._lengths[path] = len(node.value)
        values = [self.read(kind.item_type, entry, f"{path}[{at}]") for at, entry in enumerate(node.value)]
        return UNSET if UNSET in values else tuple(values)

    def _suggestion(self, name: str, known: dict[str, Key]) -> str:
        if len(self.problems) >= _SUGGESTIONS:
            return ""
        if near := difflib.get_close_matches(name[:60], known):
            return f'did you mean "{near[0]}"?'
        if homes := self._homes.get(name):
            return f"it belongs {' or '.join(f'under {home}' if home else 'at the top' for home in homes)}"
        return f"known here: {', '.join(known)}"


def _homes(section: type[Struct], path: str) -> Iterator[tuple[str, str]]:
    for key in keys(section):
        yield key.name, path
        if inner := key.section:
            mark = "[]" if key.listed else ""
            yield from _homes(inner, child(path, key.name) + mark)


def _misfit(wanted: str, node: yaml.Node) -> Fault:
    match node:
        case yaml.MappingNode():
            return Fault(f"must be {wanted}, is a mapping")
        case yaml.SequenceNode():
            return Fault(f"must be {wanted}, is a list", "quote a text that begins with [" if "text" in wanted else "")
        case yaml.ScalarNode() if node.tag != _NULL:
            return Fault(f"must be {wanted}, is {_described(node)}")
        case _:
            return Fault("is empty, which YAML reads as null", "give it a value, or remove the key")


def _scalar(kind: inspect.Type, node: yaml.Node, said: dict[str, Any]) -> Any:  # noqa: ANN401 - by kind, or a Fault
    wanted = {inspect.BoolType: "true or false", inspect.IntType: "a whole number"}.get(type(kind), "a text")
    wanted = "a duration such as 5s" if isinstance(kind, inspect.FloatType) else wanted
    if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
        return _misfit(wanted, node)
    match kind:
        case inspect.BoolType():
            if node.tag == _BOOLEAN:
                return _truth(node)
            return Fault(f"must be true or false, is {_written(node)}", "without quotes")
        case inspect.IntType():
            return _whole(kind, node)
        case inspect.FloatType():
            return _seconds(kind, node)
        case inspect.LiteralType():
            if node.value in kind.values and _is_text(node):
                return node.value
            return Fault(f"must be one of {', '.join(map(str, kind.values))}, is {_written(node)}")
        case inspect.StrType():
            return _text(kind, node, said.get("read", str), secret=said.get("secret", False))
        case _:
            raise TypeError(kind)


def _whole(kind: inspect.IntType, node: yaml.ScalarNode) -> int | Fault:
    if node.tag not in _NUMBERS:
        return Fault(f"must be a whole number, is {_written(node)}", "without quotes")
    if not re.fullmatch("-?(0|[1-9][0-9]{0,17})", node.value):
        return Fault(f"must be a whole number in plain digits, is {shown(node.value)}, in YAML {_described(node)}")
    value = int(node.value)
    if not (kind.ge is None or kind.ge <= value) or not (kind.le is None or value <= kind.le):
        return Fault(f"must be from {kind.ge} to {kind.le}, is {value}")
    return value


def _seconds(kind: inspect.FloatType, node: yaml.ScalarNode) -> float | Fault:
    text = node.value
    if node.tag in _NUMBERS:
        hint = f"write {text}s" if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text) else "write 5s, 100ms or 1m30s"
        return Fault("is a number without a unit", hint)
    value = duration(text)
    if isinstance(value, Fault):
        return Fault(f"{value.rule}: {_written(node)}", value.hint)
    if kind.ge is not None and kind.le is not None and not kind.ge <= value <= kind.le:
        return Fault(f"must be from {format_duration(kind.ge)} to {format_duration(kind.le)}, is {shown(text)}")
    return value


def _text(
    kind: inspect.StrType, node: yaml.ScalarNode, read: Callable[[str], str | Fault], *, secret: bool
) -> str | Fault:
    text = node.value
    if not _is_text(node):
        if secret:
            return Fault("is not read as a text by YAML: quote it")
        return Fault(f"is read by YAML as {_described(node)}: quote it", f'write "{text}"' if len(text) < 60 else "")  # noqa: PLR2004
    if not text:
        return Fault("must not be empty")
    if kind.max_length is not None and len(text) > kind.max_length:
        return Fault(f"is {len(text)} characters long: at most {kind.max_length} are accepted")
    if odd := next((character for character in text if not character.isprintable()), None):
        return Fault(f"has the unprintable character U+{ord(odd):04X}")
    if text != text.strip():
        return Fault("must not begin or end with a space")
    return read(text)


def _is_text(node: yaml.ScalarNode) -> bool:
    return node.tag not in _CONVERTED


def _truth(node: yaml.ScalarNode) -> bool:
    return bool(yaml.SafeLoader.bool_values[node.value.lower()])


def _written(node: yaml.ScalarNode) -> str:
    return shown(node.value) if _is_text(node) else _described(node)


def _described(node: yaml.ScalarNode) -> str:
    """Return what YAML makes of a single value in words, `the number 7` for instance."""
    if node.tag == _BOOLEAN:
        return f"the boolean {str(_truth(node)).lower()}"
    if node.tag in _NUMBERS:
        return f"the number {_number(node)}"
    if _is_text(node):
        return "a text"
    return "null" if node.tag == _NULL else f"the date {shown(node.value)}"


def _number(node: yaml.ScalarNode) -> str:
    limit = 40  # digits; Python refuses to convert thousands
    if len(node.value) > limit:
        return shown(node.value)
    construct = yaml.constructor.SafeConstructor()
    try:
        if node.tag == _NUMBERS[0]:
            return str(construct.construct_yaml_int(node))
        return str(construct.construct_yaml_float(node))
    except (ValueError, OverflowError):
        return shown(node.value)
