"""What keeps a restore from doing harm, step by step of a heartbeat: suspects, limits, vanished files, and the order.

The trap guarded against is a rule that is forgotten in one of the places where it counts. Each step takes what is
desired and the work, and returns both; `reconcile` takes the steps in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from lora_sidecar.config.settings import BackoffConfig
from lora_sidecar.core.events import Event, EventName, warning
from lora_sidecar.core.model import Adapter, Desired
from lora_sidecar.core.observation import BaseModel, Files, Observed
from lora_sidecar.core.text import printable
from lora_sidecar.reconcile.capacity import crowded, exchanged, first_tier, too_many
from lora_sidecar.reconcile.desired import is_listed_path, same_base
from lora_sidecar.reconcile.missing_files import clear_changed, gone_before_load, missing_files, to_unload
from lora_sidecar.reconcile.pacing import born, flapping, paced
from lora_sidecar.reconcile.poison import convict, quarantined, supervise
from lora_sidecar.reconcile.state import Blocked, BlockReason, CapacityEstimate, State


def enter_life(work: State, now: float, *, restarted: bool, assumed: bool) -> State:
    """Forget what counted for the former life of the server where another one has begun.

    A restart that is only `assumed`, and has lost nothing, is no sign of a server that keeps dying.
    """
    lives = born(work.lives, now, restarted=restarted and work.last is not None and not assumed)
    if not restarted:
        return replace(work, lives=lives)
    work = replace(work, missed={}, attempts={}, hold=None, withheld=None, restoring=False, unloads={})
    work = replace(work, evicted=frozenset(), swaps={}, prunes={})
    return replace(work, lives=lives, load_ended=float("-inf"), crowd=CapacityEstimate())


def judge_suspects(
    desired: Desired,
    work: State,
    listed: Mapping[str, str],
    files: Mapping[str, Files],
    backoff: BackoffConfig,
    now: float,
    *,
    restarted: bool,
) -> tuple[Desired, State, tuple[Event, ...]]:
    """Decide the accusations, and begin and end quarantines."""
    desired, facts = convict(desired, restarted=restarted)
    desired = clear_changed(desired, files)
    desired, probation = supervise(desired, work.probation, listed, backoff, now)
    return desired, replace(work, probation=probation), facts


def notice_limit(desired: Desired, work: State, held: Mapping[str, str], now: float, *, restarted: bool) -> State:
    """See whether loads pushed others out of the listing; `held` are the listed names, and those known to be evicted.

    Of an engine that tells how many it lists, `eviction` says what was pushed out; this is for one that does not.
    """
    before = () if work.last is None or restarted else [card.name for card in work.last.adapters]
    # What we unloaded ourselves, to replace or to defuse it, is not counted as listed any more.
    exchange = exchanged(before, held, work.attempts, desired.listed & desired.adapters.keys())
    return replace(work, crowd=crowded(work.crowd, exchange, len(held), now))


def hold_back(
    desired: Desired,
    work: State,
    missing: Mapping[str, Adapter],
    seen: Observed,
    files: Mapping[str, Files],
    backoff: BackoffConfig,
    now: float,
    *,
    unload_gone: bool,
) -> State:
    """Say which of the missing adapters must not be loaded, and which listed ones have lost their files."""
    listed = {card.name: card.path for card in seen.adapters}
    barred = quarantined(desired, work.probation, missing, backoff, now)
    if unload_gone:
        # Otherwise the server is asked, which answers 404, as it does where the files cannot be seen from here.
        barred |= {n: Blocked(BlockReason.FILES_GONE, why) for n, why in gone_before_load(missing, files).items()}
    barred |= _foreign(missing, seen.bases)
    room = [adapter for name, adapter in missing.items() if name not in barred]
    barred |= too_many(work.crowd, room, len(listed), len(desired.adapters))
    spoilt = missing_files({name: path for name, path in listed.items() if name in desired.adapters}, files)
    return replace(work, barred=barred, spoilt=spoilt, files=files)


def _foreign(missing: Mapping[str, Adapter], bases: tuple[BaseModel, ...]) -> dict[str, Blocked]:
    """The missing adapters that do not belong beside the served base models."""
    ids = {base.id for base in bases}
    found: dict[str, Blocked] = {}
    for name, adapter in missing.items():
        if name in ids:
            found[name] = Blocked(BlockReason.NAME_TAKEN, "its name is that of a served base model")
        elif not same_base(adapter, bases):
            reason = f"it was learned on another base model, {printable(adapter.base or '')}"
            found[name] = Blocked(BlockReason.BASE_MODEL, reason)
    return found


def defuse(
    desired: Desired, listed: Mapping[str, str], files: Mapping[str, Files]
) -> tuple[Desired, tuple[str, ...], tuple[Event, ...]]:
    """The names to be unloaded because their files are gone.

    What we unload ourselves was not unloaded by somebody: it is restored once its files are back. One that is listed
    with another path than it is desired from is left to `replacement`: unloaded, it would be loaded from there at once,
    whether or not the server tells the two apart.
    """
    ours = {
        n: path for n, path in listed.items() if n in desired.adapters and is_listed_path(desired.adapters[n], path)
    }
    bombs = to_unload(ours, files)
    if not bombs:
        return desired, (), ()
    reason = "its files are gone; policy.on_files_gone is unload"
    facts = tuple(
        warning(EventName.ADAPTER_DEFUSED, repeats=name, adapter=name, path=path, reason=reason)
        for name, path in sorted(bombs.items())
    )
    return replace(desired, listed=desired.listed - bombs.keys()), tuple(sorted(bombs)), facts


def in_turn(
    due: Sequence[Adapter], desired: Desired, work: State, capacity: int | None, interval: float, now: float
) -> tuple[tuple[Adapter, ...], float | None]:
    """What of the due loads may be sent now, and when something more may.

    What does not fit goes first among those above suspicion, and then among the suspects, even one at a time.
    """
    innocent = tuple(adapter for adapter in due if adapter.name not in desired.suspects)
    first = first_tier(innocent or due, desired.adapters, capacity)
    careful = work.load_ended + interval
    return paced(first, desired.suspects, slowly=flapping(work.lives), not_before=careful, now=now)
