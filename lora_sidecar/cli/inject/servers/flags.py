"""The flags that follow a server's command, as its own parser takes them.

The trap guarded against is a spelling: vLLM takes `--max_lora_rank` for `--max-lora-rank`, a value stands behind `=`
or in the next word, and some flags take several words. A word that begins with a hyphen ends them.
"""

from __future__ import annotations

from collections.abc import Mapping as Map
from collections.abc import Sequence

from msgspec import Struct

from lora_sidecar.cli.inject.servers.launch import UNKNOWN


class Flags(Struct, frozen=True):
    """Flags by their long spelling, each with its words; of one that is given twice the last counts."""

    words: Map[str, tuple[str, ...]]

    def has(self, *names: str) -> bool:
        """Whether one of these flags is given."""
        return any(name in self.words for name in names)

    def all(self, name: str) -> tuple[str, ...]:
        """Return the words of a flag; none where it is not given."""
        return self.words.get(name, ())

    def one(self, *names: str) -> str | None:
        """Return the first word of the first of these flags that is given, or None."""
        return next((self.words[name][0] for name in names if self.words.get(name)), None)

    def number(self, *names: str) -> int | None:
        """Return the value of one of these flags, if it is a whole number that the manifest gives."""
        word = self.one(*names)
        return int(word) if word is not None and word.isascii() and word.isdigit() else None


def flags_of(words: Sequence[str]) -> Flags:
    """Return the flags among words."""
    found: dict[str, tuple[str, ...]] = {}
    name = ""
    for word in words:
        if word.startswith("-") and word.strip("-") and not word.lstrip("-")[0].isdigit():
            name, equals, value = word.partition("=")
            if name.startswith("--"):
                name = name.replace("_", "-")
            found[name] = (value,) if equals else ()
        elif name:
            found[name] = (*found[name], word)
    return Flags(found)


def is_known(word: str | None) -> bool:
    """Whether a word is there, and the manifest gives the whole of it."""
    return word is not None and UNKNOWN not in word and "{{" not in word
