"""Edits to one object after the other, each written down in the record that the object carries.

The trap guarded against is an edit that nobody can take back: what was added to a list, and that the list itself was,
are two words of the record.
"""

from __future__ import annotations

from lora_sidecar.cli.inject import record
from lora_sidecar.cli.inject.manifests import edit
from lora_sidecar.cli.inject.manifests.documents import INJECTED, walk
from lora_sidecar.cli.inject.manifests.page import CannotEditError, Page
from lora_sidecar.cli.inject.manifests.tree import Path, Value
from lora_sidecar.cli.inject.servers.engine import ENABLE_LORA, LAUNCHES


class Recording:
    """Makes one edit after the other; `page` is the document as it is by now. Each edit raises `CannotEditError`.

    `at` is the place of the last edit, inside the object. Paths are inside the object too.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.at: Path = ()
        self._root: Path = ()
        self._pod: Path = ()
        self._words: list[str] = []

    def begin(self, root: Path) -> None:
        """Turn to the object at a path of the document."""
        self._root, self._words = root, []

    def turn_to(self, pod: Path) -> None:
        """Turn to a pod's spec inside the object: what follows is added there."""
        self._pod = pod
        self._words.append(record.base(pod))

    def append(self, path: Path, value: Value) -> None:
        """Put an item behind the last one of a list of the object, which is made where there is none."""
        self.at = path
        index = 0
        if not self._make(path, [value]):
            before = self._value(path)
            index = len(before) if isinstance(before, list) else 0
            self.page = edit.append(self.page, (*self._root, *path), value)
        self._write_down((*path, index))

    def enable_lora(self, path: Path) -> None:
        """Give a server `--enable-lora`: `path` is that of a list of words, or of the text that a shell runs."""
        self.at = path
        if isinstance(self._value(path), str):
            self.page = edit.put_words(self.page, (*self._root, *path), LAUNCHES, f" {ENABLE_LORA}")
            self._write_down(path)
        else:
            self.append(path, ENABLE_LORA)

    def keep(self) -> None:
        """Write the record into the object."""
        self.at = record.ANNOTATIONS[:1]
        words = " ".join(self._words)
        made: Value = {INJECTED: f"{record.word(None, record.ANNOTATIONS)} {words}"}
        if not self._make(record.ANNOTATIONS, made):
            self.page = edit.add(self.page, (*self._root, *record.ANNOTATIONS), INJECTED, words)

    def _value(self, path: Path) -> Value:
        return walk(self.page.root.value(), (*self._root, *path))

    def _make(self, path: Path, value: Value) -> bool:
        """Make a key that is not there, and write that down; return whether it was made."""
        whole = (*self._root, *path)
        if self.page.root.find(whole) is not None:
            return False
        if self._value(path) is not None:
            raise CannotEditError(f"{path[-1]} is not written out here", "write it out, without * or <<")
        self.page = edit.add(self.page, whole[:-1], str(path[-1]), value)
        self._write_down(path)
        return True

    def _write_down(self, path: Path) -> None:
        self._words.append(record.word(self._value(self._pod), path[len(self._pod) :]))
