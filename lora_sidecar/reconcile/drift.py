"""How the listing differs from what is desired, and when that is told.

The trap guarded against is a log line for every heartbeat of a drift that lasts: it is told when it grows.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_sidecar.core.events import Event, EventName, info
from lora_sidecar.core.model import Adapter, Desired
from lora_sidecar.core.text import shown
from lora_sidecar.reconcile.desired import is_listed_path
from lora_sidecar.reconcile.state import Drift


def drift_of(
    before: Drift,
    desired: Desired,
    listed: Mapping[str, str],
    missing: Mapping[str, Adapter],
    refused: Mapping[str, str],
) -> tuple[Drift, tuple[Event, ...]]:
    """How the listing differs from desired, and the fact of it where it differs in more than before."""
    ours = {n: path for n, path in listed.items() if n in desired.adapters}
    replaced = {n for n, path in ours.items() if not is_listed_path(desired.adapters[n], path)}
    drift = Drift(frozenset(missing), frozenset(replaced), frozenset(refused.keys() - ours.keys()))
    if drift == before:
        return before, ()
    if drift.missing <= before.missing and drift.replaced <= before.replaced and drift.unexpected <= before.unexpected:
        return drift, ()
    fact = info(
        EventName.DRIFT_DETECTED,
        missing=shown(drift.missing),
        replaced=shown(drift.replaced),
        unexpected=shown(drift.unexpected),
    )
    return drift, (fact,)
