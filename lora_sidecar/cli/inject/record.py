"""What was added to an object, written down in one of its annotations, so that exactly that can be taken out.

The trap guarded against is to take out what was there before: a variable that somebody else has set, a list that was
empty. A record names each thing that was added, in order, by its path: `metadata/annotations` where the annotations
were, then the path of a pod's spec with a colon, then paths inside it. An item of a list goes by its name. So a
record outlives the API server, which rewrites everything else.
"""

from __future__ import annotations

from typing import Final

from lora_sidecar.cli.inject.manifests.value import Path, Value, walk

ANNOTATIONS: Final[Path] = ("metadata", "annotations")

_STEP: Final = "/"
_BASE: Final = ":"


def base(path: Path) -> str:
    """Return how it is written that what follows is inside this path."""
    return _STEP.join(map(str, path)) + _BASE


def word(value: Value, path: Path) -> str:
    """Return how a path inside a value is written."""
    names = []
    for length, step in enumerate(path):
        item = walk(value, path[: length + 1])
        names.append(step if isinstance(step, str) else _name(item) or str(step))
    return _STEP.join(names)


def item(inside: str, value: Value) -> str:
    """Return how an item is written that is at the end of a list."""
    return f"{inside}{_STEP}{_name(value)}"


def words(written: str) -> list[tuple[str, str]]:
    """Return the words of a record, the last one first, each with the base inside which it leads."""
    found, inside = [], ""
    for one in written.split():
        if one.endswith(_BASE):
            inside = one.removesuffix(_BASE)
        else:
            found.append((inside, one))
    return found[::-1]


def resolve(value: Value, inside: str, written: str) -> Path | None:
    """Return the path in an object that a word of its record stands for, or None where it leads nowhere any more."""
    path: Path = ()
    for name in [*filter(None, inside.split(_STEP)), *written.split(_STEP)]:
        here = walk(value, path)
        if isinstance(here, dict) and name in here:
            path = (*path, name)
            continue
        index = _index(here, name) if isinstance(here, list) else None
        if index is None:
            return None
        path = (*path, index)
    return path


def _name(item: Value) -> str:
    name = item.get("name") if isinstance(item, dict) else item
    return name if isinstance(name, str) and not set(name) & set(f"{_STEP}{_BASE} \n") else ""


def _index(items: list[Value], name: str) -> int | None:
    named = next((index for index, item in enumerate(items) if _name(item) == name), None)
    if named is None and name.isdigit() and int(name) < len(items):
        return int(name)
    return named
