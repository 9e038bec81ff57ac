"""What a checkpoint holds, as lines of JSON, each of which is written once.

The trap guarded against is a save that costs more than its disk: where one of 10,000 adapters is new, encoding all of
them takes longer than writing them durably. So their lines are kept from one save to the next, each with the very value
it was made of, which is frozen; and they are written out by hand.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from itertools import chain, compress, repeat
from json.encoder import encode_basestring
from operator import is_not
from typing import Final

from lora_sidecar.model import Adapter

# Characters that YAML forbids or takes for line breaks, that UTF-8 cannot hold (lone surrogates), or that make a
# terminal show another text than the file's. They only ever stand inside strings, where JSON lets them be escaped.
_ESCAPED = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")

FEW: Final = 64
"""So many changes are made one by one; each moves whatever stands behind it."""

_BOOLEAN = ("false", "true")

_quoted = encode_basestring
_encode = json.JSONEncoder(ensure_ascii=False).encode


class Lines:
    """The lines of one checkpoint's adapters, as they were last asked for, in the order of their names."""

    def __init__(self) -> None:
        self._made_of: Mapping[str, Adapter] = {}
        self._names: list[str] = []
        self._lines: list[bytes] = []
        self._quoted: list[bytes] = []

    def of(self, adapters: Mapping[str, Adapter], listed: Collection[str]) -> tuple[list[bytes], list[bytes]]:
        """A line for each adapter and one for each name that is `listed`, both in the order of the names.

        The mapping must not change afterwards: the next one is compared with it.
        """
        self._follow(adapters)
        if listed == adapters.keys():
            return self._lines, self._quoted
        known = [quoted for name, quoted in zip(self._names, self._quoted, strict=True) if name in listed]
        # Unlike what is desired, what was listed may have any name.
        return self._lines, known if len(known) == len(listed) else dumped(sorted(listed))

    def _follow(self, adapters: Mapping[str, Adapter]) -> None:
        """Ten thousand go by here, most of them unchanged: what is done for each is done by `map`."""
        before = self._made_of
        # What is new mostly stands behind what was there: in the same place is the same adapter, by its own name.
        elsewhere = compress(adapters, chain(map(is_not, adapters.values(), before.values()), repeat(object=True)))
        changed = [name for name in elsewhere if before.get(name) is not adapters[name]]
        stale = {name for name in changed if name in before}
        if len(before) - len(stale) + len(changed) > len(adapters):
            stale |= before.keys() - adapters.keys()
        lines = _sound([_adapter(adapters[name]) for name in changed])
        fresh = list(zip(changed, lines, _sound(list(map(_quoted, changed))), strict=True))
        if len(stale) + len(fresh) <= FEW:
            columns = _with_few(self._names, self._lines, self._quoted, stale, fresh)
        else:
            kept = zip(self._names, self._lines, self._quoted, strict=True)
            rows = sorted([*(row for row in kept if row[0] not in stale), *fresh])
            columns = [name for name, _, _ in rows], [line for _, line, _ in rows], [quoted for _, _, quoted in rows]
        # All or nothing: a save that breaks off on the way must not leave out what it had begun to take in.
        (self._names, self._lines, self._quoted), self._made_of = columns, adapters


def _with_few(
    names: list[str],
    lines: list[bytes],
    quoted: list[bytes],
    stale: Iterable[str],
    fresh: Iterable[tuple[str, bytes, bytes]],
) -> tuple[list[str], list[bytes], list[bytes]]:
    names, lines, quoted = names.copy(), lines.copy(), quoted.copy()
    for name in stale:
        at = bisect_left(names, name)
        del names[at], lines[at], quoted[at]
    for row in fresh:
        at = bisect_left(names, row[0])
        names.insert(at, row[0])
        lines.insert(at, row[1])
        quoted.insert(at, row[2])
    return names, lines, quoted


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
