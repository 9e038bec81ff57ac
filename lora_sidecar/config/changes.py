"""Which changes of a config a restart alone applies.

Guards against an edit that is taken for applied while the program goes on with what it read at its start.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from lora_sidecar.config.keys import child, keys
from lora_sidecar.config.settings import Config


def restart_needed(old: Config, new: Config) -> tuple[str, ...]:
    """Return the key paths of `new` whose change only a restart can apply; everything else applies live.

    Servers are told apart by name, and a change in the set of names is named `servers`.
    """
    before = {server.name: server for server in old.servers}
    paths = ["servers"] if before.keys() != {server.name for server in new.servers} else []
    for at, server in enumerate(new.servers):
        if server.name in before:
            paths += changed(before[server.name], server, f"servers[{at}]")
    return (*paths, *changed(old, new))


def changed(old: Struct, new: Struct, path: str = "") -> Iterator[str]:
    """Yield the key paths, below sections but not in lists, that differ between two Structs and need a restart."""
    for key in keys(type(new)):
        before, after = getattr(old, key.name), getattr(new, key.name)
        where = child(path, key.name)
        if key.restart and before != after:
            yield where
        elif not key.restart and isinstance(after, Struct):
            yield from changed(before, after, where)
