"""What vanished or spoilt files mean for the adapters that are listed, and for those that are missing.

Two traps are guarded against. A listed adapter whose folder is gone kills the whole server at its next request once the
engine has evicted it (vLLM, all versions to 0.33); so it is warned of, and unloaded where the config asks for that. And
a volume that is unmounted for a moment must not unload everything: only a folder that was seen before, on a device that
is still there beside at least one sibling, and that was missed twice, counts as gone for good.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from msgspec.structs import replace

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.observation import Files, Sight
from lora_sidecar.core.paths import is_listed_path
from lora_sidecar.core.text import printable, reasons
from lora_sidecar.reconcile.beat import BlockReason, ListingBeat

LOOKS = 2
"""Looks in a row by which files are gone: a folder that is exchanged is away for a moment."""

_HINT = (
    "once the engine has evicted such an adapter, the next request for it kills the server: put the files back, or "
    "unload it"
)


def decide(beat: ListingBeat) -> Mapping[str, str]:
    """Hold back what has no files, have the others unloaded where the config asks for that; returns what to warn of."""
    unloads = beat.policy.rules.on_files_gone == "unload" and beat.desired.paused is None
    if unloads:
        # Otherwise the server is asked, which answers 404, as it does where the files cannot be seen from here.
        for name, adapter in beat.missing.items():
            if _is_gone_for_good(beat.files.get(adapter.path)):
                beat.block(name, BlockReason.FILES_GONE, f"{adapter.path} is gone")
    bad = _missing_or_unreadable(beat)
    gone = {name: one.why for name, one in beat.blocked.items() if one.reason is BlockReason.FILES_GONE}
    if bad or gone:
        beat.raise_condition(ConditionType.ADAPTER_FILES_MISSING, reasons(bad | gone), _HINT)
    if bad:
        beat.settled = False
    if unloads:
        _unload_files_gone(beat)
    return bad


def _is_gone_for_good(look: Files | None) -> bool:
    return look is not None and look.sight is Sight.GONE and look.seen_before and look.looks >= LOOKS


def _missing_or_unreadable(beat: ListingBeat) -> dict[str, str]:
    """The listed adapters whose files are gone or could not be loaded again, with what is wrong."""
    bad: dict[str, str] = {}
    for name, path in beat.listed.items():
        look = beat.files.get(path)
        if look is None or look.looks < LOOKS or name not in beat.desired.adapters:
            continue
        if look.sight is Sight.GONE:
            bad[name] = f"{printable(path)} is gone"
        elif look.sight is Sight.UNREADABLE:
            bad[name] = f"{printable(path)} could not be loaded again: {look.why}"
    return bad


def _unload_files_gone(beat: ListingBeat) -> None:
    """Have the listed adapters unloaded that would kill the server for certain.

    What we unload ourselves was not unloaded by somebody: it is restored once its files are back. One that is listed
    with another path than it is desired from is left to the replacement: unloaded, it would be loaded from there at
    once, whether or not the server tells the two apart.
    """
    adapters = beat.desired.adapters
    gone = {
        name: path
        for name, path in beat.listed.items()
        if _is_gone_for_good(beat.files.get(path)) and name in adapters and is_listed_path(adapters[name], path)
    }
    wiped = _wiped_folders(gone, beat.files)
    unload = {name: path for name, path in sorted(gone.items()) if _parent(path) not in wiped}
    reason = "its files are gone; policy.on_files_gone is unload"
    for name, path in unload.items():
        beat.unload[name] = reason
        beat.warn(EventName.ADAPTER_DEFUSED, repeats=name, adapter=name, path=path, reason=reason)
    if unload:
        beat.desired = replace(beat.desired, listed=beat.desired.listed - unload.keys())


def _wiped_folders(gone: Mapping[str, str], files: Mapping[str, Files]) -> set[str]:
    """The folders from which several adapters vanished while no other is whole: an unmounted volume looks so."""
    if not gone:
        return set()
    together: dict[str, int] = {}
    for path in gone.values():
        together[_parent(path)] = together.get(_parent(path), 0) + 1
    alive = {_parent(path) for path, look in files.items() if look.sight is Sight.PRESENT}
    return {parent for parent, count in together.items() if count > 1 and parent not in alive}


def _parent(path: str) -> str:
    return posixpath.dirname(path.rstrip("/"))
