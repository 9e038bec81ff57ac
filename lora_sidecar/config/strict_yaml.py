"""YAML without its surprises: bytes in, a small tree with line numbers out, and every objection to the file.

Guards against four traps of YAML files that people write. A duplicate key silently keeps the last value; an alias
can turn 271 bytes into billions of nodes; ten thousand brackets end a recursive reader; and a plain `on`, `007`
or `12:30:00` becomes another value than the one written. So the tree keeps each scalar's text as written, and
what YAML would make of it is asked for explicitly (`meaning`).

PyYAML's pure Python parser is used on purpose: libyaml is not on every platform, and it words its errors differently.
A kilobyte takes about a millisecond, so the size is capped.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import yaml
from msgspec import Struct

from lora_sidecar.core.errors import Problem

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 20
MAX_NODES = 120_000

_UNREADABLE = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG_PREFIX = "tag:yaml.org,2002:"


class Scalar(Struct, frozen=True):
    """A single value, its text as written; `plain` when neither quoted nor a block, so that YAML may convert it."""

    line: int
    text: str
    plain: bool


class Sequence(Struct, frozen=True):
    """A list."""

    line: int
    items: tuple[Node, ...]


class Mapping(Struct, frozen=True):
    """A mapping; keys are unique, and a key that is not a single value was objected to and left out."""

    line: int
    entries: tuple[tuple[Scalar, Node], ...]


class Rejected(Struct, frozen=True):
    """A value that was already objected to (an alias or a tagged one), so that nothing more is said of it."""

    line: int


Node = Scalar | Sequence | Mapping | Rejected


class Meaning(Enum):
    """What YAML makes of a scalar."""

    TEXT = "a text"
    NULL = "null"
    BOOLEAN = "the boolean"
    NUMBER = "the number"
    DATE = "the date"


class _Stop(Exception):  # noqa: N818 - a control flow signal, never seen outside
    """The rest of the file cannot be read."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def load(data: bytes) -> tuple[Node | None, tuple[Problem, ...]]:
    """Return the tree of the one document in `data`, None where it has none or cannot be read, and what is wrong."""
    if len(data) > MAX_BYTES:
        return None, (Problem(0, "", f"is {len(data)} bytes long: at most {MAX_BYTES} are read"),)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = 1 + len(re.findall(rb"\r\n?|\n", data[: error.start]))
        return None, (Problem(line, "", "is not UTF-8 text", "save the file as UTF-8"),)
    if found := _UNREADABLE.search(text):
        line = 1 + len(re.findall(r"\r\n?|\n", text[: found.start()]))
        rule = f"has the character U+{ord(found[0]):04X}, which may not stand in a YAML file here"
        return None, (Problem(line, "", rule, "remove it"),)
    composer = _Composer(text)
    try:
        tree = composer.document()
    except _Stop as stop:
        return None, (*composer.problems, stop.problem)
    return tree, tuple(composer.problems)


def meaning(scalar: Scalar) -> Meaning:
    """Return what YAML 1.1 makes of a scalar."""
    if not scalar.plain:
        return Meaning.TEXT
    match _tag(scalar):
        case "null":
            return Meaning.NULL
        case "bool":
            return Meaning.BOOLEAN
        case "int" | "float":
            return Meaning.NUMBER
        case "timestamp":
            return Meaning.DATE
        case _:
            return Meaning.TEXT


def truth(scalar: Scalar) -> bool:
    """Return the value of a scalar that means a boolean."""
    return bool(yaml.SafeLoader.bool_values[scalar.text.lower()])


def described(scalar: Scalar) -> str:
    """Return what YAML makes of a scalar in words, `the number 7` for instance."""
    means = meaning(scalar)
    match means:
        case Meaning.TEXT | Meaning.NULL:
            return str(means.value)
        case Meaning.BOOLEAN:
            return f"{means.value} {str(truth(scalar)).lower()}"
        case Meaning.NUMBER:
            return f"{means.value} {_number(scalar)}"
        case Meaning.DATE:
            return f"{means.value} {shown(scalar.text)}"


def shown(text: str, limit: int = 60) -> str:
    """Return a text in quotes for a message: one line, bounded, with nothing in it that a terminal would act on."""
    cut = text if len(text) <= limit else f"{text[:limit]}…"
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else _escaped(c) for c in cut) + '"'


def child(path: str, name: str) -> str:
    """Return the key path of `name` in the mapping at `path`; a name that is not word-like is quoted."""
    word = name if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) else shown(name)
    return f"{path}.{word}" if path else word


def _escaped(character: str) -> str:
    return f"\\{character}" if character in '"\\' else f"\\u{ord(character):04x}"


def _tag(scalar: Scalar) -> str | None:
    # The resolvers are the loader's own, so that what is explained here is what PyYAML would have done.
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers
    for tag, pattern in resolvers.get(scalar.text[:1], ()):
        if pattern.match(scalar.text):
            return str(tag).removeprefix(_TAG_PREFIX)
    return None


def _number(scalar: Scalar) -> str:
    construct = yaml.constructor.SafeConstructor()
    node = yaml.ScalarNode(tag="", value=scalar.text)
    limit = 40  # digits; Python refuses to convert thousands
    if len(scalar.text) > limit:
        return shown(scalar.text)
    try:
        if _tag(scalar) == "int":
            return str(construct.construct_yaml_int(node))
        return str(construct.construct_yaml_float(node))
    except (ValueError, OverflowError):
        return shown(scalar.text)


def _line(mark: Any) -> int:  # noqa: ANN401 - the mark of either loader in the stubs
    return mark.line + 1 if mark is not None else 0


class _Composer:
    """Builds the tree from the parser's events, bounded in depth and count, and collects objections."""

    def __init__(self, text: str) -> None:
        self.problems: list[Problem] = []
        self._loader = yaml.SafeLoader(text)
        self._nodes = 0

    def document(self) -> Node | None:
        self._next()
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            return None
        tree = self._node(self._next(), "", 0)
        self._next()
        event = self._next()
        if isinstance(event, yaml.DocumentStartEvent):
            hint = "keep one document in the file; --- begins another"
            self._object(event, "", "begins a second YAML document", hint)
        return tree

    def _next(self) -> yaml.Event:
        try:
            event: yaml.Event = self._loader.get_event()  # type: ignore[no-untyped-call]
        except yaml.MarkedYAMLError as error:
            raise _Stop(_syntax(error)) from None
        except (yaml.YAMLError, ValueError, OverflowError):
            # The parser converts a version directive and \U escapes without a check of its own.
            line = int(self._loader.line) + 1
            raise _Stop(Problem(line, "", "is not valid YAML: an escape or a directive is out of range")) from None
        return event

    def _object(self, event: yaml.Event, path: str, rule: str, hint: str) -> None:
        self.problems.append(Problem(_line(event.start_mark), path, rule, hint))

    def _node(self, event: yaml.Event, path: str, depth: int) -> Node:
        line = _line(event.start_mark)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _Stop(Problem(line, path, f"is one value too many: at most {MAX_NODES} are read"))
        if depth > MAX_DEPTH:
            raise _Stop(Problem(line, path, f"is nested more than {MAX_DEPTH} levels deep"))
        if isinstance(event, yaml.AliasEvent):
            self._object(event, path, "is an alias (*), which is not accepted", "write the value out")
            return Rejected(line)
        if not isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            raise TypeError(event)
        if event.anchor is not None:
            self._object(event, path, "has an anchor (&), which is not accepted", "remove it")
        if event.tag is not None:
            self._object(event, path, "has a tag (!), which is not accepted", "remove it")
        if isinstance(event, yaml.ScalarEvent):
            plain = event.style is None
            return Scalar(line, event.value, plain) if event.tag is None else Rejected(line)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(line, path, depth)
        return self._mapping(line, path, depth)

    def _sequence(self, line: int, path: str, depth: int) -> Sequence:
        items: list[Node] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._node(event, f"{path}[{len(items)}]", depth + 1))
        return Sequence(line, tuple(items))

    def _mapping(self, line: int, path: str, depth: int) -> Mapping:
        entries: list[tuple[Scalar, Node]] = []
        first: dict[str, int] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            before = len(self.problems)
            key = self._node(event, path, depth + 1)
            where = child(path, key.text) if isinstance(key, Scalar) else path
            value = self._node(self._next(), where, depth + 1)
            if not isinstance(key, Scalar):
                if len(self.problems) == before:
                    self._object(event, path, "has a key that is not a single word", "")
            elif key.text in first:
                self._object(event, where, f"is given twice: first on line {first[key.text]}", "keep one of them")
            else:
                first[key.text] = key.line
                entries.append((key, value))
        return Mapping(line, tuple(entries))


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    line = _line(error.problem_mark) or _line(error.context_mark)
    begun = _line(error.context_mark)
    what = f"{error.problem or 'it ends too early'}"
    if error.context:
        since = f" that began on line {begun}" if begun not in {0, line} else ""
        what = f"{what}, {error.context}{since}"
    hint = "look at the indentation, the colons and the quotes around this line"
    if "'\\t'" in what:
        hint = "indent with spaces, not with tabs"
    elif "cannot start any token" in what:
        hint = "quote the value"
    return Problem(line, "", f"is not valid YAML: {what[:200]}", hint)
