"""How and when a request through the control port is answered, once what it asks for is remembered.

The trap guarded against is an answer that a script written for the engine cannot read, or that calls the server's fault
the request's: words and shapes are the engine's own (vLLM 0.32.0, seen on a real server), and what may be different
tomorrow is a 202 that says why.
"""

from __future__ import annotations

from typing import assert_never

from lora_sidecar.control.requests import Answer, Load, Pause, Request, Resume, Unload, already_loaded, is_it, listed_in
from lora_sidecar.core.events import Event, EventName, warning
from lora_sidecar.core.model import Desired
from lora_sidecar.core.observation import Observation, Observed
from lora_sidecar.core.outcomes import Failure, FailureKind, Outcome, Unloaded
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.reconcile.state import Plan, State


def refusal(
    intent: Request, seen: Observation, outcomes: tuple[Outcome, ...], unloaded: tuple[Unloaded, ...]
) -> Failure | None:
    """The failure for which the engine is taken to have refused an intent for what it asks, None if it did not.

    What is the server's fault (away, asleep, its flags, its key) refuses nothing: it may be different tomorrow.
    """
    match intent:
        case Load():
            if intent.name in listed_in(seen):
                return None
            results = [o.result for o in outcomes if o.adapter.name == intent.name and o.adapter.path == intent.path]
        case Unload():
            results = [u.result for u in unloaded if u.name == intent.name]
        case Pause() | Resume():
            return None
        case _:
            assert_never(intent)
    return next((r for r in results if isinstance(r, Failure) and _of_the_request(r.kind)), None)


def _of_the_request(kind: FailureKind) -> bool:
    match kind:
        case FailureKind.FILES | FailureKind.ADAPTER | FailureKind.UNCLASSIFIED:
            return True
        case (
            FailureKind.SERVER_SETUP
            | FailureKind.UNAUTHORIZED
            | FailureKind.LOCAL
            | FailureKind.ENGINE
            | FailureKind.AMBIGUOUS
            | FailureKind.NOT_LISTED
        ):
            return False
        case _:
            assert_never(kind)


def refused(intent: Request, failure: Failure) -> tuple[Answer, tuple[Event, ...]]:
    """The answer to a refusal, in the engine's own words, and the fact of it."""
    status = failure.status
    if status is None:
        # Refused before the engine was asked, with the status that vLLM (0.18 and later) would have given it.
        status = 404 if "No adapter found" in failure.message else 500
    kind = {400: "BadRequestError", 404: "NotFoundError"}.get(status, "InternalServerError")
    name = intent.name if isinstance(intent, Load | Unload) else ""
    fact = warning(EventName.ADAPTER_REFUSED, adapter=name, status=status, message=failure.message)
    return Answer(status, failure.message, kind, failure.answer), (fact,)


def progress(intent: Request, plan: Plan, seen: Observation, now: float, *, fresh: bool) -> Answer | None:
    """The answer to an intent that is remembered, None while there is more to come.

    `fresh` is whether it was received in this very heartbeat, so that nothing can have come of it yet.
    """
    match intent:
        case Load():
            return _progress_load(intent, plan, seen, now, fresh=fresh)
        case Unload():
            return _progress_unload(intent, plan, seen)
        case Pause() | Resume():
            return None
        case _:
            assert_never(intent)


def _progress_load(intent: Load, plan: Plan, seen: Observation, now: float, *, fresh: bool) -> Answer | None:
    listed = listed_in(seen)
    success = Answer(200, f"Success: LoRA adapter '{intent.name}' added successfully.")
    if intent.name in listed:
        return success if is_it(plan.desired, intent, listed[intent.name]) else already_loaded(intent.name)
    if isinstance(seen, Observed) and intent.name in plan.state.capacity.evicted:
        # The server has it, and made room in its listing.
        return success
    if intent.name not in plan.desired.adapters:
        return Answer(409, f"The lora adapter '{intent.name}' was unloaded by another request.", "Conflict")
    why = _waits_for(plan.desired, plan.state, now) or _blocked(intent.name, plan.state)
    if not why and not fresh:
        why = _held_up(intent.name, plan.state)
    return _will(f"LoRA adapter '{intent.name}'", "loaded", why) if why else None


def _progress_unload(intent: Unload, plan: Plan, seen: Observation) -> Answer | None:
    withdrawn = plan.desired.withdrawn.get(intent.name)
    if withdrawn is None or not withdrawn.pending:
        if intent.name in plan.desired.adapters and intent.name not in listed_in(seen):
            return Answer(409, f"The lora adapter '{intent.name}' was loaded by another request.", "Conflict")
        return Answer(200, f"Success: LoRA adapter '{intent.name}' removed successfully.")
    why = _absent(plan.desired, plan.state)
    attempt = plan.state.unloads.get(intent.name)
    if not why and attempt is not None and attempt.failure is not None:
        why = attempt.failure.message
    return _will(f"LoRA adapter '{intent.name}'", "unloaded", why) if why else None


def _waits_for(desired: Desired, state: State, now: float) -> str:
    """Why nothing is loaded now, whatever it is; empty where it is."""
    why = _absent(desired, state)
    if why:
        return why
    if state.loads.backoff is not None and state.loads.backoff.until > now:
        return state.loads.backoff.failure.message
    if state.last is not None and state.last.runtime_loading is False:
        return "the server has no route to load adapters at run time"
    return ""


def _absent(desired: Desired, state: State) -> str:
    if desired.paused is not None:
        return f"loads and unloads are paused{desired.paused.reason and ': ' + desired.paused.reason}"
    if state.server.phase is not Phase.UP:
        detail = state.server.detail
        return f"the server is {state.server.phase.value}{detail and ' (' + detail + ')'}"
    return ""


def _blocked(name: str, state: State) -> str:
    """Why this adapter is not loaded although nothing is wrong with the server, empty where that is not so."""
    blocked = state.blocked.get(name)
    return "" if blocked is None else blocked.why


def _held_up(name: str, state: State) -> str:
    """What came of the first try, where that was a fault of the server."""
    attempt = state.loads.attempts.get(name)
    if attempt is not None and attempt.failures and attempt.failure is not None:
        return attempt.failure.message
    return "" if state.loads.deferred is None else state.loads.deferred.detail


def _will(what: str, done: str, why: str) -> Answer:
    return Answer(202, f"Accepted: {what} is remembered and will be {done}; not yet: {why}.")


def under_way(intent: Request) -> Answer:
    """The answer to an intent that is remembered and takes longer than anybody waits."""
    name = intent.name if isinstance(intent, Load | Unload) else ""
    done = "loaded" if isinstance(intent, Load) else "unloaded"
    return _will(f"LoRA adapter '{name}'", done, "it is still under way")
