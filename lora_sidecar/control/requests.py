"""What a request through the control port changes, and what it is answered where that is known at once.

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

from lora_sidecar.core.events import Event, EventName, info
from lora_sidecar.core.model import Adapter, Desired, Origin, Paused, Withdrawn
from lora_sidecar.core.observation import Observation, Observed
from lora_sidecar.core.paths import is_listed_path, same_path
from lora_sidecar.reconcile.outage import Phase

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


Request = Load | Unload | Pause | Resume


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
    events: tuple[Event, ...] = ()


def receive(desired: Desired, intent: Request, seen: Observation, phase: Phase) -> Received | None:
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
            events = () if after == desired else (info(EventName.CONTROL_PAUSED, reason=intent.reason),)
            return Received(desired if after == desired else after, desired, Answer(200, "paused"), events)
        case Resume():
            if desired.paused is None:
                return Received(desired, desired, Answer(200, "not paused"))
            after = replace(desired, paused=None)
            return Received(after, desired, Answer(200, "resumed"), (info(EventName.CONTROL_RESUMED),))
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
    listed = listed_in(seen)
    answer: Answer | None = None
    if isinstance(seen, Observed) and any(base.id == intent.name for base in seen.bases):
        sentence = f"The lora adapter '{intent.name}' conflicts with a served base model."
        return Received(desired, desired, Answer(400, sentence, "InvalidUserInput"))
    if intent.name in listed:
        answer = already_loaded(intent.name)
        if not is_it(desired, intent, listed[intent.name]):
            return Received(desired, desired, answer)
    base = seen.bases[0].root if isinstance(seen, Observed) and seen.bases else None
    after, events = request(desired, intent, base)
    if _size(after) > max(MEMORY_LIMIT, _size(desired)):
        sentence = f"No more adapters can be remembered: their names and paths have more than {MEMORY_LIMIT} bytes."
        return Received(desired, desired, Answer(400, sentence, "InvalidUserInput"))
    return Received(after, desired, answer, events)


def request(desired: Desired, intent: Load, base: str | None) -> tuple[Desired, tuple[Event, ...]]:
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
    if desired.adapters.get(intent.name) == wanted and intent.name not in desired.orphaned:
        return desired, ()
    after = replace(
        desired,
        adapters={**desired.adapters, intent.name: wanted},
        listed=desired.listed - {intent.name},
        orphaned=_without(desired.orphaned, intent.name),
        withdrawn=_without(desired.withdrawn, intent.name),
    )
    return after, (
        info(EventName.ADAPTER_REQUESTED, adapter=wanted.name, path=wanted.path, origin=wanted.origin.value),
    )


def _receive_unload(desired: Desired, intent: Unload, seen: Observation) -> Received:
    known = intent.name in desired.adapters or intent.name in listed_in(seen)
    pending = intent.name in desired.withdrawn and desired.withdrawn[intent.name].pending
    if isinstance(seen, Observed) and not known and not pending:
        sentence = f"The lora adapter '{intent.name}' cannot be found."
        return Received(desired, desired, Answer(404, sentence, "NotFoundError"))
    after, events = withdraw(desired, intent.name)
    if _size(after) > max(MEMORY_LIMIT, _size(desired)):
        sentence = f"No more can be remembered: names and paths have more than {MEMORY_LIMIT} bytes."
        return Received(desired, desired, Answer(400, sentence, "InvalidUserInput"))
    return Received(after, desired, events=events)


def withdraw(desired: Desired, name: str) -> tuple[Desired, tuple[Event, ...]]:
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
        orphaned=_without(desired.orphaned, name),
        withdrawn={**desired.withdrawn, name: withdrawn},
    )
    return after, (info(EventName.ADAPTER_WITHDRAWN, adapter=name, path=None if known is None else known.path),)


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
        orphaned=_put(desired.orphaned, name, before.orphaned.get(name) if was is None else None),
        withdrawn=_put(desired.withdrawn, name, withdrawn if was is None else None),
    )


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


def is_it(desired: Desired, intent: Load, path: str) -> bool:
    """Whether an adapter that is listed with `path` is the one that is asked for, maybe by a symbolic link."""
    known = desired.adapters.get(intent.name) or _declared(desired, intent.name)
    linked = known is not None and same_path(known.path, intent.path) and is_listed_path(known, path)
    return linked or same_path(path, intent.path)


def listed_in(seen: Observation) -> Mapping[str, str]:
    """The listed names with their paths; none where nothing is known."""
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
