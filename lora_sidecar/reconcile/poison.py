"""Which adapter may have killed the server, and how it is kept from doing so for ever.

The trap guarded against is a watchdog that turns one bad adapter into a crash loop: it is loaded, the engine dies of
it, the server restarts, and it is loaded again. A load under way when the server died makes its adapter a suspect,
which the checkpoint remembers, and so does a probe by inference. Suspects are loaded last and alone; at the second
death such an adapter is quarantined. A load that broke off is only an accusation: the next good listing says whether
it was the same life of the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.config.values import format_duration
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Adapter, Suspect
from lora_sidecar.core.observation import Sight
from lora_sidecar.core.outcomes import Failure, FailureKind
from lora_sidecar.reconcile.beat import Beat, BlockReason, ListingBeat

DEATHS = 2
"""From how many deaths of the server on an adapter is quarantined."""

LONGEST = 86_400.0
"""Seconds of the longest quarantine: it doubles with every further death."""

_DOUBLINGS = 16


class QuarantineTimer(Struct, frozen=True):
    """What this process knows of one suspect: quarantined for how many deaths, `until` when, and listed since when."""

    deaths: int = 0
    until: float = 0.0
    listed_since: float | None = None


Timers = Mapping[str, QuarantineTimer]
"""By the name of the suspect. Measured by the loop's clock, so a quarantine begins anew when this process does."""


def mark_in_flight(beat: Beat, in_flight: Iterable[Adapter]) -> None:
    """Remember the loads that broke off, and what was under way while the server is away, until a listing decides.

    `in_flight` is empty unless the server is away or was found restarted. Outcomes of another incarnation are no
    evidence: their loads were under way when the restart was noticed. A load from another path than the desired one
    accuses nobody: that path will not be loaded again.
    """
    broken_off = [
        outcome.adapter
        for outcome in beat.outcomes
        if outcome.incarnation == beat.desired.incarnation.number
        and isinstance(outcome.result, Failure)
        and outcome.result.kind is FailureKind.AMBIGUOUS
    ]
    accused: dict[str, Suspect] = {}
    for adapter in (*broken_off, *in_flight):
        wanted = beat.desired.adapters.get(adapter.name)
        if wanted is None or wanted.path != adapter.path:
            continue
        known = beat.desired.suspects.get(adapter.name)
        known = known if known is not None and known.path == wanted.path else Suspect(wanted.path)
        if not known.accused:
            accused[adapter.name] = replace(known, accused=True)
    if accused:
        beat.desired = replace(beat.desired, suspects={**beat.desired.suspects, **accused})


def learn(timers: Timers, beat: ListingBeat) -> Timers:
    """Decide the accusations by this listing; begin quarantines, and end those that are over or without a cause."""
    if not beat.desired.suspects:
        return {}
    suspects = _without_changed_files(_record_deaths(beat), beat)
    timers = {name: _advance(timers.get(name, QuarantineTimer()), name, one, beat) for name, one in suspects.items()}
    suspects = {name: one for name, one in suspects.items() if not _is_cleared(timers[name], beat)}
    if suspects != beat.desired.suspects:
        beat.desired = replace(beat.desired, suspects=suspects)
    if timers:
        beat.settled = False
    return timers


def _record_deaths(beat: ListingBeat) -> dict[str, Suspect]:
    """In another life of the server each accusation counts as a death, else as none.

    Suspects that are no longer desired, or are desired from elsewhere, are suspects no more.
    """
    kept: dict[str, Suspect] = {}
    for name, suspect in beat.desired.suspects.items():
        adapter = beat.desired.adapters.get(name)
        if adapter is None or adapter.path != suspect.path:
            continue
        deaths = suspect.deaths + (suspect.accused and beat.restarted)
        if deaths > suspect.deaths:
            _tell(adapter, deaths, beat)
        if deaths:
            kept[name] = replace(suspect, deaths=deaths, accused=False)
    return kept


def _tell(adapter: Adapter, deaths: int, beat: ListingBeat) -> None:
    event = EventName.RESTORE_SUSPECTED if deaths < DEATHS else EventName.RESTORE_QUARANTINED
    what = "it is loaded last and alone from now on" if deaths < DEATHS else "it is held back"
    beat.warn(event, adapter=adapter.name, path=adapter.path, deaths=deaths, reason=f"{died(deaths)}; {what}")


def _without_changed_files(suspects: Mapping[str, Suspect], beat: ListingBeat) -> dict[str, Suspect]:
    """Clear suspects whose files are others than those that were loaded; note the files of those not yet seen."""
    kept = dict(suspects)
    for name, suspect in suspects.items():
        look = beat.files.get(suspect.path)
        if look is None or look.sight is not Sight.PRESENT or look.fingerprint == suspect.files:
            continue
        if suspect.files:
            del kept[name]
        else:
            kept[name] = replace(suspect, files=look.fingerprint)
    return kept


def _advance(timer: QuarantineTimer, name: str, suspect: Suspect, beat: ListingBeat) -> QuarantineTimer:
    if name in beat.listed:
        return replace(timer, listed_since=beat.now if timer.listed_since is None else timer.listed_since)
    if suspect.deaths >= DEATHS and timer.deaths < suspect.deaths:
        return QuarantineTimer(suspect.deaths, beat.now + quarantine_of(suspect.deaths, beat.policy.backoff))
    return replace(timer, listed_since=None)


def _is_cleared(timer: QuarantineTimer, beat: ListingBeat) -> bool:
    since = timer.listed_since
    return since is not None and beat.now - since >= beat.policy.backoff.reset_after


def decide(timers: Timers, beat: ListingBeat) -> None:
    """Hold back who is quarantined; have the other suspects loaded last and alone."""
    beat.alone |= beat.desired.suspects.keys()
    for name in beat.missing:
        suspect, timer = beat.desired.suspects.get(name), timers.get(name)
        if suspect is not None and timer is not None and timer.until > beat.now:
            length = format_duration(quarantine_of(suspect.deaths, beat.policy.backoff))
            beat.block(name, BlockReason.QUARANTINED, f"{died(suspect.deaths)}; held back for {length}")
    hint = "remove or mend the adapter; changed files or another path end the quarantine"
    beat.raise_blocked(ConditionType.ADAPTER_QUARANTINED, BlockReason.QUARANTINED, hint)


def quarantine_of(deaths: int, backoff: BackoffConfig) -> float:
    """Seconds of the quarantine after so many deaths."""
    return float(min(LONGEST, backoff.quarantine * 2 ** min(max(deaths - DEATHS, 0), _DOUBLINGS)))


def died(deaths: int) -> str:
    """What a suspect is suspected of."""
    return f"the server died {_times(deaths)} while it was being loaded or probed"


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count} times"  # noqa: PLR2004 - English has two
