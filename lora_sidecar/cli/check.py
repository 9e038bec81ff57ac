"""`lora-sidecar check`: looks at everything that a restore depends on, once, and changes nothing.

The trap guarded against is a set-up whose second mistake shows only when the first is mended, in an outage. So nothing
here stops at the first problem: the server, each adapter's folder and the checkpoint's directory are all looked at, and
what would be done is printed. No adapter is loaded, no lock is taken, and the checkpoint is only read.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.checkpoint.decode import Checkpoint, decode
from lora_sidecar.checkpoint.disk import explained
from lora_sidecar.checkpoint.store import read_file
from lora_sidecar.config.inventory import ServerConfig
from lora_sidecar.config.settings import Config
from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.errors import CheckpointError, SidecarError
from lora_sidecar.core.events import Event
from lora_sidecar.core.model import Adapter, Desired, Incarnation
from lora_sidecar.core.observation import Observation, Observed, Reason, Unknown
from lora_sidecar.core.text import printable
from lora_sidecar.engines.detect import Detector
from lora_sidecar.files import peft
from lora_sidecar.files.folder import is_visible
from lora_sidecar.files.preflight import Inspection, Preflight
from lora_sidecar.reconcile.backoff import Now
from lora_sidecar.reconcile.desired import declare
from lora_sidecar.reconcile.policy import Policy
from lora_sidecar.reconcile.reconcile import reconcile
from lora_sidecar.reconcile.state import State
from lora_sidecar.threads import BlockingCall

_NOTHING = Desired(adapters={}, incarnation=Incarnation(0))
_DISK_SECONDS = 10.0
_MISTAKES = frozenset({ConditionType.ADAPTER_NAME_TAKEN, ConditionType.BASE_MODEL_CHANGED})
"""Conditions of a first heartbeat that somebody has to do something about."""


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
    # A folder that two servers load from is looked at twice, and told once.
    return tuple(dict.fromkeys(found))


def _problem(what: str, why: str, hint: str) -> Finding:
    return Finding(f"{what}: {why}{hint and f' ({hint})'}", problem=True)


async def _directory(path: str) -> list[Finding]:
    try:
        await BlockingCall("check").run(lambda: _try_to_write(path), _DISK_SECONDS)
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
    try:
        seen = await _observe(server, config)
    except SidecarError as error:
        return [_problem(name, str(error), error.hint)]
    found = [_seen(name, seen)]
    if isinstance(seen, Unknown) and seen.reason is Reason.BASE_MODEL_ABSENT and server.base_model is not None:
        # What else is wrong with it is to be known at once, too.
        seen = await _observe(replace(server, base_model=None), config)
    if isinstance(seen, Observed) and seen.runtime_loading is False:
        hint = "start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        found.append(_problem(name, "it has no route to load adapters at run time", hint))
    desired = await _remembered(server, config)
    preflight = Preflight(server.name, config)
    preflight.engine = seen.engine if isinstance(seen, Observed) else None
    looks = {one.name: await preflight.inspect(one, warm=False) for one in desired.adapters.values()}
    for adapter in desired.adapters.values():
        found += _adapter(adapter, looks[adapter.name])
    found += _unmeasured(name, server, looks.values())
    plan = "plan" if len(config.servers) == 1 else f"plan for {server.name}"
    if found[0].problem or not isinstance(seen, Observed):
        return [*found, Finding(f"{plan}: to load and unload nothing until {name} is as the config says")]
    return found + _planned(plan, desired, seen, looks, (config, server))


def _seen(name: str, seen: Observation) -> Finding:
    match seen:
        case Unknown():
            locked = "; nothing more can be seen of it until then" if seen.reason is Reason.UNAUTHORIZED else ""
            return _problem(name, f"{seen.reason.value}: {seen.detail}", seen.hint + locked)
        case Observed():
            bases = ", ".join(printable(base.id) for base in seen.bases)
            return Finding(f"{name}: serves {bases}, and lists {len(seen.adapters)} adapters")
        case _:
            assert_never(seen)


async def _observe(server: ServerConfig, config: Config) -> Observation:
    """One look at the server; raises `SidecarError` where it cannot be asked at all."""
    servers = tuple(server if one.name == server.name else one for one in config.servers)
    detector = Detector(server, replace(config, servers=servers), asyncio.get_running_loop().time, _unheard)
    try:
        found = await detector.find()
        return found if isinstance(found, Unknown) else await found.observe(None)
    finally:
        await detector.close()


def _unmeasured(name: str, server: ServerConfig, looks: Iterable[Inspection]) -> Iterator[Finding]:
    """What adapters could not be held against, where one was read: "sound" is not all that a person may take it for."""
    if all(look.unchecked for look in looks):
        return
    if server.max_lora_rank is None:
        yield Finding(f"{name}: ranks are not checked, since servers[].max_lora_rank does not tell the server's limit")
    if server.base_model_config is None:
        yield Finding(f"{name}: shapes are not checked, since servers[].base_model_config names no base model's files")


def _unheard(*_: Event) -> None:
    """What the engine's client tells is for the daemon's log."""


async def _remembered(server: ServerConfig, config: Config) -> Desired:
    """What the checkpoint remembers, if there is one that can be read, with what the config declares."""
    path = Path(config.checkpoint.directory, f"{server.name}.{config.checkpoint.format}")
    try:
        decoded = decode(await BlockingCall("check").run(lambda: read_file(str(path)), _DISK_SECONDS))
    except (CheckpointError, TimeoutError):
        decoded = None
    known = decoded.desired if isinstance(decoded, Checkpoint) else _NOTHING
    return declare(known, config.declared_on(server.name))[0]


def _adapter(adapter: Adapter, looked: Inspection) -> list[Finding]:
    name = f"adapter {printable(adapter.name)} at {printable(adapter.path)}"
    if looked.unchecked and not looked.findings and is_visible(adapter.path) and _is_mistaken(adapter.path):
        hint = "is the path right, and the adapter copied? the folder above it is there"
        return [_problem(name, f"No adapter found for {printable(adapter.path)}", hint)]
    found = [_told(name, one) for one in looked.findings]
    if looked.unchecked:
        found.append(Finding(f"{name}: unchecked, {looked.unchecked}"))
    return found or [Finding(f"{name}: sound")]


def _told(name: str, one: peft.Finding) -> Finding:
    if one.doubtful and one.holds is None:
        return Finding(f"{name}: some versions of the engine refuse it or answer wrongly: {one.message} ({one.hint})")
    return _problem(name, one.message, one.hint)


def _is_mistaken(path: str) -> bool:
    """Whether a folder is missing from a mount that is there."""
    try:
        return not os.path.lexists(path) and any(Path(path).parent.iterdir())
    except OSError:
        return False


def _planned(
    plan: str, desired: Desired, seen: Observed, looks: Mapping[str, Inspection], given: tuple[Config, ServerConfig]
) -> list[Finding]:
    """What the daemon would do at its first heartbeat, by the very step that it would take."""
    config, server = given
    now = asyncio.get_running_loop().time()
    made = reconcile(desired, seen, State(), Policy.of(config, server.name), clock=Now(now, 0.0))
    withheld = {one.name: refusal.message for one in made.restores if (refusal := looks[one.name].refusal) is not None}
    withheld |= {name: one.why for name, one in made.state.blocked.items()}
    lines = [f"to load {one.name} from {one.path}" for one in made.restores if one.name not in withheld]
    lines += [f"to adopt {printable(name)}" for name in sorted(made.desired.adapters.keys() - desired.adapters.keys())]
    lines += [f"to forget {name}" for name in sorted(desired.adapters.keys() - made.desired.adapters.keys())]
    lines += [f"not to load {name}: {why}" for name, why in sorted(withheld.items())]
    if seen.runtime_loading is False:
        lines.append("to load nothing until the server has the route for it")
    found: list[Finding] = []
    for one in made.state.conditions:
        if one.type in _MISTAKES:
            found.append(_problem(f"{one.type.value} on server {server.name}", one.message, one.hint))
        elif one.type is not ConditionType.RUNTIME_LOADING_DISABLED:
            lines.append(f"to say {one.type.value}: {one.message}")
    return found + [Finding(f"{plan}: {line}") for line in lines or ["nothing to do"]]
