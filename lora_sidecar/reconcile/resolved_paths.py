"""Under which path a server lists an adapter that it was given under another.

The trap guarded against is drift that is none. vLLM's Rust frontend resolves symbolic links and lists the real path, so
an adapter that is declared as /adapters/current is never listed so, and would be called replaced for ever. What the
server makes of a path only its own listing can tell: the path that an adapter is listed with after our own load of it
is what the path that was sent became.

This is learned only from a server that is known to resolve paths, and only after a load of ours that put the adapter
there; "already loaded" proves nothing, since somebody else's folder may be behind the name.
"""

from __future__ import annotations

from msgspec.structs import replace

from lora_sidecar.core.paths import is_listed_path
from lora_sidecar.reconcile.beat import ListingBeat


def learn(beat: ListingBeat) -> None:
    """Remember what paths became."""
    if not beat.seen.resolves_paths:
        return
    resolved = {}
    for name, path in beat.listed.items():
        attempt, adapter = beat.attempts.get(name), beat.desired.adapters.get(name)
        if attempt is None or adapter is None or not attempt.fresh or not attempt.predates(beat.at):
            continue
        if adapter.path.startswith("/") and path.startswith("/") and not is_listed_path(adapter, path):
            resolved[name] = replace(adapter, listed_as=path)
    if resolved:
        beat.desired = replace(beat.desired, adapters={**beat.desired.adapters, **resolved})
