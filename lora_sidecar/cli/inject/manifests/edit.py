"""Puts a value into the text of a document, or takes it out, and leaves every other character as it is.

The trap guarded against is an edit that changes more than it says: a comment read as a value, a shared anchor, a
block of text that grows by a line. So an edit inserts or deletes one run of characters, the result is read again, and
unless it says what was meant, and only that, the edit is refused. Taking out is the exact inverse of putting in.
"""

from __future__ import annotations

import copy
import re
from typing import Final

from lora_sidecar.cli.inject.manifests import write
from lora_sidecar.cli.inject.manifests.documents import split, walk
from lora_sidecar.cli.inject.manifests.page import (
    CannotEditError,
    Page,
    column_of,
    dash_of,
    end_of,
    index_of,
    is_indented,
    key_of,
    line_end,
    line_start,
    page_of,
    says_nothing,
    shown,
    span_of_entry,
    span_of_item,
)
from lora_sidecar.cli.inject.manifests.tree import Alias, Mapping, Node, NotYamlError, Path, Scalar, Sequence, Value

_COMMENT: Final = re.compile(r"( *)#[^\n]*(?:\n|\Z)")


def add(page: Page, path: Path, key: str, value: Value) -> Page:
    """Put a new key with its value behind the last one of the mapping at a path. Raises `CannotEditError`."""
    node = _own(page, path)
    lines = write.block({key: value}, indented=is_indented(page))
    match node:
        case Mapping() if node.flow:
            text = _insert_flow(page, path, node, f"{write.inline(key)}: ", value)
        case Mapping():
            text = _insert_lines(page, end_of(page, node), column_of(page.text, node.entries[0][0].start), lines)
        case Scalar() if path and says_nothing(node):
            above = key_of(page, path)
            text = _insert_lines(page, line_end(page.text, above.end), column_of(page.text, above.start) + 2, lines)
        case _:
            raise CannotEditError(f"{shown(path)} is no mapping", "write a mapping, or leave the key out")
    expected = _copy(page)
    before = walk(expected, path)
    _set(expected, path, {**(before if isinstance(before, dict) else {}), key: write.as_read(value)})
    return _checked(page, text, expected)


def append(page: Page, path: Path, value: Value) -> Page:
    """Put an item behind the last one of the list at a path, which may be empty. Raises `CannotEditError`."""
    node = _own(page, path)
    lines = write.block([value], indented=is_indented(page))
    match node:
        case Sequence() if node.flow:
            text = _insert_flow(page, path, node, "", value)
        case Sequence():
            text = _insert_lines(page, end_of(page, node), column_of(page.text, dash_of(page, node, 0)), lines)
        case Scalar() if says_nothing(node):
            key = key_of(page, path)
            column = column_of(page.text, key.start) + (2 if is_indented(page) else 0)
            text = _insert_lines(page, line_end(page.text, key.end), column, lines)
        case _:
            raise CannotEditError(f"{shown(path)} is no list", "write a list, or leave the key out")
    expected = _copy(page)
    before = walk(expected, path)
    items = before if isinstance(before, list) else []
    _set(expected, path, [*items, write.as_read(value)])
    return _checked(page, text, expected)


def remove(page: Page, path: Path) -> Page:
    """Take the key or the item at a path out: the inverse of `add` and `append`. Raises `CannotEditError`."""
    parent, step = _own(page, path[:-1]), path[-1]
    _own(page, path)
    match parent:
        case Mapping():
            start, end = span_of_entry(page, parent, index_of(parent, step))
        case Sequence() if isinstance(step, int):
            start, end = span_of_item(page, parent, step)
        case _:
            raise CannotEditError(f"{shown(path)} is neither a key nor an item")
    expected = _copy(page)
    holder = walk(expected, path[:-1])
    match holder:
        case dict() if isinstance(step, str):
            del holder[step]
        case list() if isinstance(step, int):
            del holder[step]
        case _:
            pass
    if not holder and not parent.flow:
        _set(expected, path[:-1], None)  # a key with nothing below it
    return _checked(page, page.text[:start] + page.text[end:], expected)


def put_words(page: Page, path: Path, places: re.Pattern[str], words: str) -> Page:
    """Put words behind each place of a text at a path that matches. Raises `CannotEditError`."""
    node = _own(page, path)
    before = walk(page.root.value(), path)
    if not isinstance(node, Scalar) or not isinstance(before, str) or words in before:
        raise CannotEditError(f"{shown(path)} cannot be given {words.strip()}", "put it there by hand")
    raw, count = places.subn(lambda found: found[0] + words, page.text[node.start : node.end])
    text = page.text[: node.start] + raw + page.text[node.end :]
    changed = page_of(text).root.value()
    after = walk(changed, path)
    if not count or not isinstance(after, str) or after.count(words) != count or after.replace(words, "") != before:
        raise CannotEditError(f"{shown(path)} cannot be given {words.strip()}", "put it there by hand")
    expected = _copy(page)
    _set(expected, path, after)
    return _checked(page, text, expected)


def strike_words(page: Page, path: Path, words: str) -> Page:
    """Take words out of a text at a path, wherever they are in it. Raises `CannotEditError`."""
    node = _own(page, path)
    before = walk(page.root.value(), path)
    if not isinstance(node, Scalar) or not isinstance(before, str):
        raise CannotEditError(f"{shown(path)} is no text")
    raw = page.text[node.start : node.end].replace(words, "")
    expected = _copy(page)
    _set(expected, path, before.replace(words, ""))
    return _checked(page, page.text[: node.start] + raw + page.text[node.end :], expected)


def with_documents(page: Page, values: list[dict[str, Value]]) -> str:
    """Return the text of a document with further ones behind it. Raises `CannotEditError`."""
    added = "".join(f"---\n{write.block(value, indented=is_indented(page))}" for value in values)
    if not added:
        return page.text
    if not isinstance(page.root.node, Mapping) or page.root.node.flow:
        raise CannotEditError("is JSON, beside which no document can stand", "write it as YAML (kubectl get -o yaml)")
    ended = page.text.endswith("\n")
    added = (added if ended else f"\n{added.removesuffix(chr(10))}").replace("\n", page.newline)
    parts = split(page.text + added)
    if len(parts) != len(values) + 1 or parts[0].text.removesuffix(page.newline) != page.text.removesuffix(
        page.newline
    ):
        raise CannotEditError("ends in a way that lets no document follow", "end it with a line of ---")
    return page.text + added


def _checked(page: Page, text: str, expected: Value) -> Page:
    """Return the text read, if it says what is expected."""
    try:
        changed = page_of(text)
        said = changed.root.value()
    except NotYamlError:
        changed, said = page, None
    if said != expected:
        raise CannotEditError("cannot be changed without changing something beside it", "write it more plainly")
    return changed


def _copy(page: Page) -> Value:
    return copy.deepcopy(page.root.value())


def _set(value: Value, path: Path, new: Value) -> None:
    match walk(value, path[:-1]), path[-1]:
        case dict() as holder, str(key):
            holder[key] = new
        case list() as items, int(index):
            items[index] = new
        case _:
            raise TypeError(path)


def _own(page: Page, path: Path) -> Node:
    """Return the value at a path, if what is written there is written for this place alone."""
    found: Node = page.root.node
    for length in range(len(path) + 1):
        node = page.root.find(path[:length])
        if node is None:
            raise CannotEditError(f"{shown(path[:length])} is not written out here", "do not merge it in with <<")
        if isinstance(node, Alias):
            raise CannotEditError(f"{shown(path[:length])} is an alias (*{node.name})", "write it out")
        if node.anchor in page.root.aliased:
            reason = f"{shown(path[:length])} is used elsewhere too, as *{node.anchor}"
            raise CannotEditError(reason, "write it out in each place")
        found = node
    return found


def _insert_lines(page: Page, offset: int, column: int, lines: str) -> str:
    """Return the text with lines put in, behind the comments that stand further right than they do."""
    while (comment := _COMMENT.match(page.text, offset)) and len(comment[1]) > column and offset < len(page.text):
        offset = comment.end()
    indented = "".join(f"{' ' * column}{line}" if line.strip() else line for line in lines.splitlines(keepends=True))
    indented = indented.replace("\n", page.newline)
    if offset and page.text[offset - 1] != "\n":
        indented = page.newline + indented.removesuffix(page.newline)  # the text ends without the end of a line
    return page.text[:offset] + indented + page.text[offset:]


def _insert_flow(page: Page, path: Path, node: Mapping | Sequence, key: str, value: Value) -> str:
    """Return the text with an item put behind the last one, on a line of its own where that one has one."""
    children = node.items if isinstance(node, Sequence) else [child for entry in node.entries for child in entry]
    if not children:
        opening = page.text.index("[" if isinstance(node, Sequence) else "{", node.start)
        return page.text[: opening + 1] + key + write.inline(value) + page.text[opening + 1 :]
    last = node.items[-1] if isinstance(node, Sequence) else node.entries[-1][0]
    offset = children[-1].end
    indent = page.text[line_start(page.text, last.start) : last.start]
    if indent.strip():
        written = f", {key}{write.inline(value)}"
    else:
        unit = "\t" if "\t" in indent else " " * max(1, len(indent) // (len(path) + 1))
        written = f",\n{indent}{key}{write.lines(value, indent, unit)}".replace("\n", page.newline)
    return page.text[:offset] + written + page.text[offset:]
