"""What a request through the control port changes, when it is carried out, and how it is answered.

Two traps are guarded against. An answer that promises what is not remembered, or remembers what was answered with an
error: so the rule is one for all. 200 and 202 mean remembered, 4xx and 5xx mean that nothing was changed. And an answer
that a script written for the engine cannot read: so words and shapes are the engine's own (vLLM 0.32.0, seen on a real
server).

Pure: desired and one listing in, desired and an answer out. Durability is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar, assert_never

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.desired import is_listed_path, same_path
from lora_sidecar.events import Event, Fact, info, warning
from lora_sidecar.model import (
    Adapter,
    Desired,
    Failure,
    FailureKind,
    Observation,
    Observed,
    Origin,
    Outcome,
    Paused,
    Unloaded,
    Withdrawn,
)
from lora_sidecar.work import Phase, Plan, Work

T = TypeVar("T")

MEMORY_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of names and paths that requests may bring desired to: a checkpoint has to stay well below its own limit."""


class Load(Struct, frozen=True):
    """Have an adapter loaded, and loaded again after every restart."""

    name: str
    path: str
    is_3d_lora_weight: bool = False


class Unload(Struct, frozen=True):
    """Have an adapter unloaded, and not loaded again."""

    name: str


class Pause(Struct, frozen=True):
    """Load and unload nothing until `Resume`; `reason` is in the operator's words."""

    reason: str = ""


class Resume(Struct, frozen=True):
    """End a pause."""


Intent = Load | Unload | Pause | Resume


class Answer(Struct, frozen=True):
    """An answer in HTTP's terms: `message` is for a person, `kind` the engine's word for the error, empty if none.

    `body` is the engine's own answer as it came, where there is one.
    """

    status: int
    message: str
    kind: str = ""
    body: bytes = b""


class Received(Struct, frozen=True):
    """What an intent came to: `answer` where that is known at once, else it is decided by later heartbeats.

    `before` is what was desired, to go back to where the engine refuses.
    """

    desired: Desired
    before: Desired
    answer: Answer | None = None
    facts: tuple[Fact, ...] = ()


def receive(desired: Desired, intent: Intent, seen: Observation, phase: Phase) -> Received | None:
    """Take an intent into what is desired; None where it has to wait until an unload of the same name is over.

    `seen` must be asked for after the intent came, `phase` is that of the server with `seen` taken into account.
    """
    match intent:
        case Load():
            pending = intent.name in desired.withdrawn and desired.withdrawn[intent.name].pending
            if pending and phase is Phase.UP and desired.paused is None:
                return None
            return _receive_load(desired, intent, seen)
        case Unload():
            return _receive_unload(desired, intent, seen)
        case Pause():
            after = replace(desired, paused=Paused(intent.reason))
            facts = () if after == desired else (info(Event.CONTROL_PAUSED, reason=intent.reason),)
            return Received(desired if after == desired else after, desired, Answer(200, "paused"), facts)
        case Resume():
            if desired.paused is None:
                return Received(desired, desired, Answer(200, "not paused"))
            after = replace(desired, paused=None)
            return Received(after, desired, Answer(200, "resumed"), (info(Event.CONTROL_RESUMED),))
        case _:
            assert_never(intent)


def _receive_load(desired: Desired, intent: Load, seen: Observation) -> Received:
    declared = _declared(desired, intent.name)
    if declared is not None and not same_path(declared.path, intent.path):
        sentence = (
            f"The config declares the lora adapter '{intent.name}' with the path '{declared.path}':"
            " change it there, or use another name."
        )
        return Received(desired, desired, Answer(400, sentence, "InvalidUserInput"))
    listed = _listed(seen)
    answer: Answer | None = None
    if isinstance(seen, Observed) and any(base.id == intent.name for base in seen.bases):
        sentence = f"The lora adapter '{intent.name}' conflicts with a served base model."
        return Received(desired, desired, Answer(400, sentence, "InvalidUserInput"))
    if intent.name in listed:
        answer = already_loaded(intent.name)
        if not _is_it(desired, intent, listed[intent.name]):
            return Received(desired, desired, answer)
    base = seen.bases[0].root if isinstance(seen, Observed) and seen.bases else None
    after, facts = request(desired, intent, base)
    if _size(after) > max(MEMORY_LIMIT, _size(desired)):
        sentence = f"No more adapters can be remembered: their names and paths have more than {MEMORY_LIMIT} bytes."
        return Received(desired, desired, Answer(400, sentence, "InvalidUserInput"))
    return Received(after, desired, answer, facts)


def request(desired: Desired, intent: Load, base: str | None) -> tuple[Desired, tuple[Fact, ...]]:
    """Add what is asked for to what is desired, and take back that it was withdrawn.

    `base` is the root of the base model that is served, None if unknown. A declared adapter stays declared, as its
    config has it. What was seen of the name in this incarnation counts no more: from now on its absence is a loss.
    """
    declared = _declared(desired, intent.name)
    known = desired.adapters.get(intent.name)
    wanted = declared or Adapter(
        name=intent.name,
        path=intent.path,
        origin=Origin.REQUESTED,
        is_3d_lora_weight=intent.is_3d_lora_weight,
        base=base,
        listed_as=known.listed_as if known is not None and known.path == intent.path else None,
    )
    if desired.adapters.get(intent.name) == wanted and intent.name not in desired.released:
        return desired, ()
    after = replace(
        desired,
        adapters={**desired.adapters, intent.name: wanted},
        listed=desired.listed - {intent.name},
        released=_without(desired.released, intent.name),
        withdrawn=_without(desired.withdrawn, intent.name),
    )
    return after, (info(Event.ADAPTER_REQUESTED, adapter=wanted.name, path=wanted.path, origin=wanted.origin.value),)


def _receive_unload(desired: Desired, intent: Unload, seen: Observation) -> Received:
    known = intent.name in desired.adapters or intent.name in _listed(seen)
    pending = intent.name in desired.withdrawn and desired.withdrawn[intent.name].pending
    if isinstance(seen, Observed) and not known and not pending:
        sentence = f"The lora adapter '{intent.name}' cannot be found."
        return Received(desired, desired, Answer(404, sentence, "NotFoundError"))
    after, facts = withdraw(desired, intent.name)
    if _size(after) > max(MEMORY_LIMIT, _size(desired)):
        sentence = f"No more can be remembered: names and paths have more than {MEMORY_LIMIT} bytes."
        return Received(desired, desired, Answer(400, sentence, "InvalidUserInput"))
    return Received(after, desired, facts=facts)


def withdraw(desired: Desired, name: str) -> tuple[Desired, tuple[Fact, ...]]:
    """Drop an adapter from what is desired, and remember that the server is to unload it.

    A declared one stays withdrawn until it is loaded again by request or by hand, or its config entry changes.
    """
    withdrawn = Withdrawn(_declared(desired, name))
    if desired.withdrawn.get(name) == withdrawn:
        return desired, ()
    known = desired.adapters.get(name)
    after = replace(
        desired,
        adapters=_without(desired.adapters, name),
        listed=desired.listed - {name},
        released=_without(desired.released, name),
        withdrawn={**desired.withdrawn, name: withdrawn},
    )
    return after, (info(Event.ADAPTER_WITHDRAWN, adapter=name, path=None if known is None else known.path),)


def retract(desired: Desired, intent: Load | Unload, before: Desired) -> Desired:
    """Undo what an intent made of its name, as far as that still stands; `before` is what was desired without it.

    What the config or another request made of the name meanwhile is left alone.
    """
    name = intent.name
    now, was = desired.adapters.get(name), before.adapters.get(name)
    match intent:
        case Load():
            withdrawn = before.withdrawn.get(name)
            if now is None or (now.origin is Origin.DECLARED and (withdrawn is None or withdrawn.declared != now)):
                return desired
            if now.origin is not Origin.DECLARED and not same_path(now.path, intent.path):
                return desired
        case Unload():
            unwanted = desired.withdrawn.get(name)
            if unwanted is None:
                return desired
            withdrawn = before.withdrawn.get(name)
            if was is not None and was.origin is Origin.DECLARED:
                was = unwanted.declared
        case _:
            assert_never(intent)
    return replace(
        desired,
        adapters=_put(desired.adapters, name, was),
        released=_put(desired.released, name, before.released.get(name) if was is None else None),
        withdrawn=_put(desired.withdrawn, name, withdrawn if was is None else None),
    )


def refusal(
    intent: Intent, seen: Observation, outcomes: tuple[Outcome, ...], unloaded: tuple[Unloaded, ...]
) -> Failure | None:
    """The failure for which the engine is taken to have refused an intent for what it asks, None if it did not.

    What is the server's fault (away, asleep, its flags, its key) refuses nothing: it may be different tomorrow.
    """
    match intent:
        case Load():
            if intent.name in _listed(seen):
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


def refused(intent: Intent, failure: Failure) -> tuple[Answer, tuple[Fact, ...]]:
    """The answer to a refusal, in the engine's own words, and the fact of it."""
    status = failure.status
    if status is None:
        # Refused before the engine was asked, with the status that vLLM (0.18 and later) would have given it.
        status = 404 if "No adapter found" in failure.message else 500
    kind = {400: "BadRequestError", 404: "NotFoundError"}.get(status, "InternalServerError")
    name = intent.name if isinstance(intent, Load | Unload) else ""
    fact = warning(Event.ADAPTER_REFUSED, adapter=name, status=status, message=failure.message)
    return Answer(status, failure.message, kind, failure.answer), (fact,)


def progress(intent: Intent, plan: Plan, seen: Observation, now: float, *, fresh: bool) -> Answer | None:
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
    listed = _listed(seen)
    success = Answer(200, f"Success: LoRA adapter '{intent.name}' added successfully.")
    if intent.name in listed:
        return success if _is_it(plan.desired, intent, listed[intent.name]) else already_loaded(intent.name)
    if isinstance(seen, Observed) and intent.name in plan.work.evicted:
        # The server has it, and made room in its listing.
        return success
    if intent.name not in plan.desired.adapters:
        return Answer(409, f"The lora adapter '{intent.name}' was unloaded by another request.", "Conflict")
    why = _waits_for(plan.desired, plan.work, now) or _barred(intent.name, plan.work)
    if not why and not fresh:
        why = _held_up(intent.name, plan.work)
    return _will(f"LoRA adapter '{intent.name}'", "loaded", why) if why else None


def _progress_unload(intent: Unload, plan: Plan, seen: Observation) -> Answer | None:
    withdrawn = plan.desired.withdrawn.get(intent.name)
    if withdrawn is None or not withdrawn.pending:
        if intent.name in plan.desired.adapters and intent.name not in _listed(seen):
            return Answer(409, f"The lora adapter '{intent.name}' was loaded by another request.", "Conflict")
        return Answer(200, f"Success: LoRA adapter '{intent.name}' removed successfully.")
    why = _absent(plan.desired, plan.work)
    attempt = plan.work.unloads.get(intent.name)
    if not why and attempt is not None and attempt.failure is not None:
        why = attempt.failure.message
    return _will(f"LoRA adapter '{intent.name}'", "unloaded", why) if why else None


def _waits_for(desired: Desired, work: Work, now: float) -> str:
    """Why nothing is loaded now, whatever it is; empty where it is."""
    why = _absent(desired, work)
    if why:
        return why
    if work.hold is not None and work.hold.until > now:
        return work.hold.failure.message
    if work.last is not None and work.last.runtime_loading is False:
        return "the server has no route to load adapters at run time"
    return ""


def _absent(desired: Desired, work: Work) -> str:
    if desired.paused is not None:
        return f"loads and unloads are paused{desired.paused.reason and ': ' + desired.paused.reason}"
    if work.server.phase is not Phase.UP:
        detail = work.server.detail
        return f"the server is {work.server.phase.value}{detail and ' (' + detail + ')'}"
    return ""


def _barred(name: str, work: Work) -> str:
    """Why this adapter is not loaded although nothing is wrong with the server, empty where that is not so."""
    barred = work.barred.get(name)
    return "" if barred is None else barred.reason


def _held_up(name: str, work: Work) -> str:
    """What came of the first try, where that was a fault of the server."""
    attempt = work.attempts.get(name)
    if attempt is not None and attempt.failures and attempt.failure is not None:
        return attempt.failure.message
    return "" if work.withheld is None else work.withheld.detail


def _will(what: str, done: str, why: str) -> Answer:
    return Answer(202, f"Accepted: {what} is remembered and will be {done}; not yet: {why}.")


def under_way(intent: Intent) -> Answer:
    """The answer to an intent that is remembered and takes longer than anybody waits."""
    name = intent.name if isinstance(intent, Load | Unload) else ""
    done = "loaded" if isinstance(intent, Load) else "unloaded"
    return _will(f"LoRA adapter '{name}'", done, "it is still under way")


def already_loaded(name: str) -> Answer:
    """VLLM's answer to a load of a name that is loaded, from whatever path."""
    sentence = (
        f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place,"
        " set 'load_inplace' to True."
    )
    return Answer(400, sentence, "InvalidUserInput")


def _declared(desired: Desired, name: str) -> Adapter | None:
    """What the config says of a name, withdrawn or not; None if it says nothing."""
    known = desired.adapters.get(name)
    if known is not None:
        return known if known.origin is Origin.DECLARED else None
    withdrawn = desired.withdrawn.get(name)
    return None if withdrawn is None else withdrawn.declared


def _is_it(desired: Desired, intent: Load, path: str) -> bool:
    """Whether an adapter that is listed with `path` is the one that is asked for, maybe by a symbolic link."""
    known = desired.adapters.get(intent.name) or _declared(desired, intent.name)
    linked = known is not None and same_path(known.path, intent.path) and is_listed_path(known, path)
    return linked or same_path(path, intent.path)


def _listed(seen: Observation) -> Mapping[str, str]:
    return {card.name: card.path for card in seen.adapters} if isinstance(seen, Observed) else {}


def _size(desired: Desired) -> int:
    adapters = sum(_bytes(a.name) + _bytes(a.path) for a in desired.adapters.values())
    return adapters + sum(map(_bytes, desired.withdrawn))


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _without(mapping: Mapping[str, T], name: str) -> Mapping[str, T]:
    return {key: value for key, value in mapping.items() if key != name}


def _put(mapping: Mapping[str, T], name: str, value: T | None) -> Mapping[str, T]:
    left = _without(mapping, name)
    return left if value is None else {**left, name: value}
