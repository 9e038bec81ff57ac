"""The text of a document beside what it says, and where in the text its keys and items begin and end.

The trap guarded against is the end of a value: behind it stand comments, blank lines or the end of a file without the
end of a line, and a block of text ends where YAML says so. What is asked here is always answered for whole lines, or
inside brackets and braces for the characters from one item to the next.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Final

from msgspec import Struct

from lora_sidecar.cli.inject.manifests.tree import Mapping, Node, NotYamlError, Root, Scalar, Sequence, read
from lora_sidecar.cli.inject.manifests.value import Path

_BETWEEN: Final = re.compile(r"(?:\s|#[^\n]*\n)*")


class CannotEditError(Exception):
    """A place in a document that cannot be changed without changing another: why, and what to do about it."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason, hint)
        self.reason = reason
        self.hint = hint


class Page(Struct, frozen=True):
    """The text of one document, read."""

    text: str
    root: Root

    @property
    def newline(self) -> str:
        """How its lines end."""
        return newline_of(self.text)


def page_of(text: str) -> Page:
    """Read the text of one document, which says something. Raises `NotYamlError`."""
    root = read(text)
    if root is None:
        raise NotYamlError(0, "says nothing")
    return Page(text, root)


def newline_of(text: str) -> str:
    """Return how the first line of a text ends."""
    first = text.find("\n")
    return "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"


def says_nothing(node: Scalar) -> bool:
    """Whether nothing is written where a value could be."""
    return not node.style and node.start == node.end


def shown(path: Path) -> str:
    """Return a path fit for a message."""
    return ".".join(map(str, path)) or "the document"


def index_of(node: Mapping, step: str | int) -> int:
    """Return which entry of a mapping a key is. Raises `CannotEditError`."""
    for index, (key, _) in enumerate(node.entries):
        if isinstance(key, Scalar) and key.text == step:
            return index
    raise CannotEditError(f"{step} is not written out here")


def key_of(page: Page, path: Path) -> Node:
    """Return the key of the value at a path. Raises `CannotEditError`."""
    parent = page.root.find(path[:-1])
    if not isinstance(parent, Mapping):
        raise CannotEditError(f"{shown(path)} is an item without a value")
    return parent.entries[index_of(parent, path[-1])][0]


def line_start(text: str, offset: int) -> int:
    """Return where the line begins in which an offset lies."""
    return text.rfind("\n", 0, offset) + 1


def line_end(text: str, offset: int) -> int:
    """Return the offset behind the line in which an offset lies."""
    newline = text.find("\n", offset)
    return len(text) if newline < 0 else newline + 1


def column_of(text: str, offset: int) -> int:
    """Return how many characters stand before an offset in its line."""
    return offset - line_start(text, offset)


def end_of(page: Page, node: Node) -> int:
    """Return the offset behind the last line of a value in lines. Raises `CannotEditError`."""
    match node:
        case Mapping() if not node.flow and node.entries:
            key, value = node.entries[-1]
            empty = isinstance(value, Scalar) and says_nothing(value)
            return line_end(page.text, key.end) if empty else end_of(page, value)
        case Sequence() if not node.flow and node.items:
            value = node.items[-1]
            if isinstance(value, Scalar) and says_nothing(value):
                raise CannotEditError("ends in an item that says nothing", "remove the last dash")
            return end_of(page, value)
        case Scalar() if node.style in {"|", ">"}:
            return line_start(page.text, node.end) if node.end < len(page.text) else node.end
        case _:
            return line_end(page.text, node.end)


def dash_of(page: Page, node: Sequence, index: int) -> int:
    """Return the offset of an item's dash. Raises `CannotEditError`."""
    start = node.items[index].start
    dash = page.text.rfind("-", 0, start)
    if dash < node.start or not _BETWEEN.fullmatch(page.text, dash + 1, start):
        raise CannotEditError("has a comment between a dash and its item", "put the comment above the dash")
    return dash


def is_indented(page: Page) -> bool:
    """Whether the lists of a document stand to the right of their keys: as the first one does, if there is one."""
    todo: list[Node] = [page.root.node]
    while todo:
        node = todo.pop(0)
        match node:
            case Mapping():
                for key, value in node.entries:
                    if isinstance(value, Sequence) and not value.flow and not node.flow:
                        return column_of(page.text, dash_of(page, value, 0)) > column_of(page.text, key.start)
                    todo.append(value)
            case Sequence():
                todo += node.items
            case _:
                pass
    return True


def span_of_entry(page: Page, parent: Mapping, index: int) -> tuple[int, int]:
    """Return where an entry of a mapping begins and ends, with what sets it off. Raises `CannotEditError`."""
    key, value = parent.entries[index]
    following = parent.entries[index + 1][0].start if index + 1 < len(parent.entries) else None
    if parent.flow:
        if index:
            return parent.entries[index - 1][1].end, value.end
        return key.start, value.end if following is None else following
    begin = line_start(page.text, key.start)
    if not page.text[begin : key.start].strip():
        empty = isinstance(value, Scalar) and says_nothing(value)
        return begin, line_end(page.text, key.end) if empty else end_of(page, value)
    if following is None:
        raise CannotEditError("is all that its item says")
    return key.start, following  # the first key of an item stands behind its dash


def spans_of_items(page: Page, parent: Sequence, indices: AbstractSet[int]) -> list[tuple[int, int]]:
    """Return where items of a list begin and end, with what sets them off. Raises `CannotEditError`."""
    spans = []
    kept = False
    for index, item in enumerate(parent.items):
        if index not in indices:
            kept = True
        elif not parent.flow:
            spans.append(_span_of_line(page, parent, index))
        elif kept:
            spans.append((parent.items[index - 1].end, item.end))
        else:
            last = index + 1 == len(parent.items)
            spans.append((item.start, item.end if last else parent.items[index + 1].start))
    return spans


def _span_of_line(page: Page, parent: Sequence, index: int) -> tuple[int, int]:
    dash = dash_of(page, parent, index)
    begin = line_start(page.text, dash)
    if page.text[begin:dash].strip():
        raise CannotEditError("is a list that begins behind another dash", "begin it on a line of its own")
    return begin, end_of(page, parent.items[index])
