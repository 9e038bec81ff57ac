"""What changed or vanished files mean for what is loaded, waiting or suspected. Pure: looks in, decisions out.

Two traps are guarded against. A listed adapter whose folder is gone kills the whole server at its next request once the
engine has evicted it (vLLM, all versions to 0.33); so it is warned of, and unloaded where the config asks for that. And
a volume that is unmounted for a moment must not unload everything: only a folder that was seen before, on a device that
is still there beside at least one sibling, and that was missed twice, counts as gone for good.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.model import Adapter, Desired
from lora_sidecar.core.observation import Files, Sight
from lora_sidecar.core.text import printable
from lora_sidecar.reconcile.backoff import doubled
from lora_sidecar.reconcile.state import Attempt

LOOKS = 2
"""Looks in a row by which files are gone: a folder that is exchanged is away for a moment."""


def pardon_changed(
    attempts: Mapping[str, Attempt],
    desired: Mapping[str, Adapter],
    files: Mapping[str, Files],
    backoff: BackoffConfig,
) -> Mapping[str, Attempt]:
    """Let adapters whose files are others than those that failed be tried again.

    The plain backoff is kept: files that are touched all the time must not become a load at every heartbeat.
    """
    pardoned: dict[str, Attempt] = {}
    for name, attempt in attempts.items():
        adapter = desired.get(name)
        look = files.get(adapter.path) if adapter is not None else None
        if (
            attempt.failures
            and look is not None
            and look.sight is Sight.PRESENT
            and look.fingerprint != attempt.looked.files
        ):
            sooner = attempt.ended_at + doubled(attempt.failures, backoff)
            if sooner < attempt.not_before:
                pardoned[name] = replace(attempt, not_before=sooner)
    return {**attempts, **pardoned} if pardoned else attempts


def clear_changed(desired: Desired, files: Mapping[str, Files]) -> Desired:
    """Clear suspects whose files are others than those that were loaded; note the files of those not yet seen."""
    suspects = dict(desired.suspects)
    for name, suspect in desired.suspects.items():
        look = files.get(suspect.path)
        if look is None or look.sight is not Sight.PRESENT or look.fingerprint == suspect.files:
            continue
        if suspect.files:
            del suspects[name]
        else:
            suspects[name] = replace(suspect, files=look.fingerprint)
    return desired if suspects == desired.suspects else replace(desired, suspects=suspects)


def missing_files(listed: Mapping[str, str], files: Mapping[str, Files]) -> dict[str, str]:
    """The listed adapters whose files are gone or spoilt, with what happens because of it."""
    bad: dict[str, str] = {}
    for name, path in listed.items():
        look = files.get(path)
        if look is None or look.looks < LOOKS:
            continue
        if look.sight is Sight.GONE:
            bad[name] = f"{printable(path)} is gone"
        elif look.sight is Sight.SPOILT:
            bad[name] = f"{printable(path)} could not be loaded again: {look.why}"
    return bad


def to_unload(listed: Mapping[str, str], files: Mapping[str, Files]) -> dict[str, str]:
    """The listed adapters that are bombs for certain, name to path."""
    gone = {
        name: path
        for name, path in listed.items()
        if (look := files.get(path)) is not None
        and look.sight is Sight.GONE
        and look.seen_before
        and look.looks >= LOOKS
    }
    together: dict[str, list[str]] = {}
    for name, path in gone.items():
        together.setdefault(_parent(path), []).append(name)
    alive = {_parent(path) for path, look in files.items() if look.sight is Sight.PRESENT}
    wiped = {parent for parent, names in together.items() if len(names) > 1 and parent not in alive}
    return {name: path for name, path in gone.items() if _parent(path) not in wiped}


def gone_before_load(missing: Mapping[str, Adapter], files: Mapping[str, Files]) -> dict[str, str]:
    """The missing adapters that cannot be loaded because their files are gone."""
    return {
        name: f"{adapter.path} is gone"
        for name, adapter in missing.items()
        if (look := files.get(adapter.path)) is not None
        and look.sight is Sight.GONE
        and look.seen_before
        and look.looks >= LOOKS
    }


def _parent(path: str) -> str:
    return posixpath.dirname(path.rstrip("/"))
