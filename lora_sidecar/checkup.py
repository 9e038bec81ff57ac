"""`lora-sidecar check`: looks at everything that a restore depends on, once, and changes nothing.

The trap guarded against is a set-up whose second mistake shows only when the first is mended, in an outage. So nothing
here stops at the first problem: the server, each adapter's folder and the checkpoint's directory are all looked at, and
what would be done is printed. No adapter is loaded, no lock is taken, and the checkpoint is only read.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from msgspec import Struct

from lora_sidecar.attempts import Clock
from lora_sidecar.checkpoint import read_file
from lora_sidecar.codec import Checkpoint, decode
from lora_sidecar.config import Config, ServerConfig
from lora_sidecar.desired import declare
from lora_sidecar.disk import explained
from lora_sidecar.engines.auto import make
from lora_sidecar.errors import CheckpointError, SidecarError
from lora_sidecar.events import Fact
from lora_sidecar.model import Adapter, Desired, Incarnation, Observation, Observed, Unknown
from lora_sidecar.offload import Offloader
from lora_sidecar.policy import Policy
from lora_sidecar.preflight import Inspection, Preflight
from lora_sidecar.reconcile import reconcile
from lora_sidecar.work import Plan, Work

_NOTHING = Desired(adapters={}, incarnation=Incarnation(0))
_DISK_SECONDS = 10.0


class Finding(Struct, frozen=True):
    """One line of the report; `problem` is whether something has to be mended."""

    text: str
    problem: bool = False


def examine(config: Config) -> tuple[Finding, ...]:
    """Look at everything that a sound config names; blocks for as long as its deadlines say."""
    return asyncio.run(_examine(config))


async def _examine(config: Config) -> tuple[Finding, ...]:
    found = await _directory(config.checkpoint.directory)
    for server in config.servers:
        found += await _server(server, config)
    return tuple(found)


def _problem(what: str, why: str, hint: str) -> Finding:
    return Finding(f"{what}: {why}{hint and f' ({hint})'}", problem=True)


async def _directory(path: str) -> list[Finding]:
    try:
        await Offloader("check").run(lambda: _try_to_write(path), _DISK_SECONDS)
    except CheckpointError as error:
        return [_problem(f"{error.attempted} {error.target}", error.cause, error.hint)]
    except TimeoutError:
        return [_problem(f"write to {path}", "it does not answer", "is the volume's disk hung?")]
    return [Finding(f"checkpoint directory {path}: writable")]


def _try_to_write(path: str) -> None:
    with explained("write to the checkpoint directory", path, path), tempfile.TemporaryFile(dir=path) as file:
        file.write(b"lora-sidecar check")
        file.flush()
        os.fsync(file.fileno())


async def _server(server: ServerConfig, config: Config) -> list[Finding]:
    name = f"server {server.name} at {server.url}"
    now = asyncio.get_running_loop().time
    try:
        engine = make(server, config, now, _unheard)
    except SidecarError as error:
        return [_problem(name, str(error), error.hint)]
    try:
        seen = await engine.observe(None)
    finally:
        await engine.close()
    found = [_seen(name, seen)]
    if isinstance(seen, Observed) and seen.runtime_loading is False:
        hint = "start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        found.append(_problem(name, "it has no route to load adapters at run time", hint))
    desired = await _remembered(server, config)
    preflight = Preflight(server.name, config)
    for adapter in desired.adapters.values():
        looked = await preflight.inspect(adapter, 0, warm=False)
        found += _adapter(adapter, looked)
    if isinstance(seen, Observed):
        found += _planned(desired, seen, config, server.name, now())
    return found


def _seen(name: str, seen: Observation) -> Finding:
    if isinstance(seen, Unknown):
        return _problem(name, f"{seen.reason.value}: {seen.detail}", seen.hint)
    bases = ", ".join(base.id for base in seen.bases)
    return Finding(f"{name}: serves {bases}, and lists {len(seen.adapters)} adapters")


def _unheard(*_: Fact) -> None:
    """What the engine's client tells is for the daemon's log."""


async def _remembered(server: ServerConfig, config: Config) -> Desired:
    """What the checkpoint remembers, if there is one that can be read, with what the config declares."""
    path = Path(config.checkpoint.directory, f"{server.name}.{config.checkpoint.format}")
    try:
        decoded = decode(await Offloader("check").run(lambda: read_file(str(path)), _DISK_SECONDS))
    except (CheckpointError, TimeoutError):
        decoded = None
    known = decoded.desired if isinstance(decoded, Checkpoint) else _NOTHING
    return declare(known, config.declared_on(server.name))[0]


def _adapter(adapter: Adapter, looked: Inspection) -> list[Finding]:
    name = f"adapter {adapter.name} at {adapter.path}"
    if looked.unchecked:
        if adapter.path.startswith("/") and _is_mistaken(adapter.path):
            hint = "is the path right, and the adapter copied? the folder above it is there"
            return [_problem(name, f"No adapter found for {adapter.path}", hint)]
        return [Finding(f"{name}: unchecked, {looked.unchecked}")]
    if not looked.findings:
        return [Finding(f"{name}: sound")]
    return [
        _problem(name, one.message, one.hint)
        if one.certain
        else Finding(f"{name}: some versions of vLLM refuse it: {one.message}")
        for one in looked.findings
    ]


def _is_mistaken(path: str) -> bool:
    """Whether a folder is missing from a mount that is there."""
    folder = Path(path)
    try:
        return not folder.exists() and any(folder.parent.iterdir())
    except OSError:
        return False


def _planned(desired: Desired, seen: Observed, config: Config, server: str, now: float) -> list[Finding]:
    """What the daemon would do at its first heartbeat, by the very step that it would take."""
    plan = reconcile(desired, seen, Work(), Policy.of(config, server), outcomes=(), clock=Clock(now, 0.0))
    lines = [f"would load {one.name} from {one.path}" for one in plan.restores]
    lines += [f"would adopt {name}" for name in sorted(plan.desired.adapters.keys() - desired.adapters.keys())]
    lines += [f"would forget {name}" for name in sorted(desired.adapters.keys() - plan.desired.adapters.keys())]
    lines += [f"would not load {name}: {why}" for name, why in sorted(_withheld(plan).items())]
    lines += [f"would say {one.type.value}: {one.message}" for one in plan.work.conditions]
    return [Finding(f"plan: {line}") for line in lines or ["nothing to do"]]


def _withheld(plan: Plan) -> dict[str, str]:
    return {name: one.reason for name, one in plan.work.barred.items()}
