"""Edits to one object after the other, each written down in the record that the object carries.

The trap guarded against is an edit that nobody can take back: what was added to a list, and that the list itself was,
are two words of the record.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_sidecar.cli.inject import record
from lora_sidecar.cli.inject.manifests.documents import INJECTED
from lora_sidecar.cli.inject.manifests.edit import Draft
from lora_sidecar.cli.inject.manifests.page import CannotEditError, Page
from lora_sidecar.cli.inject.manifests.value import Path, Value, walk
from lora_sidecar.cli.inject.servers.engine import ENABLE_LORA, LAUNCHES


class Recording:
    """Collects edits of a document; each raises `CannotEditError` where it cannot be made.

    `at` is the place of the last edit, inside the object. Paths are inside the object too.
    """

    def __init__(self, page: Page) -> None:
        self.at: Path = ()
        self.draft = Draft(page)
        self._page = page
        self._value = page.root.value()
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

    def append(self, path: Path, values: Sequence[Value]) -> None:
        """Put items behind the last one of a list of the object, which is made where there is none."""
        self.at = path
        inside = record.word(self._said(self._pod), path[len(self._pod) :])
        if self._make(path, [*values]):
            self._words.append(inside)
        else:
            self.draft.append((*self._root, *path), values)
        self._words += [record.item(inside, value) for value in values]

    def enable_lora(self, path: Path) -> None:
        """Give a server `--enable-lora`: `path` is that of a list of words, or of the text that a shell runs."""
        if isinstance(self._said(path), str):
            self.at = path
            self.draft.put_words((*self._root, *path), LAUNCHES, f" {ENABLE_LORA}")
            self._words.append(record.word(self._said(self._pod), path[len(self._pod) :]))
        else:
            self.append(path, [ENABLE_LORA])

    def keep(self) -> None:
        """Write the record into the object."""
        self.at = record.ANNOTATIONS[:1]
        words = " ".join(self._words)
        made: Value = {INJECTED: f"{record.word(None, record.ANNOTATIONS)} {words}"}
        if not self._make(record.ANNOTATIONS, made):
            self.draft.add((*self._root, *record.ANNOTATIONS), INJECTED, words)

    def _said(self, path: Path) -> Value:
        return walk(self._value, (*self._root, *path))

    def _make(self, path: Path, value: Value) -> bool:
        """Make a key that is not there; return whether it was made."""
        whole = (*self._root, *path)
        if self._page.root.find(whole) is not None:
            return False
        if self._said(path) is not None:
            raise CannotEditError(f"{path[-1]} is not written out here", "write it out, without * or <<")
        self.draft.add(whole[:-1], str(path[-1]), value)
        return True
