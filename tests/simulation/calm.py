"""The end of all trouble, and the whole of one world: what was lost has to be back within a bounded time.

The trap guarded against is a sidecar that survives everything and recovers from nothing. Once the faults are over,
everything that must be remembered has to be listed, and then nothing may happen any more.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random
from unittest.mock import patch

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.model import Origin
from lora_sidecar.core.paths import same_path
from lora_sidecar.engines import base
from lora_sidecar.reconcile.capacity import TRIED_AGAIN
from lora_sidecar.reconcile.flapping import RESTARTS, WINDOW
from lora_sidecar.reconcile.outage import Phase
from lora_sidecar.reconcile.poison import DEATHS, quarantine_of
from lora_sidecar.reconcile.replacement import ReplacementPhase
from lora_sidecar.reconcile.state import State, Verdict
from lora_sidecar.status.board import ServerStatus, unready
from tests.simulation import virtual_time
from tests.simulation.fate import NAMES, ODD_NAMES, Fate, traits_of
from tests.simulation.oracle import ViolationError
from tests.simulation.world import Report, World

_SETTLED = 12.0


class Calm:
    """What must come true in one world when all trouble has ended."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._began = world.now

    async def settle(self) -> bool:
        """End every fault; whether what is desired is listed within a bounded time, and nothing is done after that."""
        world, server = self._world, self._world.server
        world.say("fate", "all trouble ends")
        world.network.rules.clear()
        world.shelf.states.clear()
        world.volume.heal()
        server.thaw()
        life = server.life
        if life is not None:
            life.routes.engine.hung = False
            server.wake()
        if not server.runtime_loading or server.wedged or (life is not None and life.routes.engine.dead):
            server.crash("started anew", 1.0)
        server.runtime_loading = True
        if server.life is None and not server.starting:
            server.spawn(server.boot(1.0))
        world.start_sidecar()
        began = world.now
        self._began = began
        why = "trouble has only just ended"
        while why and world.now - began < self._bound():
            if not await world.let_pass(0.25):
                return False
            why = self._unsettled()
        if why:
            world.broke(ViolationError(f"recovery: {world.now - began:.0f} s after all trouble ended: {why}"))
            return False
        world.counts["settled seconds"] += round(world.now - began)
        return await self._stays_settled()

    def _has_flapped(self) -> bool:
        """Whether so many lives of the server began lately; an outage of one that tells no start time may be one."""
        world = self._world
        lately = [(who, what) for at, who, what in world.history if world.now - at < WINDOW]
        births = sum(who == "server" and what.endswith("listens") for who, what in lately)
        told = [what for who, what in lately if who == "sidecar" and what.startswith("server.restarted")]
        guessed = any("'evidence': 'outage'" in what for what in told)
        return not world.traits.start.tells_start_time or births >= RESTARTS or (guessed and len(told) >= RESTARTS)

    def _bound(self) -> float:
        """Seconds within which everything must be back: the longest wait, one load under way, and all loads.

        Each load may have to wait for a heartbeat of its own, and a suspect for the end of its quarantine.
        """
        world = self._world
        backoff = world.config.restore.backoff
        loads = (len(NAMES) + len(ODD_NAMES) + 2) * (world.traits.load_seconds + 1.0)
        waits = max(backoff.max, backoff.parked) + 300.0 + world.config.restore.timeout
        paced = (len(NAMES) + len(ODD_NAMES) + 2) * world.config.heartbeat.interval
        suspects = () if world.sidecar is None else world.sidecar.board.statuses()[0].desired.suspects.values()
        quarantine = max((quarantine_of(one.deaths, backoff) for one in suspects if one.deaths >= DEATHS), default=0.0)
        full = world.sidecar is not None and world.sidecar.board.statuses()[0].work.capacity.estimate.fit is not None
        return waits + 4 * loads + 2 * paced + 2 * quarantine + (2 * TRIED_AGAIN if full else 0.0) + 30.0

    def _unsettled(self) -> str:
        """Why the world has not settled yet; empty if it has."""
        world = self._world
        status = None if world.sidecar is None else world.sidecar.board.statuses()[0]
        if status is None or not status.beats:
            return "the sidecar has not completed a heartbeat"
        if why := self._unseen(status.work):
            return why
        declared = {name for name, a in status.desired.adapters.items() if a.origin is Origin.DECLARED}
        if declared != world.adapters.keys():
            return "the config is not in force"
        missing = sorted(status.desired.adapters.keys() - world.server.adapters.keys())
        if missing:
            return f"not listed: {missing}"
        if status.verdict is not Verdict.STEADY:
            return f"the verdict is {status.verdict}"
        if status.work.recovery is not None:
            return f"a recovery is not over: {status.work.recovery}"
        if why := self._unretired(status):
            return why
        if any(c.type is ConditionType.CHECKPOINT_NOT_PERSISTED for c in status.conditions):
            return "the checkpoint is not written"
        return ""

    def _unretired(self, status: ServerStatus) -> str:
        """What the config asks to replace or to prune, and is not; empty if there is nothing."""
        world, listed = self._world, self._world.server.adapters
        if any(
            swap.phase in (ReplacementPhase.UNLOADING, ReplacementPhase.LOADING, ReplacementPhase.REVERTING)
            for swap in status.work.replacements.by_name.values()
        ):
            return "a replacement is under way"
        told = status.work.replacements.reasons
        for name, adapter in world.adapters.items():
            if name in listed and not same_path(listed[name], adapter["path"]):
                if name not in told:
                    return f"{name} is listed from {listed[name]}, and nothing says why"
                if told[name].startswith("it waits"):
                    return f"{name} is not replaced yet: {told[name]}"
        left = sorted(name for name, path in status.desired.orphaned.items() if listed.get(name) == path)
        return f"not pruned: {left}" if left and world.traits.prunes and world.adapters else ""

    def _unseen(self, work: State) -> str:
        """What the sidecar cannot know yet, or does not; empty if its newest listing is up to date."""
        server = self._world.server
        if work.server.phase is not Phase.UP:
            return f"the server is {work.server.phase}: {work.server.detail}"
        if work.last is None or work.last.at <= max(self._began, server.born_at):
            return "there is no listing since then"
        if server.life is not None and server.life.loads:
            return "a load is under way"
        if {card.name for card in work.last.adapters} != server.adapters.keys():
            return "the newest listing is out of date"
        return ""

    async def _stays_settled(self) -> bool:
        """Nothing is loaded and nothing is forgotten any more; the conditions that hold have causes."""
        world = self._world
        if world.sidecar is None:
            raise AssertionError("the sidecar was started")
        (status,) = world.sidecar.board.statuses()
        desired, listed = set(status.desired.adapters), dict(world.server.adapters)
        if not await world.let_pass(_SETTLED):
            return False
        (status,) = world.sidecar.board.statuses()
        promises = {
            "recovery: what was listed is listed no more": dict(world.server.adapters) == listed,
            "memory: desired changes with nothing happening": set(status.desired.adapters) == desired,
            "memory: what was durable is desired no more": world.oracle.memory <= desired,
            "honesty: ready, and a required adapter is not listed": bool(unready(status)) is False,
            "honesty: a condition without a cause": all(
                c.type in (ConditionType.ADOPTION_REFUSED, ConditionType.ADAPTER_PATH_DIFFERS)
                or (c.type is ConditionType.PRUNE_REFUSED and not world.adapters)
                or (c.type is ConditionType.SERVER_FLAPPING and self._has_flapped())
                for c in status.conditions
            ),
            "memory: unloaded on purpose, and still desired": not (
                desired & world.oracle.known_unloaded.keys() if world.traits.forgets else ()
            ),
        }
        for promise, kept in promises.items():
            if not kept:
                world.broke(ViolationError(f"{promise}; {status.conditions}; listed {sorted(listed)}"))
        return world.error is None


async def _live(seed: int, folder: Path, *, tell: bool) -> Report:
    rng = Random(f"fate {seed}")
    traits = traits_of(seed, rng)
    world = World(seed, traits, folder)
    fate = Fate(world, rng)
    world.say("fate", f"seed {seed}: {traits}")
    began = world.now
    with (
        patch.object(base, "Transport", world.network.transport),
        patch.object(base, "LivenessConnection", world.network.sentinel),
        patch("time.time", world.wall),
    ):
        try:
            if rng.random() < 0.5:
                for name in rng.sample(NAMES, 2):
                    world.adapters[name] = {"path": f"/adapters/{name}", "required": True}
                    world.oracle.declared(name)
                world.reconfigure()
            world.server.spawn(world.server.boot(rng.choice((0.0, 0.5, 20.0))))
            world.start_sidecar()
            for _ in range(rng.choice((1, 1, 2))):
                if not (
                    await fate.rage(rng.choice((60.0, 200.0, 400.0)))
                    and await fate.rest()
                    and await Calm(world).settle()
                ):
                    break
            seconds = world.now - began
        finally:
            await world.close()
    error = "" if world.error is None else f"{type(world.error).__name__}: {world.error}"
    return Report(seed, seconds, error, world.told(None) if tell else world.told() if error else "", dict(world.counts))


def live(seed: int, shelf: str | None = None, *, tell: bool = False) -> Report:
    """Live through the world of one seed; its disk is made in the folder `shelf`, and with `tell` all is told."""
    began = traits_of(seed, Random(f"fate {seed}")).began
    with tempfile.TemporaryDirectory(dir=shelf, ignore_cleanup_errors=True) as folder:
        return virtual_time.run(_live(seed, Path(folder), tell=tell), began)
