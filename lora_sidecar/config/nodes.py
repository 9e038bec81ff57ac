"""YAML without its surprises: bytes in, PyYAML's nodes out, and every objection to the file that YAML would not make.

Guards against three traps of YAML files that people write. An alias can turn 271 bytes into billions of values; ten
thousand brackets end a recursive reader; and a tag or an anchor means what its writer hardly meant. An alias, and a
single value with a tag, become a node that is tagged `REFUSED`, so that nothing more is said of it.

PyYAML's pure Python parser is used on purpose: libyaml is not on every platform, and it words its errors differently.
A kilobyte takes about a millisecond, so the size is capped.
"""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from lora_sidecar.config.keys import child
from lora_sidecar.core.errors import Problem

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 20
MAX_NODES: Final = 120_000

REFUSED: Final = "!refused"

_UNREADABLE: Final = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _StopError(Exception):
    """The rest of the file is not read: a signal within this module."""


def compose(data: bytes) -> tuple[yaml.Node | None, list[Problem]]:
    """Return the node of the one document in `data`, None where it has none or cannot be read, and what is wrong."""
    if len(data) > MAX_BYTES:
        return None, [Problem(0, "", f"is {len(data)} bytes long: at most {MAX_BYTES} are read")]
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = 1 + len(re.findall(rb"\r\n?|\n", data[: error.start]))
        return None, [Problem(line, "", "is not UTF-8 text", "save the file as UTF-8")]
    if found := _UNREADABLE.search(text):
        line = 1 + len(re.findall(r"\r\n?|\n", text[: found.start()]))
        rule = f"has the character U+{ord(found[0]):04X}, which may not stand in a YAML file here"
        return None, [Problem(line, "", rule, "remove it")]
    loader = _Loader(text)
    try:
        return loader.document(), loader.problems
    except _StopError:
        return None, loader.problems
    except yaml.MarkedYAMLError as error:
        return None, [*loader.problems, _syntax(error)]
    except (yaml.YAMLError, ValueError, OverflowError):
        # The parser converts a version directive and \U escapes without a check of its own.
        rule = "is not valid YAML: an escape or a directive is out of range"
        return None, [*loader.problems, Problem(loader.line + 1, "", rule)]


def line_of(node: yaml.Node) -> int:
    """Return the line, from 1, on which a node begins."""
    return int(node.start_mark.line) + 1


class _Loader(yaml.SafeLoader):
    """Composes nodes as PyYAML does, bounded in depth and number, and keeps objections with their key path."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.problems: list[Problem] = []
        self._around = [""]
        self._nodes = 0
        self._marks: dict[int, yaml.Mark] = {}

    def document(self) -> yaml.Node | None:
        """Return the one document's node; None where there is none."""
        if not self.check_node():
            return None
        node: yaml.Node | None = self.get_node()
        if self.check_node():
            hint = "keep one document in the file; --- begins another"
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            self._object(event, "", "begins a second YAML document", hint)
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:  # noqa: ANN401 - as below
        """Compose one value; `index` is its place in a list or its key's node in a mapping, None for a key."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        path = _step(self._around[-1], index)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._object(event, path, f"is one value too many: at most {MAX_NODES} are read")
            raise _StopError
        if len(self._around) > MAX_DEPTH + 1:
            self._object(event, path, f"is nested more than {MAX_DEPTH} levels deep")
            raise _StopError
        if self.check_event(yaml.AliasEvent):
            self._object(event, path, "is an alias (*), which is not accepted", "write the value out")
            self.get_event()  # type: ignore[no-untyped-call]
            return self._placed(yaml.ScalarNode(REFUSED, "", event.start_mark, event.end_mark))
        if event.anchor is not None:
            self._object(event, path, "has an anchor (&), which is not accepted", "remove it")
            event.anchor = None
        if event.tag is not None:
            self._object(event, path, "has a tag (!), which is not accepted", "remove it")
        self._around.append(path)
        node: Any = super().compose_node(parent, index)
        self._around.pop()
        if event.tag is not None and isinstance(node, yaml.ScalarNode):
            node.tag = REFUSED
        return self._placed(node)

    def _placed(self, node: yaml.Node) -> yaml.Node:
        """The node with one mark for all of its line: each has two of its own, which is two thirds of the memory."""
        node.start_mark = node.end_mark = self._marks.setdefault(node.start_mark.line, node.start_mark)
        return node

    def _object(self, event: Any, path: str, rule: str, hint: str = "") -> None:  # noqa: ANN401 - its marks are of either loader
        self.problems.append(Problem(event.start_mark.line + 1, path, rule, hint))


def _step(path: str, index: int | yaml.Node | None) -> str:
    if isinstance(index, int):
        return f"{path}[{index}]"
    return child(path, index.value) if isinstance(index, yaml.ScalarNode) and index.tag != REFUSED else path


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    line, begun = (0 if mark is None else mark.line + 1 for mark in (error.problem_mark, error.context_mark))
    line = line or begun
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
