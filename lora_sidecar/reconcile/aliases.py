"""Under which path a server lists an adapter that it was given under another.

The trap guarded against is drift that is none. vLLM's Rust frontend resolves symbolic links and lists the real path, so
an adapter that is declared as /adapters/current is never listed so, and would be called replaced for ever. What the
server makes of a path only its own listing can tell: the path that an adapter is listed with after our own load of it
is what the path that was sent became.

This is learned only from a server that is known to resolve paths, and only after a load of ours that put the adapter
there; "already loaded" proves nothing, since somebody else's folder may be behind the name.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from lora_sidecar.core.model import Desired
from lora_sidecar.core.observation import Observed
from lora_sidecar.reconcile.desired import is_listed_path
from lora_sidecar.reconcile.loads import undecided
from lora_sidecar.reconcile.state import Attempt


def learn(desired: Desired, attempts: Mapping[str, Attempt], seen: Observed) -> Desired:
    """Remember what paths became; the same object is returned if there is nothing new."""
    if not seen.resolves_paths:
        return desired
    learned = {}
    for card in seen.adapters:
        attempt, adapter = attempts.get(card.name), desired.adapters.get(card.name)
        if attempt is None or adapter is None or not attempt.fresh or undecided(attempt, seen.at):
            continue
        if adapter.path.startswith("/") and card.path.startswith("/") and not is_listed_path(adapter, card.path):
            learned[card.name] = replace(adapter, listed_as=card.path)
    return replace(desired, adapters={**desired.adapters, **learned}) if learned else desired
