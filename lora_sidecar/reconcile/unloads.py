"""What the server has yet to be told to unload: what came of telling it, and when to tell it again.

Three traps are guarded against. An unload that came too early: a load of the same name may still be under way and land
after it; so the server is told even where the adapter is not listed, since it answers after a load of that name. An
unload that fights: once the server has said that it is done, an adapter that is listed again was loaded by somebody,
and stays. And our own unload taken for somebody else's: an adapter that is wanted again meanwhile would be forgotten.
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Adapter, Withdrawn
from lora_sidecar.core.outcomes import Accepted, Failure, Unloaded
from lora_sidecar.reconcile.backoff import UNTRIED, Attempt, Attempts
from lora_sidecar.reconcile.beat import Beat, ListingBeat


def record_outcomes(state: Attempts, beat: Beat) -> Attempts:
    """Take what came of unloads into account; those of another incarnation say nothing any more."""
    attempts = dict(state)
    for one in beat.unloads:
        if not isinstance(one, Unloaded) or one.incarnation != beat.desired.incarnation.number:
            continue
        match one.result:
            case Accepted():
                # If it is listed all the same, it is not to be told so at every heartbeat.
                again = beat.now + beat.policy.backoff.max
                attempts[one.name] = Attempt(not_before=again, ended_at=one.at, accepted=True)
            case Failure():
                before = Attempt(failures=attempts.get(one.name, UNTRIED).failures, ended_at=one.at)
                attempts[one.name] = before.failed(one.result, beat.policy.backoff, beat.clock)
                beat.warn(
                    EventName.UNLOAD_FAILED,
                    repeats=f"{one.name} {one.result.kind}",
                    adapter=one.name,
                    kind=one.result.kind.value,
                    status=one.result.status,
                    message=one.result.message,
                    consecutive=attempts[one.name].failures,
                )
            case _:
                assert_never(one.result)
    return attempts


def learn(state: Attempts, beat: ListingBeat) -> Attempts:
    """Decide by the listing what became of the withdrawn adapters, and take back what somebody loaded again."""
    state = {} if beat.restarted else state
    withdrawn: dict[str, Withdrawn] = {}
    back: dict[str, Adapter] = {}
    for name, one in beat.desired.withdrawn.items():
        if one.pending:
            if not _is_unloaded(name, state, beat):
                withdrawn[name] = one
                continue
            beat.say(EventName.ADAPTER_UNLOADED, adapter=name)
        if one.declared is not None and name not in beat.listed:
            withdrawn[name] = replace(one, pending=False)
        elif one.declared is not None:
            back[name] = one.declared
            beat.say(EventName.ADAPTER_REINSTATED, adapter=name, reason="loaded again by somebody else")
    if withdrawn != beat.desired.withdrawn:
        beat.desired = replace(beat.desired, adapters={**beat.desired.adapters, **back}, withdrawn=withdrawn)
    return state


def _is_unloaded(name: str, state: Attempts, beat: ListingBeat) -> bool:
    attempt = state.get(name, UNTRIED)
    told = attempt.accepted and attempt.predates(beat.at)
    return told or (beat.restarted and name not in beat.listed)


def take_back(beat: ListingBeat) -> None:
    """Take back that adapters were seen listed which this program has unloaded since: nobody else did.

    Where one of them is desired, or is desired again, its absence is a loss.
    """
    number = beat.desired.incarnation.number
    ours = {one.name for one in beat.unloads if one.incarnation == number and isinstance(one.result, Accepted)}
    if ours & beat.desired.listed:
        beat.desired = replace(beat.desired, listed=beat.desired.listed - ours)


def decide(state: Attempts, beat: ListingBeat) -> tuple[Attempts, tuple[str, ...]]:
    """The attempts that still count, and the names to be unloaded now: the withdrawn, and what other rules ask for."""
    pending = [name for name, one in sorted(beat.desired.withdrawn.items()) if one.pending]
    wanted = [*pending, *sorted(beat.unload)]
    if wanted:
        beat.settled = False
    kept = {name: state[name] for name in wanted if name in state}
    if beat.desired.paused is not None:
        return kept, ()
    due: list[str] = []
    for name in wanted:
        attempt = state.get(name, UNTRIED)
        if not attempt.predates(beat.at):
            continue
        if attempt.not_before > beat.now:
            beat.wake(attempt.not_before)
        else:
            due.append(name)
    return kept, tuple(due)
