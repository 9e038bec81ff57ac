"""What a checkpoint holds, as lines of JSON, each of which is written once.

The trap guarded against is a save that costs more than its disk. Where one of 10,000 adapters is new, encoding all of
them takes longer than writing them durably; so does putting their lines together again, since so much memory is new to
the process. So lines are kept from one save to the next, each with the very value it was made of, which is frozen; and
so is the text of each block of neighbours, of which a change touches one.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from itertools import chain, compress, repeat
from json.encoder import encode_basestring
from operator import is_not
from typing import Final

from msgspec import Struct

from lora_sidecar.core.model import Adapter

# Characters that YAML forbids or takes for line breaks, that UTF-8 cannot hold (lone surrogates), or that make a
# terminal show another text than the file's. They only ever stand inside strings, where JSON lets them be escaped.
_ESCAPED = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")

BLOCK: Final = 512
"""Lines of a block; one that has grown to more than twice as many is cut into such.

Each block is a write of its own: with 64, 10,000 adapters took a millisecond longer to write.
"""

_BOOLEAN = ("false", "true")

_quoted = encode_basestring
_encode = json.JSONEncoder(ensure_ascii=False).encode

_Row = tuple[str, bytes, bytes]
"""An adapter's name, its line, and its name as JSON."""


class _Block(Struct, frozen=True):
    """Neighbours in the order of their names, and the texts of both columns."""

    rows: list[_Row]
    lines: bytes
    quoted: bytes

    @property
    def first(self) -> str:
        """The lowest name that belongs here."""
        return self.rows[0][0] if self.rows else ""


class Lines:
    """The lines of one checkpoint's adapters, as they were last asked for, in the order of their names."""

    def __init__(self, between: bytes) -> None:
        """`between` stands before each line of a text."""
        self._between = between
        self._made_of: Mapping[str, Adapter] = {}
        self._blocks = [_Block([], b"", b"")]

    def of(self, adapters: Mapping[str, Adapter], listed: Collection[str]) -> tuple[list[bytes], list[bytes]]:
        """The text of the adapters and that of the names that are `listed`, in pieces, in the order of the names.

        The mapping must not change afterwards: the next one is compared with it.
        """
        self._follow(adapters)
        lines = [block.lines for block in self._blocks if block.rows]
        if listed == adapters.keys():
            return lines, [block.quoted for block in self._blocks if block.rows]
        # Unlike what is desired, what was listed may have any name.
        return lines, self.text(sorted(listed))

    def text(self, values: Iterable[object]) -> list[bytes]:
        """The text of other values, in at most one piece."""
        made = dumped(values)
        return [_joined(self._between, made)] if made else []

    def _follow(self, adapters: Mapping[str, Adapter]) -> None:
        """Ten thousand go by here, most of them unchanged: what is done for each is done by `map`."""
        before = self._made_of
        # What is new mostly stands behind what was there: in the same place is the same adapter, by its own name.
        elsewhere = compress(adapters, chain(map(is_not, adapters.values(), before.values()), repeat(object=True)))
        changed = [name for name in elsewhere if before.get(name) is not adapters[name]]
        touched = set(changed)
        if len(before) + sum(name not in before for name in changed) > len(adapters):
            touched |= before.keys() - adapters.keys()
        lines = _sound([_adapter(adapters[name]) for name in changed])
        fresh = dict(zip(changed, zip(changed, lines, _sound(list(map(_quoted, changed))), strict=True), strict=True))
        blocks = self._with(touched, fresh)
        # All or nothing: a save that breaks off on the way must not leave out what it had begun to take in.
        self._blocks, self._made_of = blocks, adapters

    def _with(self, touched: Iterable[str], fresh: Mapping[str, _Row]) -> list[_Block]:
        """The blocks with `fresh` rows in place of those of the `touched` names, if any."""
        touched_in: dict[int, set[str]] = {}
        firsts = [block.first for block in self._blocks]
        for name in touched:
            touched_in.setdefault(max(0, bisect_right(firsts, name) - 1), set()).add(name)
        blocks: list[_Block] = []
        for at, block in enumerate(self._blocks):
            names = touched_in.get(at)
            if names is None:
                blocks.append(block)
                continue
            kept = [row for row in block.rows if row[0] not in names]
            rows = sorted([*kept, *(fresh[name] for name in names if name in fresh)])
            size = BLOCK if len(rows) > 2 * BLOCK else max(1, len(rows))
            blocks += (self._block(rows[begin : begin + size]) for begin in range(0, len(rows), size))
        return blocks or [_Block([], b"", b"")]

    def _block(self, rows: list[_Row]) -> _Block:
        lines, quoted = [line for _, line, _ in rows], [name for _, _, name in rows]
        return _Block(rows, _joined(self._between, lines), _joined(self._between, quoted))


def _joined(between: bytes, lines: list[bytes]) -> bytes:
    return between + between.join(lines)


def dumped(values: Iterable[object]) -> list[bytes]:
    """Values as lines."""
    return _sound(list(map(_encode, values)))


def _adapter(adapter: Adapter) -> str:
    base = "null" if adapter.base is None else _quoted(adapter.base)
    listed_as = "" if adapter.listed_as is None else f', "listed_as": {_quoted(adapter.listed_as)}'
    return (
        f'{{"name": {_quoted(adapter.name)}, "path": {_quoted(adapter.path)}, "origin": "{adapter.origin}", '
        f'"required": {_BOOLEAN[adapter.required]}, "priority": {adapter.priority}, '
        f'"is_3d_lora_weight": {_BOOLEAN[adapter.is_3d_lora_weight]}, "base": {base}{listed_as}}}'
    )


def _sound(lines: list[str]) -> list[bytes]:
    """The same in UTF-8, with what no file or terminal should hold written otherwise; all at once, which is faster."""
    if not lines:
        return []
    text = "\n".join(lines)
    if not text.isascii() or "\x7f" in text:
        text = _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.encode().split(b"\n")
