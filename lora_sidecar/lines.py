"""What a checkpoint holds, as lines of JSON, each of which is written once.

The trap guarded against is a save that costs more than its disk: where one of 10,000 adapters is new, encoding all of
them takes longer than writing them durably. So their lines are kept from one save to the next, each with the very value
it was made of, which is frozen; and they are written out by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from json.encoder import encode_basestring
from operator import is_

from lora_sidecar.model import Adapter

# Characters that YAML forbids or takes for line breaks, that UTF-8 cannot hold (lone surrogates), or that make a
# terminal show another text than the file's. They only ever stand inside strings, where JSON lets them be escaped.
_ESCAPED = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")

_BOOLEAN = ("false", "true")

_quoted = encode_basestring
_encode = json.JSONEncoder(ensure_ascii=False).encode


class Lines:
    """The lines of one checkpoint's adapters, as they were last asked for."""

    def __init__(self) -> None:
        self._made_of: dict[str, Adapter] = {}
        self._lines: dict[str, bytes] = {}
        self._names: dict[str, bytes] = {}

    def of(self, adapters: Mapping[str, Adapter], listed: Collection[str]) -> tuple[list[bytes], list[bytes]]:
        """A line for each adapter and one for each name that is `listed`, both in the order of the names.

        Ten thousand go by here, most of them unchanged: what is done for each is done by `map`.
        """
        names = sorted(adapters)
        values = list(map(adapters.__getitem__, names))
        same = list(map(is_, values, map(self._made_of.get, names)))
        if not all(same):
            self._write([value for value, known in zip(values, same, strict=True) if not known])
        if len(self._made_of) > len(names):
            for name in self._made_of.keys() - adapters.keys():
                del self._made_of[name], self._lines[name], self._names[name]
        known = names if listed == adapters.keys() else [name for name in names if name in listed]
        # Unlike what is desired, what was listed may have any name.
        named = list(map(self._names.__getitem__, known)) if len(known) == len(listed) else dumped(sorted(listed))
        return list(map(self._lines.__getitem__, names)), named

    def _write(self, adapters: list[Adapter]) -> None:
        names = [adapter.name for adapter in adapters]
        self._lines.update(zip(names, _sound(list(map(_adapter, adapters))), strict=True))
        self._names.update(zip(names, _sound(list(map(_quoted, names))), strict=True))
        self._made_of.update(zip(names, adapters, strict=True))


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
