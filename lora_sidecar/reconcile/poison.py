"""Which adapter may have killed the server, and how it is kept from doing so for ever.

The trap guarded against is a watchdog that turns one bad adapter into a crash loop: it is loaded, the engine dies of
it, the server restarts, and it is loaded again. A load under way when the server died makes its adapter a suspect,
which the checkpoint remembers, and so does a probe by inference. Suspects are loaded last and alone; at the second
death such an adapter is quarantined. A load that broke off is only an accusation: the next good listing says whether
it was the same life of the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.config.values import format_duration
from lora_sidecar.core.events import Event, EventName, warning
from lora_sidecar.core.model import Adapter, Desired, Suspect
from lora_sidecar.core.outcomes import Failure, FailureKind, Outcome
from lora_sidecar.reconcile.state import Blocked, BlockReason, QuarantineTimer

DEATHS = 2
"""From how many deaths of the server on an adapter is quarantined."""

LONGEST = 86_400.0
"""Seconds of the longest quarantine: it doubles with every further death."""

_DOUBLINGS = 16


def accuse(desired: Desired, outcomes: Iterable[Outcome], under_way: Iterable[Adapter]) -> Desired:
    """Remember the loads that broke off, and what was under way while the server is away, until a listing decides.

    `under_way` is empty unless the server is away or was found restarted. Outcomes of another incarnation are no
    evidence: their loads were under way when the restart was noticed. A load from another path than the desired one
    accuses nobody: that path will not be loaded again. The same object is returned if nothing changed.
    """
    broken_off = [
        outcome.adapter
        for outcome in outcomes
        if outcome.incarnation == desired.incarnation.number
        and isinstance(outcome.result, Failure)
        and outcome.result.kind is FailureKind.AMBIGUOUS
    ]
    accused: dict[str, Suspect] = {}
    for adapter in (*broken_off, *under_way):
        wanted = desired.adapters.get(adapter.name)
        if wanted is None or wanted.path != adapter.path:
            continue
        known = _known(desired, adapter.name)
        if not known.accused:
            accused[adapter.name] = replace(known, accused=True)
    return replace(desired, suspects={**desired.suspects, **accused}) if accused else desired


def _known(desired: Desired, name: str) -> Suspect:
    path = desired.adapters[name].path
    known = desired.suspects.get(name)
    return known if known is not None and known.path == path else Suspect(path)


def convict(desired: Desired, *, restarted: bool) -> tuple[Desired, tuple[Event, ...]]:
    """Decide the accusations at a good listing: in another life of the server each counts as a death, else as none.

    Suspects that are no longer desired, or are desired from elsewhere, are suspects no more. The same object is
    returned if nothing changed.
    """
    if not desired.suspects:
        return desired, ()
    kept: dict[str, Suspect] = {}
    facts: list[Event] = []
    for name, suspect in desired.suspects.items():
        adapter = desired.adapters.get(name)
        if adapter is None or adapter.path != suspect.path:
            continue
        deaths = suspect.deaths + (suspect.accused and restarted)
        if deaths > suspect.deaths:
            facts.append(_told(adapter, deaths))
        if deaths:
            kept[name] = replace(suspect, deaths=deaths, accused=False)
    return (desired, ()) if kept == desired.suspects else (replace(desired, suspects=kept), tuple(facts))


def _told(adapter: Adapter, deaths: int) -> Event:
    event = EventName.RESTORE_SUSPECTED if deaths < DEATHS else EventName.RESTORE_QUARANTINED
    what = "it is loaded last and alone from now on" if deaths < DEATHS else "it is held back"
    return warning(
        event,
        adapter=adapter.name,
        path=adapter.path,
        deaths=deaths,
        reason=f"{died(deaths)}; {what}",
    )


def supervise(
    desired: Desired,
    probation: Mapping[str, QuarantineTimer],
    listed: Mapping[str, str],
    backoff: BackoffConfig,
    now: float,
) -> tuple[Desired, Mapping[str, QuarantineTimer]]:
    """Start and end quarantines, and clear a suspect that was listed for `reset_after`.

    A quarantine is measured by the loop's clock, so it begins anew when this process does. The same `desired` is
    returned if nobody is cleared.
    """
    if not desired.suspects:
        return desired, {}
    after: dict[str, QuarantineTimer] = {}
    cleared: set[str] = set()
    for name, suspect in desired.suspects.items():
        before = probation.get(name, QuarantineTimer())
        if name in listed:
            since = now if before.listed_since is None else before.listed_since
            after[name] = replace(before, listed_since=since)
            if now - since >= backoff.reset_after:
                cleared.add(name)
        elif suspect.deaths >= DEATHS and before.deaths < suspect.deaths:
            after[name] = QuarantineTimer(suspect.deaths, now + sentence_of(suspect.deaths, backoff))
        else:
            after[name] = replace(before, listed_since=None)
    if cleared:
        desired = replace(desired, suspects={n: s for n, s in desired.suspects.items() if n not in cleared})
    return desired, after


def sentence_of(deaths: int, backoff: BackoffConfig) -> float:
    """Seconds of the quarantine after so many deaths."""
    return float(min(LONGEST, backoff.quarantine * 2 ** min(max(deaths - DEATHS, 0), _DOUBLINGS)))


def quarantined(
    desired: Desired,
    probation: Mapping[str, QuarantineTimer],
    missing: Iterable[str],
    backoff: BackoffConfig,
    now: float,
) -> dict[str, Blocked]:
    """The missing adapters that are held back as suspected poison."""
    held: dict[str, Blocked] = {}
    for name in missing:
        suspect, served = desired.suspects.get(name), probation.get(name)
        if suspect is not None and served is not None and served.until > now:
            length = format_duration(sentence_of(suspect.deaths, backoff))
            reason = f"{died(suspect.deaths)}; held back for {length}"
            held[name] = Blocked(BlockReason.QUARANTINED, reason)
    return held


def died(deaths: int) -> str:
    """What a suspect is suspected of."""
    return f"the server died {_times(deaths)} while it was being loaded or probed"


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count} times"  # noqa: PLR2004 - English has two
