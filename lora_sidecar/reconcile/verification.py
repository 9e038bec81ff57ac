"""Whether a listed adapter answers, and not as the base model does: what the answers to probes by inference prove.

Two traps are guarded against. A listing proves nothing of the engine: an adapter may be listed and answer nothing, or
answer as if it were not there (seen after a sleep, vLLM issue 53888). And a probe must accuse nobody wrongly: the base
model is asked the same first, so that a fault of the whole server is not the adapter's; an adapter counts as dead after
two probes in a row, and as not applied after three different prompts to which it gave the base model's very numbers.

A log-probability is the model's whole output through one number: it sums over the vocabulary. So equal ones at full
precision mean that no weight made any difference. An adapter without effect on text (fresh, with B all zeros, or for
another modality) is the one that this rightly describes and wrongly blames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.core.conditions import Condition, ConditionType
from lora_sidecar.core.events import Event, EventName, info
from lora_sidecar.core.outcomes import Answer, ProbeAnswer, ProbeFailure
from lora_sidecar.core.text import printable, shown

PROMPTS = ("The capital of", "def main(", "Dear all, I")
"""Short enough that none fills a block of the prefix cache: each probe is computed, and never looked up."""

DEAD_AFTER = 2
ALIKE_AFTER = 3

FRESH_PAUSE = 1.0
DOUBT_PAUSE = 5.0
"""Seconds between two probes while some adapter has not been probed in this life, or while one is in doubt."""


class ProbeRecord(Struct, frozen=True):
    """What the probes of one adapter, loaded from `path`, came to: in a row without an answer, and as the base model.

    `probes` counts those that said anything, `at` is when the last was tried, `why` is what came instead of an answer.
    """

    path: str
    probes: int = 0
    dead: int = 0
    alike: int = 0
    at: float = float("-inf")
    why: str = ""

    @property
    def proven(self) -> bool:
        """Whether it answered, and not as the base model does."""
        return bool(self.probes) and not self.dead and not self.alike

    @property
    def is_dead(self) -> bool:
        """Whether it has answered nothing often enough to say so."""
        return self.dead >= DEAD_AFTER

    @property
    def is_alike(self) -> bool:
        """Whether it has answered as the base model does often enough to say so."""
        return self.alike >= ALIKE_AFTER

    @property
    def decided(self) -> bool:
        """Whether enough probes were made to say what it is."""
        return self.proven or self.is_dead or self.is_alike

    @property
    def prompt(self) -> str:
        """What to ask next."""
        return PROMPTS[self.probes % len(PROMPTS)]


Trials = Mapping[str, ProbeRecord]


def current(trials: Trials, listed: Mapping[str, str]) -> Trials:
    """The trials of what is listed, by name with its path; one that is loaded from another path begins anew."""
    kept = {name: trials[name] for name, path in listed.items() if name in trials and trials[name].path == path}
    return {name: kept.get(name, ProbeRecord(path)) for name, path in listed.items()}


def next_up(trials: Trials, interval: float) -> tuple[str, float] | None:
    """The adapter to be probed next, and when; None where there is none. The one that waited longest comes first."""
    if not trials:
        return None
    last = max(trial.at for trial in trials.values())
    fresh = sorted((t.at, name) for name, t in trials.items() if not t.probes and not t.dead)
    if fresh:
        at, name = fresh[0]
        # One that could be asked nothing is tried again at the pace of the rounds.
        return name, max(last + FRESH_PAUSE, at + interval)
    doubtful = sorted((t.at, name) for name, t in trials.items() if not t.decided)
    pause = min(interval, DOUBT_PAUSE) if doubtful else interval
    return (doubtful or sorted((t.at, name) for name, t in trials.items()))[0][1], last + pause


def judge(trial: ProbeRecord, base: Answer, said: Answer, now: float) -> ProbeRecord:
    """The trial after one more probe: what the base model and the adapter said to `trial.prompt`."""
    tried = replace(trial, at=now)
    if isinstance(base, ProbeFailure):
        return tried
    match said:
        case ProbeFailure():
            return replace(tried, dead=trial.dead + 1, alike=0, why=said.message)
        case ProbeAnswer():
            alike = trial.alike + 1 if said.top and said.top == base.top else 0
            return replace(tried, probes=trial.probes + 1, dead=0, alike=alike, why="")
        case _:
            assert_never(said)


def conditions_of(trials: Trials, obstacle: str) -> tuple[Condition, ...]:
    """The conditions that hold; `obstacle` is why nothing can be probed at all, empty if nothing is in the way."""
    dead = {n: t.why for n, t in trials.items() if t.is_dead}
    alike = [n for n, t in trials.items() if t.is_alike]
    held = []
    if dead:
        told = "; ".join(shown(dead, lambda name: f"{printable(name)}: {dead[name]}"))
        held.append(Condition(ConditionType.ADAPTER_DEAD, told, _DEAD))
    if alike:
        names = ", ".join(shown(alike))
        message = f"{names}: log-probabilities equal the base model's, to the last digit, for {ALIKE_AFTER} prompts"
        held.append(Condition(ConditionType.ADAPTER_NOT_APPLIED, message, _ALIKE))
    if obstacle:
        held.append(Condition(ConditionType.VERIFICATION_WITHHELD, obstacle, _WITHHELD))
    return tuple(held)


_DEAD = "listed, and gives no answer while the base model does; unload it and load it again, or restart the server"
_ALIKE = "unload it and load it again; an adapter whose weights have no effect on text looks the same"
_WITHHELD = "nothing is proven by inference until then; verify.by: listed asks for nothing"


def completed(before: Trials, after: Trials) -> tuple[Event, ...]:
    """The fact that every listed adapter has been decided, when that has just come about."""
    if not after or not all(trial.decided for trial in after.values()):
        return ()
    if before.keys() == after.keys() and all(trial.decided for trial in before.values()):
        return ()
    proven = sum(trial.proven for trial in after.values())
    doubtful = shown(name for name, trial in after.items() if not trial.proven)
    return (info(EventName.VERIFICATION_COMPLETED, adapters=len(after), proven=proven, not_proven=doubtful),)
