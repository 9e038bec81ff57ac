"""The adapters that a server is started with, as the sidecar's config can declare them.

The trap guarded against is an adapter that the sidecar would look for elsewhere than the server does: a path relative
to the server's working directory cannot be declared, and neither can a name that is not in the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from lora_sidecar.cli.inject.servers.flags import is_known
from lora_sidecar.config.values import Fault, adapter_path

_LONGEST_NAME: Final = 256


class Declared(Struct, frozen=True):
    """One adapter, by the name that clients ask for and the path that the server was given."""

    name: str
    path: str


def declared(modules: Sequence[str], paths: Sequence[str]) -> tuple[tuple[Declared, ...], tuple[str, ...]]:
    """Return the adapters of vLLM's `--lora-modules` and SGLang's `--lora-paths`, and what is said of the others."""
    found: dict[str, Declared] = {}
    others: list[str] = []
    for item in (*modules, *paths):
        one = _read(item)
        if isinstance(one, Declared):
            found.setdefault(one.name, one)
        elif item:
            others.append(one)
    return tuple(found.values()), tuple(others)


def _read(item: str) -> Declared | str:
    if not is_known(item):
        return "an adapter that it starts with is not in the manifest: it is not declared"
    if item.startswith("{"):
        try:
            said = json.loads(item)
        except ValueError:
            return f"an adapter that it starts with is no JSON: {item[:80]}"
        name, path = said.get("name", said.get("lora_name")), said.get("path", said.get("lora_path"))
    else:
        name, equals, path = item.partition("=")
        path = path if equals else name
    if not isinstance(name, str) or not isinstance(path, str) or not 0 < len(name.strip()) <= _LONGEST_NAME:
        return f"an adapter that it starts with has no name and path: {item[:80]}"
    fault = adapter_path(path)
    if isinstance(fault, Fault):
        return f"the adapter {name} is not declared: its path ({path}) {fault.rule}"
    return Declared(name.strip(), path)
