"""What is desired and absent from the listing: unloaded on purpose, or lost.

The trap guarded against is forgetting what a restart lost. Forgetting is not symmetrical to adopting: an adapter is
adopted at first sight, and forgotten only when it was listed in this very incarnation of the server and then missed
twice, so that a restart never looks like an unload.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec.structs import replace

from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Origin
from lora_sidecar.reconcile.beat import Evidence, ListingBeat

_SIGHTINGS = 2
"""Listings in a row that an adapter must be missing from before that is taken for deliberate."""


def remember_listed(beat: ListingBeat) -> None:
    """Note which names of ours were seen listed in this incarnation: only those can have been unloaded on purpose."""
    desired = beat.desired
    tracked = desired.adapters.keys() | desired.orphaned.keys()
    seen = (desired.listed | beat.listed.keys()) & tracked
    if seen != desired.listed:
        beat.desired = replace(desired, listed=frozenset(seen))


def learn(missed: Mapping[str, int], beat: ListingBeat) -> Mapping[str, int]:
    """Tell the unloaded from the lost; returns how often in a row each that waits for another listing was missed.

    Never listed in this incarnation: lost, to be restored. Listed and now missed once: wait for the next listing.
    Missed twice: somebody unloaded it; it is forgotten, or restored where the config declares it or asks for that.
    What the server evicted counts as listed here.
    """
    missed = {} if beat.restarted else missed
    desired = beat.desired
    absent = {name: a for name, a in desired.adapters.items() if name not in beat.held}
    counts = {name: missed.get(name, 0) + 1 for name in absent if name in desired.listed}
    unloaded = {name for name, times in counts.items() if times >= _SIGHTINGS}
    forgets = beat.policy.rules.on_external_unload == "forget"
    forgotten = {name for name in unloaded if forgets and absent[name].origin is not Origin.DECLARED}
    _forget(forgotten, beat)
    if unloaded:
        beat.desired = replace(beat.desired, listed=beat.desired.listed - unloaded)
    waiting = {name: times for name, times in counts.items() if name not in unloaded}
    beat.missing = {name: a for name, a in absent.items() if name not in forgotten and name not in waiting}
    if waiting or beat.missing:
        beat.settled = False
    return waiting


def _forget(names: Collection[str], beat: ListingBeat) -> None:
    if not names:
        return
    evidence = beat.incarnation.evidence
    tell = beat.warn if evidence is Evidence.NONE else beat.say
    for name in sorted(names):
        tell(
            EventName.ADAPTER_FORGOTTEN,
            adapter=name,
            path=beat.desired.adapters[name].path,
            reason="unloaded by somebody else; it will not be restored",
            evidence=evidence.value,
        )
    left = {name: a for name, a in beat.desired.adapters.items() if name not in names}
    beat.desired = replace(beat.desired, adapters=left)
