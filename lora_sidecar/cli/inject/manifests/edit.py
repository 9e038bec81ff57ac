"""Puts values into the text of a document, or takes them out, and leaves every other character as it is.

The trap guarded against is an edit that changes more than it says: a comment read as a value, a shared anchor, a
block of text that grows by a line. So a draft collects edits that each insert or strike one run of characters, the
result is read again, and unless it says what was meant, and only that, it is refused. Taking out is the exact inverse
of putting in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Listed
from typing import Final

from msgspec import Struct

from lora_sidecar.cli.inject.manifests import write
from lora_sidecar.cli.inject.manifests.documents import split
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
    spans_of_items,
)
from lora_sidecar.cli.inject.manifests.tree import Alias, Mapping, Node, NotYamlError, Scalar, Sequence
from lora_sidecar.cli.inject.manifests.value import Path, Value, walk

_COMMENT: Final = re.compile(r"( *)#[^\n]*(?:\n|\Z)")


class _Insertion(Struct, frozen=True):
    offset: int
    depth: int
    text: str


class Draft:
    """Edits of one document, made on the page as it is; each raises `CannotEditError` where it cannot be made.

    Of two edits at one place the one that lies deeper comes first, else the one that was made first.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._text = page.text
        self._indented = is_indented(page)
        self._expected = page.root.value()
        self._insertions: list[_Insertion] = []
        self._struck: list[tuple[int, int]] = []

    def add(self, path: Path, key: str, value: Value) -> None:
        """Put a new key with its value behind the last one of the mapping at a path."""
        node = self._own(path)
        lines = write.block({key: value}, indented=self._indented)
        match node:
            case Mapping() if node.flow:
                self._insert_flow(path, node, [f"{write.inline(key)}: "], [value])
            case Mapping():
                self._insert_lines(
                    path, end_of(self._page, node), column_of(self._text, node.entries[0][0].start), lines
                )
            case Scalar() if path and says_nothing(node):
                above = key_of(self._page, path)
                column = column_of(self._text, above.start) + 2
                self._insert_lines(path, line_end(self._text, above.end), column, lines)
            case _:
                raise CannotEditError(f"{shown(path)} is no mapping", "write a mapping, or leave the key out")
        before = walk(self._expected, path)
        self._expect(path, {**(before if isinstance(before, dict) else {}), key: write.as_read(value)})

    def append(self, path: Path, values: Listed[Value]) -> None:
        """Put items behind the last one of the list at a path, which may be empty."""
        node = self._own(path)
        lines = write.block([*values], indented=self._indented)
        match node:
            case Sequence() if node.flow:
                self._insert_flow(path, node, ["" for _ in values], values)
            case Sequence():
                column = column_of(self._text, dash_of(self._page, node, 0))
                self._insert_lines(path, end_of(self._page, node), column, lines)
            case Scalar() if says_nothing(node):
                key = key_of(self._page, path)
                column = column_of(self._text, key.start) + (2 if self._indented else 0)
                self._insert_lines(path, line_end(self._text, key.end), column, lines)
            case _:
                raise CannotEditError(f"{shown(path)} is no list", "write a list, or leave the key out")
        before = walk(self._expected, path)
        added = [write.as_read(value) for value in values]
        self._expect(path, [*(before if isinstance(before, list) else []), *added])

    def put_words(self, path: Path, places: re.Pattern[str], words: str) -> None:
        """Put words behind each place of a text at a path that matches."""
        node = self._own(path)
        before = walk(self._expected, path)
        if not isinstance(node, Scalar) or not isinstance(before, str) or words in before:
            raise CannotEditError(f"{shown(path)} cannot be given {words.strip()}", "put it there by hand")
        quote = 1 if node.style in {"'", '"'} else 0
        found = places.finditer(self._text, node.start + quote, node.end - quote)
        self._insertions += [_Insertion(one.end(), len(path), words) for one in found]
        self._expect(path, places.sub(lambda one: one[0] + words, before))

    def strike_words(self, path: Path, words: str) -> None:
        """Take words out of a text at a path, wherever they are in it."""
        node = self._own(path)
        before = walk(self._expected, path)
        if not isinstance(node, Scalar) or not isinstance(before, str):
            raise CannotEditError(f"{shown(path)} is no text")
        found = re.compile(re.escape(words)).finditer(self._text, node.start, node.end)
        self._struck += [one.span() for one in found]
        self._expect(path, before.replace(words, ""))

    def remove_key(self, path: Path) -> None:
        """Take the key at a path out, with its value."""
        parent, step = self._own(path[:-1]), path[-1]
        self._own(path)
        holder = walk(self._expected, path[:-1])
        if not isinstance(parent, Mapping) or not isinstance(holder, dict) or not isinstance(step, str):
            raise CannotEditError(f"{shown(path)} is no key")
        self._struck.append(span_of_entry(self._page, parent, index_of(parent, step)))
        del holder[step]
        if not holder and not parent.flow:
            self._expect(path[:-1], None)

    def remove_items(self, path: Path, indices: Listed[int]) -> None:
        """Take items of the list at a path out."""
        parent = self._own(path)
        for index in indices:
            self._own((*path, index))
        holder = walk(self._expected, path)
        if not isinstance(parent, Sequence) or not isinstance(holder, list):
            raise CannotEditError(f"{shown(path)} is no list")
        self._struck += spans_of_items(self._page, parent, set(indices))
        for index in sorted(indices, reverse=True):
            del holder[index]
        if not holder and not parent.flow:
            self._expect(path, None)  # a key with nothing below it

    def finish(self) -> Page:
        """Return the document with all edits made."""
        text = self._text
        for start, end in sorted(self._merged(), reverse=True):
            text = text[:start] + text[end:]
        for one in sorted(self._insertions, key=lambda one: (one.offset, -one.depth))[::-1]:
            text = text[: one.offset] + one.text + text[one.offset :]
        try:
            page = page_of(text)
            said = page.root.value()
        except NotYamlError:
            page, said = self._page, None
        if said != self._expected:
            raise CannotEditError("cannot be changed without changing something beside it", "write it more plainly")
        return page

    def _merged(self) -> list[tuple[int, int]]:
        """Return what is to be struck out, without overlaps, and no line begun that does not end."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted(self._struck):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        if merged and merged[-1][1] == len(self._text) and not self._text.endswith("\n") and merged[-1][0]:
            start, end = merged[-1]
            if self._text[start - 1] == "\n":
                merged[-1] = (start - len(self._page.newline), end)
        return merged

    def _expect(self, path: Path, new: Value) -> None:
        if not path:
            self._expected = new
            return
        match walk(self._expected, path[:-1]), path[-1]:
            case dict() as holder, str(key):
                holder[key] = new
            case list() as items, int(index):
                items[index] = new
            case _:
                raise TypeError(path)

    def _own(self, path: Path) -> Node:
        """Return the value at a path, if what is written there is written for this place alone."""
        found: Node = self._page.root.node
        for length in range(len(path) + 1):
            node = self._page.root.find(path[:length])
            where = shown(path[:length])
            if node is None:
                raise CannotEditError(f"{where} is not written out here", "do not merge it in with <<")
            if isinstance(node, Alias):
                raise CannotEditError(f"{where} is an alias (*{node.name})", "write it out")
            if node.anchor in self._page.root.aliased:
                reason = f"{where} is used elsewhere too, as *{node.anchor}"
                raise CannotEditError(reason, "write it out in each place")
            found = node
        return found

    def _insert_lines(self, path: Path, offset: int, column: int, lines: str) -> None:
        """Put lines in, behind the comments that stand further right than they do."""
        while offset < len(self._text) and (comment := _COMMENT.match(self._text, offset)):
            if len(comment[1]) <= column:
                break
            offset = comment.end()
        indented = "".join(f"{' ' * column}{one}" if one.strip() else one for one in lines.splitlines(keepends=True))
        indented = indented.replace("\n", self._page.newline)
        if offset and self._text[offset - 1] != "\n":  # the text ends without the end of a line, and is to go on so
            indented = self._page.newline + indented.removesuffix(self._page.newline)
        self._insertions.append(_Insertion(offset, len(path), indented))

    def _insert_flow(self, path: Path, node: Mapping | Sequence, keys: Listed[str], values: Listed[Value]) -> None:
        """Put items behind the last one, on lines of their own where that one has one."""
        children = node.items if isinstance(node, Sequence) else [child for entry in node.entries for child in entry]
        if not children:
            opening = self._text.index("[" if isinstance(node, Sequence) else "{", node.start)
            written = ", ".join(f"{key}{write.inline(value)}" for key, value in zip(keys, values, strict=True))
            self._insertions.append(_Insertion(opening + 1, len(path), written))
            return
        last = node.items[-1] if isinstance(node, Sequence) else node.entries[-1][0]
        indent = self._text[line_start(self._text, last.start) : last.start]
        if indent.strip():
            written = "".join(f", {key}{write.inline(value)}" for key, value in zip(keys, values, strict=True))
        else:
            unit = "\t" if "\t" in indent else " " * max(1, len(indent) // (len(path) + 1))
            parts = [f"{key}{write.lines(value, indent, unit)}" for key, value in zip(keys, values, strict=True)]
            written = "".join(f",\n{indent}{part}" for part in parts).replace("\n", self._page.newline)
        self._insertions.append(_Insertion(children[-1].end, len(path), written))


def with_documents(page: Page, values: Listed[dict[str, Value]]) -> str:
    """Return the text of a document with further ones behind it. Raises `CannotEditError`."""
    if not values:
        return page.text
    if not isinstance(page.root.node, Mapping) or page.root.node.flow:
        raise CannotEditError("is JSON, beside which no document can stand", "write it as YAML (kubectl get -o yaml)")
    added = "".join(f"---\n{write.block(value, indented=is_indented(page))}" for value in values)
    added = added if page.text.endswith("\n") else f"\n{added.removesuffix(chr(10))}"
    text = page.text + added.replace("\n", page.newline)
    parts = split(text)
    before = parts[0].text.removesuffix(page.newline)
    if len(parts) != len(values) + 1 or before != page.text.removesuffix(page.newline):
        raise CannotEditError("ends in a way that lets no document follow", "end it with a line of ---")
    return text
