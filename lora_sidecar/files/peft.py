"""What is to be said of an adapter folder, from its config and the header of its weights. Pure.

The trap guarded against is a check that keeps a good adapter away. A load of a broken folder does vLLM no harm (tried
with 102 of them on 0.24 and 0.32), its versions differ in what they take, and an adapter that is never sent is the very
harm that this program exists to prevent. So a finding is advice, for `check` and beside the engine's own refusal, and
holds an adapter back for four reasons alone: a limit that the user set, a copy under way, a file that would hang the
engine, and where the engine's word comes too late: SGLang (0.5.6 to 0.5.23) accepts any weights, and dies of bad ones
at their first use.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Literal

from msgspec import Struct

from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.core.text import printable
from lora_sidecar.files import safetensors
from lora_sidecar.files.adapter_config import (
    Settings,
    has_one_rank,
    highest_rank,
    rank_of,
    read_settings,
    refused_by_vllm,
    unusable,
)
from lora_sidecar.files.safetensors import BaseShape, Damage, Shapes

CONFIG = "adapter_config.json"
SAFETENSORS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt")

Engine = Literal["vllm", "sglang"]


class Hold(StrEnum):
    """Why an adapter is not sent."""

    LIMIT = "limit"
    """The config says so."""
    SHORT = "short"
    """A file is shorter than its header says: it is being copied."""
    HANG = "hang"
    """Reading it takes for ever, and the engine would stand still meanwhile, with every request."""
    DEADLY = "deadly"
    """The engine would accept it and die of the first request for it."""


class Finding(Struct, frozen=True):
    """One thing that is wrong with an adapter, and what to do about it; advice, unless it `holds` the adapter back.

    `doubtful` is whether only some versions of the engine refuse it, as far as is known.
    """

    kind: FailureKind
    message: str
    hint: str
    holds: Hold | None = None
    doubtful: bool = False


class Unseen(Struct, frozen=True):
    """Something that cannot be seen from here, and why: nothing is known of it, and nothing follows from that.

    `is_error` is whether it may be there for us and could not be read now, so that the engine may fail to read it, too.
    """

    why: str
    is_error: bool = False


class NotAFile(Struct, frozen=True):
    """What is in the place of a file: a directory, or (`hangs`) a pipe or device that may never end."""

    hangs: bool


class Weights(Struct, frozen=True):
    """A file of weights: its name, its size, and its first bytes, to the end of the header unless that is too long."""

    name: str
    size: int
    head: bytes = b""


class Folder(Struct, frozen=True):
    """What was read of an adapter folder; None is what is not there for certain.

    `path` is what the server is given, `real` the folder it leads to. `fingerprint` tells these bytes from others, and
    is empty where not all of them were seen.
    """

    path: str
    real: str
    config: bytes | NotAFile | Unseen | None
    weights: Weights | NotAFile | Unseen | None
    fingerprint: str = ""


class Limits(Struct, frozen=True):
    """What an adapter is held against; None and () are no limit. `roots` are real paths.

    `engine` is what the server was identified as, None where that is not known: whose rules are told depends on it.
    """

    max_rank: int | None = None
    allow_pickle: bool = True
    roots: tuple[str, ...] = ()
    base: BaseShape | None = None
    engine: Engine | None = None
    hold_deadly: bool = True


def check(folder: Folder, limits: Limits) -> tuple[Finding, ...]:
    """Everything that is to be said of an adapter folder: what holds it back first, what is doubtful last."""
    found = [*outside_roots(folder.real, limits.roots)]
    match folder.config:
        case None:
            hint = "copy the whole adapter there, adapter_config.json included"
            found.append(Finding(FailureKind.FILES, f"No adapter found for {printable(folder.path)}", hint))
        case Unseen():
            found += _weights(folder, {}, limits)
        case NotAFile():
            found.append(_not_a_file(CONFIG, folder.config))
        case bytes():
            found += _read(folder, folder.config, limits)
    return tuple(sorted(found, key=lambda one: (one.holds is None, one.doubtful)))


def outside_roots(real: str, roots: tuple[str, ...]) -> Iterator[Finding]:
    """That a folder is under none of the `roots`, if there are any."""
    if roots and not any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots):
        message = f"its folder is {printable(real)}, which is under none of preflight.roots"
        yield Finding(FailureKind.ADAPTER, message, "move it there, or add its root", Hold.LIMIT)


def _not_a_file(name: str, found: NotAFile) -> Finding:
    if found.hangs:
        message = f"{name} is not a regular file: the engine would wait for it, with every request"
        return Finding(FailureKind.FILES, message, "put the file in its place", Hold.HANG)
    return Finding(FailureKind.FILES, f"{name} is a directory", "put the file in its place")


def _read(folder: Folder, text: bytes, limits: Limits) -> Iterator[Finding]:
    settings = read_settings(text)
    if isinstance(settings, str):
        hint = f"write {CONFIG} again, or copy it again if that was cut short"
        yield Finding(FailureKind.FILES, f"{CONFIG} cannot be read: {settings}", hint)
    elif settings is not None:
        yield from _settings(settings, limits)
    yield from _weights(folder, settings if isinstance(settings, dict) else {}, limits)


def _settings(settings: Settings, limits: Limits) -> Iterator[Finding]:
    kind = FailureKind.ADAPTER
    for message in unusable(settings):
        yield Finding(kind, message, f"mend {CONFIG}, or export the adapter again with PEFT")
    rank = highest_rank(settings)
    if limits.max_rank is not None and rank is not None and rank > limits.max_rank:
        message = f"LoRA rank {rank:g} is greater than max_lora_rank {limits.max_rank}."
        hint = f"start the server with --max-lora-rank {_next_rank(rank)}, and say so in servers[].max_lora_rank"
        yield Finding(kind, message, hint, Hold.LIMIT)
    if limits.engine != "sglang":
        for message, doubtful in refused_by_vllm(settings):
            hint = "train or convert it without that feature"
            yield Finding(kind, message, hint, doubtful=doubtful or limits.engine is None)


def _next_rank(rank: float) -> int:
    return next((one for one in (8, 16, 32, 64, 128, 256, 320, 512) if one >= rank), int(rank))


def _weights(folder: Folder, settings: Settings, limits: Limits) -> Iterator[Finding]:
    weights = folder.weights
    copy = "copy the whole adapter there: its weights are missing or damaged"
    match weights:
        case Unseen():
            return
        case None:
            message = f"{printable(folder.path)} doesn't contain tensors: there is no {SAFETENSORS}"
            yield Finding(FailureKind.FILES, message, copy, doubtful=limits.engine == "sglang")
        case NotAFile():
            yield _not_a_file(SAFETENSORS, weights)
        case Weights():
            yield from _file(weights, settings, limits, copy)


def _file(weights: Weights, settings: Settings, limits: Limits, copy: str) -> Iterator[Finding]:
    name, kind = weights.name, FailureKind.ADAPTER
    if name in PICKLES and not limits.allow_pickle:
        message = f"its weights are a pickle, {name}, and preflight.allow_pickle is false"
        yield Finding(kind, message, "convert them to safetensors, or allow it", Hold.LIMIT)
    if safetensors.is_git_lfs_pointer(weights.head):
        message = f"{name} is a Git LFS pointer and not the weights themselves"
        yield Finding(FailureKind.FILES, message, "run `git lfs pull` where the adapter was cloned, and copy it again")
    elif name in PICKLES:
        if not weights.size:
            yield Finding(FailureKind.FILES, f"{name} is empty", copy)
    else:
        read = safetensors.shapes_of(weights.head, weights.size)
        if isinstance(read, Damage):
            holds = Hold.SHORT if read.is_short else None
            yield Finding(FailureKind.FILES, f"{name} {read.why}", copy, holds)
        elif read is not None:
            yield from _tensors(read, settings, limits)


def _tensors(shapes: Shapes, settings: Settings, limits: Limits) -> Iterator[Finding]:
    kind, export = FailureKind.ADAPTER, "export the adapter again"
    if not shapes:
        yield Finding(kind, f"{SAFETENSORS} holds no tensor", export)
    if name := safetensors.empty_tensor(shapes):
        message = f"{printable(name)} has no values, as DeepSpeed ZeRO-3 leaves them unless they are gathered"
        yield Finding(kind, message, export)
    if limits.engine != "sglang" and (name := safetensors.unknown_name(shapes)):
        message = f"{printable(name)} is unsupported LoRA weight"
        hint = "vLLM reads PEFT's names of plain LoRA tensors alone: export it again"
        yield Finding(kind, message, hint, doubtful=limits.engine is None)
    rank = rank_of(settings)
    if message := safetensors.half_a_pair(shapes):
        # vLLM (0.24, 0.32) multiplies lora_B by what is 1 here, and so does not.
        yield _deadly(message, export, limits, doubtful=settings.get("lora_alpha") == rank)
    if rank is not None and rank > 0 and has_one_rank(settings) and (message := safetensors.other_rank(shapes, rank)):
        # vLLM takes it, if it fits its buffers, and answers wrongly.
        yield _deadly(message, export, limits, doubtful=True)
    if limits.base is not None:
        model = "is it an adapter of this base model?"
        if message := safetensors.misfit(shapes, limits.base):
            found = _deadly(message, model, limits, doubtful=False)
            yield found if found.holds else Finding(kind, message, model, Hold.LIMIT)
        if message := safetensors.unknown_module(shapes, limits.base):
            yield _deadly(message, model, limits, doubtful=False)


def _deadly(message: str, hint: str, limits: Limits, *, doubtful: bool) -> Finding:
    """Something that SGLang accepts and dies of; in vLLM it is a refusal or a wrong answer."""
    kind = FailureKind.ADAPTER
    if limits.engine != "sglang":
        return Finding(kind, message, hint, doubtful=doubtful or limits.engine is None)
    told = f"{message}: SGLang would accept it and die of the first request for it"
    if not limits.hold_deadly:
        return Finding(kind, told, hint)
    return Finding(kind, f"{told}; preflight.hold_deadly: false sends it all the same", hint, Hold.DEADLY)
