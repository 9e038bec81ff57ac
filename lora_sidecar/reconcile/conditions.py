"""What holds now that a person should know, derived afresh from the state at every heartbeat.

The trap guarded against is a warning that outlives its cause, or a cause that was logged once an hour ago and is shown
nowhere. A condition is computed and never stored, so it clears by itself; only its transitions become log lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.events import Event, EventName, info, warning
from lora_sidecar.core.model import Adapter, Origin
from lora_sidecar.core.observation import Observed
from lora_sidecar.core.outcomes import FailureKind, LoadDeferred, SleepState
from lora_sidecar.core.text import printable, shown
from lora_sidecar.reconcile.pacing import WINDOW, flapping
from lora_sidecar.reconcile.state import Attempt, Blocked, BlockReason, ServerBackoff, State

_HINTS: Mapping[ConditionType, str] = {
    ConditionType.RUNTIME_LOADING_DISABLED: "start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
    ConditionType.ENGINE_ASLEEP: "loads resume by themselves once the engine is woken up",
    ConditionType.ENGINE_STATE_UNKNOWN: "the server can sleep and does not say whether it does; is /metrics readable?",
    ConditionType.BASE_MODEL_CHANGED: "load them again under this base model, or serve the former one",
    ConditionType.ADAPTER_NAME_TAKEN: "give the adapter another name: a request for this one gets the base model",
    ConditionType.ADAPTER_FAILING: "the reason is the server's own; mend the files or the server's flags",
    ConditionType.ADAPTER_FILES_MISSING: (
        "once the engine has evicted such an adapter, the next request for it kills the server: put the files back, or "
        "unload it"
    ),
    ConditionType.CAPACITY_EXCEEDED: "raise the server's limit of loaded adapters, or want fewer",
    ConditionType.ADAPTER_QUARANTINED: "remove or mend the adapter; changed files or another path end the quarantine",
    ConditionType.SERVER_FLAPPING: "find out why the server dies; meanwhile one adapter is loaded a heartbeat",
    ConditionType.ADAPTER_PATH_DIFFERS: "give the new weights a name of their own, restart the server, or unload it",
    ConditionType.PRUNE_REFUSED: "was the config emptied by mistake? unload them by hand if it was not",
    ConditionType.ADOPTION_REFUSED: "they will not come back after a restart; widen policy.adopt or declare them",
}

_HOLDS: Mapping[FailureKind, str] = {
    FailureKind.UNAUTHORIZED: "the key in api_key_file must be one that the server was started with",
    FailureKind.LOCAL: "this process ran out of file descriptors or memory: raise the container's limits",
}

_BARS: Mapping[BlockReason, ConditionType] = {
    BlockReason.QUARANTINED: ConditionType.ADAPTER_QUARANTINED,
    BlockReason.FILES_GONE: ConditionType.ADAPTER_FILES_MISSING,
    BlockReason.CAPACITY: ConditionType.CAPACITY_EXCEEDED,
    BlockReason.NAME_TAKEN: ConditionType.ADAPTER_NAME_TAKEN,
    BlockReason.BASE_MODEL: ConditionType.BASE_MODEL_CHANGED,
}


def conditions_of(
    work: State,
    seen: Observed,
    desired: Mapping[str, Adapter],
    missing: Mapping[str, Adapter],
    refused: Mapping[str, str],
    spared: str = "",
) -> tuple[Condition, ...]:
    """The conditions that hold after a good listing.

    `missing` are the adapters to be restored, `refused` maps the listed names that were not adopted to reasons.
    `spared` is why nothing is pruned, empty where nothing is to be.
    """
    held = [
        *_loading(seen, work.hold),
        *_wakefulness(work.withheld),
        *_flapping(work.lives),
        *_failing(work.attempts, missing),
        *_barred(work.barred, work.spoilt),
        *_differing(work, desired),
    ]
    if spared:
        held.append(_condition(ConditionType.PRUNE_REFUSED, spared))
    if refused:
        held.append(_condition(ConditionType.ADOPTION_REFUSED, _listing(refused)))
    return tuple(held)


def _loading(seen: Observed, hold: ServerBackoff | None) -> Iterable[Condition]:
    if seen.runtime_loading is False:
        yield _condition(ConditionType.RUNTIME_LOADING_DISABLED, "the server has no route to load adapters at run time")
    elif hold is not None:
        hint = _HOLDS.get(hold.failure.kind, "the server was started so that it can load no adapter; see its message")
        yield Condition(ConditionType.LOADING_REFUSED, hold.failure.message, hint)


def _wakefulness(withheld: LoadDeferred | None) -> Iterable[Condition]:
    if withheld is None:
        return
    asleep = withheld.wakefulness is SleepState.ASLEEP
    kind = ConditionType.ENGINE_ASLEEP if asleep else ConditionType.ENGINE_STATE_UNKNOWN
    yield _condition(kind, withheld.detail)


def _failing(attempts: Mapping[str, Attempt], missing: Mapping[str, Adapter]) -> Iterable[Condition]:
    failing = {
        name: attempt.failure.message
        for name, attempt in attempts.items()
        if name in missing and attempt.failures and attempt.failure is not None
    }
    if failing:
        yield _condition(ConditionType.ADAPTER_FAILING, _listing(failing))


def _flapping(lives: Sequence[float]) -> Iterable[Condition]:
    if flapping(lives):
        message = f"{len(lives)} lives of the server began within {WINDOW / 60:g} minutes"
        yield _condition(ConditionType.SERVER_FLAPPING, message)


def _barred(barred: Mapping[str, Blocked], spoilt: Mapping[str, str]) -> Iterable[Condition]:
    by_kind: dict[ConditionType, dict[str, str]] = {}
    if spoilt:
        by_kind[ConditionType.ADAPTER_FILES_MISSING] = dict(spoilt)
    for name, one in barred.items():
        by_kind.setdefault(_BARS[one.bar], {})[name] = one.reason
    for kind, reasons in by_kind.items():
        yield _condition(kind, _listing(reasons))


def _differing(work: State, desired: Mapping[str, Adapter]) -> Iterable[Condition]:
    differing = {
        name: f"listed with another path than the configured {desired[name].path}"
        + (f"; {work.path_reasons[name]}" if name in work.path_reasons else "")
        for name in work.drift.replaced
        if desired[name].origin is Origin.DECLARED
    }
    if differing:
        yield _condition(ConditionType.ADAPTER_PATH_DIFFERS, _listing(differing))


def _condition(kind: ConditionType, message: str) -> Condition:
    return Condition(kind, message, _HINTS[kind])


def _listing(reasons: Mapping[str, str]) -> str:
    return "; ".join(shown(reasons, lambda name: f"{printable(name)}: {reasons[name]}"))


def transitions(before: tuple[Condition, ...], after: tuple[Condition, ...]) -> tuple[Event, ...]:
    """The facts of what began and what ceased to hold."""
    old, new = {c.type for c in before}, {c.type for c in after}
    raised = [
        warning(EventName.CONDITION_RAISED, condition=c.type.value, message=c.message, hint=c.hint)
        for c in after
        if c.type not in old
    ]
    cleared = [info(EventName.CONDITION_CLEARED, condition=c.type.value) for c in before if c.type not in new]
    return (*raised, *cleared)
