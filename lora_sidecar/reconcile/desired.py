"""How a config changes what is desired.

The trap guarded against is a desired that shrinks on a bad day: a broken config never gets here, and what a good one
removes stays loaded.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from lora_sidecar.config.inventory import AdapterConfig
from lora_sidecar.core.events import Event, EventName, info
from lora_sidecar.core.model import Adapter, Desired, Origin, Withdrawn


def declare(desired: Desired, declared: Iterable[AdapterConfig]) -> tuple[Desired, tuple[Event, ...]]:
    """Make the declared adapters exactly those of the config.

    One that was removed from the config is orphaned: it stays loaded, is restored no more, and is not adopted again
    while it stays listed. One that was withdrawn stays so for as long as its entry is the same.
    """
    wanted = {config.name: _declared(config, _known(desired, config.name)) for config in declared}
    withdrawn = {n: one for n, one in desired.withdrawn.items() if one.declared == wanted.get(n)}
    # Removed from the config before the server was told to unload it: it is still to be told.
    withdrawn |= {n: Withdrawn() for n, one in desired.withdrawn.items() if one.pending and n not in wanted}
    wanted = {n: a for n, a in wanted.items() if n not in withdrawn}
    kept = {n: a for n, a in desired.adapters.items() if n not in wanted and a.origin is not Origin.DECLARED}
    gone = {n: a for n, a in desired.adapters.items() if n not in wanted and a.origin is Origin.DECLARED}
    adapters = kept | wanted
    if adapters == desired.adapters and withdrawn == desired.withdrawn:
        return desired, ()
    orphaned = {n: p for n, p in desired.orphaned.items() if n not in wanted} | {
        n: a.listed_as or a.path for n, a in gone.items()
    }
    facts = [
        info(EventName.ADAPTER_DECLARED, adapter=a.name, path=a.path, required=a.required, priority=a.priority)
        for n, a in wanted.items()
        if desired.adapters.get(n) != a
    ]
    facts += [
        info(EventName.ADAPTER_ORPHANED, adapter=n, path=a.path, reason="removed from the config; it is not unloaded")
        for n, a in gone.items()
    ]
    # A mended config deserves a fresh start.
    suspects = {n: s for n, s in desired.suspects.items() if adapters.get(n) == desired.adapters.get(n)}
    changed = replace(desired, adapters=adapters, orphaned=orphaned, withdrawn=withdrawn, suspects=suspects)
    return changed, tuple(facts)


def _known(desired: Desired, name: str) -> Adapter | None:
    withdrawn = desired.withdrawn.get(name)
    return desired.adapters.get(name) if withdrawn is None else withdrawn.declared


def _declared(config: AdapterConfig, known: Adapter | None) -> Adapter:
    return Adapter(
        name=config.name,
        path=config.path,
        origin=Origin.DECLARED,
        required=config.required,
        priority=config.priority,
        is_3d_lora_weight=config.is_3d_lora_weight,
        listed_as=known.listed_as if known is not None and known.path == config.path else None,
    )
