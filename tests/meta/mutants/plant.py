"""Plants one bug, named by an environment variable, in the program that a process is about to import.

The trap guarded against is a bug that is planted beside the program. A bug is an edit of the source, made while the
module is loaded; a text that does not occur exactly once in the module is an error, so no control outlives its target.

    LORA_SIDECAR_PLANT=no-backoff python -m pytest -p tests.meta.mutants.plant tests/unit/reconcile/test_loads_and_backoff.py
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

from tests.meta.mutants.bugs import BUGS, Edit

VARIABLE: Final = "LORA_SIDECAR_PLANT"


def planted(source: str, edits: Sequence[Edit]) -> str:
    """The source with every edit made. Raises `LookupError` where a text does not occur exactly once."""
    for edit in edits:
        times = source.count(edit.old)
        if times != 1:
            raise LookupError(f"{edit.module} has this {times} times, and not once: {edit.old!r}")
        source = source.replace(edit.old, edit.new)
    return source


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from its source as it would be with the bug in it."""

    edits: Sequence[Edit] = ()

    def get_code(self, fullname: str) -> CodeType:
        """Compile the spoiled source, past every cache."""
        path = self.get_filename(fullname)
        return compile(planted(Path(path).read_text(), self.edits), path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that a bug is in before anybody else does."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Give the module a loader that spoils it."""
        edits = [edit for edit in self._edits if edit.module == fullname]
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target) if edits else None
        if spec is None or spec.origin is None:
            return None
        loader = _Loader(fullname, spec.origin)
        loader.edits = edits
        spec.loader = loader
        return spec


def plant(name: str) -> None:
    """Have the modules that are imported from now on carry the bug. Raises `RuntimeError` where that is too late."""
    edits = BUGS[name].edits
    late = [edit.module for edit in edits if edit.module in sys.modules]
    if late:
        raise RuntimeError(f"imported already: {late}")
    sys.meta_path.insert(0, _Finder(edits))


if VARIABLE in os.environ:
    plant(os.environ[VARIABLE])
