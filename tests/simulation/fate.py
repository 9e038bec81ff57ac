"""What happens in a simulated world: who does what and when, all drawn from the seed.

The trap guarded against is a hunt in which everything goes wrong at once, so that nothing is ever exercised for long.
Each world draws the kinds of trouble that it knows, how often they come and how long they last.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from random import Random

from tests.simulation.network import ALL_PATHS, Rule, Toxic
from tests.simulation.server import LOAD, UNLOAD, Start
from tests.simulation.volume import STEPS
from tests.simulation.world import Traits, World

NAMES = ("sql", "chat", "code", "draft", "legal", "mail", "voice", "docs")
ODD_NAMES = ("../adapters/x", "a\nb", "x" * 300, "ünïcode", "on", "007")


def traits_of(seed: int, rng: Random) -> Traits:
    """Draw what a world is like; `rng` goes on to draw its fate."""
    policy = Random(f"policy {seed}")
    static = tuple((name, f"/adapters/{name}") for name in rng.sample(NAMES, rng.choice((0, 0, 0, 1, 2))))
    return Traits(
        start=Start(
            tells_start_time=rng.random() < 0.8,
            can_sleep=rng.random() < 0.3,
            static=static,
        ),
        format=rng.choice(("json", "yaml")),
        interval=rng.choice((1.0, 5.0, 5.0)),
        parked=rng.choice((30.0, 600.0)),
        names_base_model=rng.random() < 0.3,
        forgets=rng.random() < 0.9,
        load_seconds=rng.choice((0.01, 0.05, 0.5, 4.0, 20.0)),
        load_timeout=rng.choice((10.0, 300.0)),
        began=rng.choice((0.0, 12.5, 1e6)),
        concurrency=rng.choice(("auto", "auto", "1", "3")),
        replaces=policy.random() < 0.5,
        prunes=policy.random() < 0.3,
    )


class Fate:
    """Draws what happens next in one world."""

    def __init__(self, world: World, rng: Random) -> None:
        self._world = world
        self._rng = rng
        self._pace = rng.choice((0.3, 1.0, 3.0, 8.0))
        self.pending: list[asyncio.TimerHandle] = []
        kinds = self._kinds()
        always = ("operator loads", "operator unloads", "server is killed")
        drawn = {kind: rng.choice((0.0, 0.0, 0.3, 1.0, 3.0)) for kind in kinds}
        self._weights = drawn | {kind: max(1.0, drawn[kind]) for kind in always}
        self._acts = kinds

    def _kinds(self) -> dict[str, Callable[[], object]]:
        return {
            "operator loads": self._operator_loads,
            "operator unloads": self._operator_unloads,
            "operator replaces": self._operator_replaces,
            "client names something odd": self._odd_name,
            "config changes": self._config_changes,
            "config moves an adapter": self._config_moves,
            "server is killed": self._server_is_killed,
            "server restarts in no time": self._server_restarts_in_no_time,
            "server gets SIGTERM": self._server_gets_sigterm,
            "engine dies": self._engine_dies,
            "engine hangs": self._engine_hangs,
            "server freezes": self._server_freezes,
            "engine sleeps": self._engine_sleeps,
            "requests arrive": self._requests_arrive,
            "silent connections end": self._silent_connections_end,
            "route is off in the next life": self._route_is_off,
            "files vanish": self._files_vanish,
            "adapter is refused": self._adapter_is_refused,
            "adapter is poison": self._adapter_is_poison,
            "network fault": self._network_fault,
            "load fault": self._load_fault,
            "metrics fault": self._metrics_fault,
            "sidecar is killed": self._sidecar_is_killed,
            "sidecar is killed in a save": self._sidecar_is_killed_in_a_save,
            "power is lost": self._power_is_lost,
            "checkpoint is damaged": self._checkpoint_is_damaged,
            "disk fails": self._disk_fails,
            "disk is slow": self._disk_is_slow,
            "clock jumps": self._clock_jumps,
        }

    async def rage(self, seconds: float) -> bool:
        """Let things happen for so long; whether every promise was kept."""
        world, until = self._world, self._world.now + seconds
        while world.now < until:
            if not await world.let_pass(self._rng.expovariate(1.0 / self._pace)):
                return False
            (kind,) = self._rng.choices(tuple(self._weights), tuple(self._weights.values()))
            world.say("fate", kind)
            if self._acts[kind]() is not None:
                world.counts[f"fault {kind}"] += 1
        return world.error is None

    async def rest(self) -> bool:
        """Nothing happens any more, not even what was to happen later; whether every promise was kept."""
        for handle in self.pending:
            handle.cancel()
        return await self._world.let_pass(0.0)

    def _later(self, seconds: float, what: Callable[[], object]) -> None:
        self.pending.append(asyncio.get_running_loop().call_later(seconds, what))

    def _in_this_life(self, seconds: float, what: Callable[[], None]) -> None:
        """Have it happen so much later, unless the server has begun another life by then."""
        server, life = self._world.server, self._world.server.life

        def happen() -> None:
            if server.life is life:
                what()

        self._later(seconds, happen)

    def _some(self, *choices: float) -> float:
        """A length of time about one of these."""
        return self._rng.choice(choices) * self._rng.uniform(0.5, 1.5)

    # --- people

    def _path(self, name: str) -> str:
        return f"/adapters/{name}" + self._rng.choice(("", "", "", "-v2", "/"))

    def _operator_loads(self) -> object:
        name = self._rng.choice(NAMES)
        return self._loads(name, self._path(name))

    def _odd_name(self) -> object:
        return self._loads(self._rng.choice(ODD_NAMES), "/adapters/odd")

    def _loads(self, name: str, path: str) -> object:
        world = self._world
        life = world.server.life
        if life is None or life.asleep_since is not None:
            return None

        async def load() -> None:
            loaded = await world.server.somebody_loads(name, path)
            world.say("operator", f"load of {name!r:.40} from {path}: {'done' if loaded else 'refused'}")

        world.server.spawn(load())
        return True

    def _operator_unloads(self) -> object:
        listed = sorted(self._world.server.adapters)
        return self._unloads(self._rng.choice(listed)) if listed else None

    def _unloads(self, name: str) -> object:
        world, life = self._world, self._world.server.life
        if life is None or not world.server.somebody_unloads(name):
            return None
        world.say("operator", f"unloaded {name!r:.40}")
        world.check(world.oracle.unloaded, name, life)
        return True

    def _operator_replaces(self) -> object:
        listed = sorted(self._world.server.adapters)
        if not listed:
            return None
        name = self._rng.choice(listed)
        if self._unloads(name) is None:
            return None
        return self._loads(name, self._path(name))

    def _config_changes(self) -> object:
        world, rng = self._world, self._rng
        name = rng.choice(NAMES)
        if name in world.adapters and rng.random() < 0.6:
            del world.adapters[name]
            world.oracle.undeclared(name)
        else:
            world.adapters[name] = {"path": self._path(name), "required": rng.random() < 0.5}
            world.oracle.declared(name)
        world.say("operator", f"declares {world.adapters}")
        world.reconfigure()
        return True

    def _config_moves(self) -> object:
        world = self._world
        if not world.adapters:
            return None
        name = self._rng.choice(sorted(world.adapters))
        world.adapters[name] = world.adapters[name] | {
            "path": f"/adapters/{name}" + self._rng.choice(("", "-v2", "-v3"))
        }
        world.oracle.declared(name)
        world.say("operator", f"declares {world.adapters}")
        world.reconfigure()
        return True

    # --- the server

    def _server_is_killed(self) -> object:
        server = self._world.server
        if server.life is None:
            return None
        server.crash("SIGKILL", self._some(0.2, 2.0, 10.0, 60.0))
        return True

    def _server_restarts_in_no_time(self) -> object:
        server = self._world.server
        if server.life is None:
            return None
        server.crash("SIGKILL, and back in no time", self._some(0.001, 0.05, 0.5))
        return True

    def _server_gets_sigterm(self) -> object:
        server = self._world.server
        if server.life is None or server.wedged:
            return None
        server.shut_down(self._some(0.5, 10.0))
        if server.life is not None:
            self._in_this_life(self._some(5.0, 30.0), lambda: server.crash("SIGKILL", 1.0))
        return True

    def _engine_dies(self) -> object:
        life = self._world.server.life
        if life is None or life.routes.engine.dead:
            return None
        life.routes.engine.die()
        return True

    def _engine_hangs(self) -> object:
        life = self._world.server.life
        if life is None:
            return None
        engine = life.routes.engine
        engine.hung = True
        self._later(self._some(2.0, 20.0, 120.0), lambda: setattr(engine, "hung", False))
        return True

    def _server_freezes(self) -> object:
        server = self._world.server
        if server.life is None:
            return None
        server.freeze()
        self._later(self._some(0.5, 4.0, 15.0, 60.0), server.thaw)
        return True

    def _engine_sleeps(self) -> object:
        server = self._world.server
        life = server.life
        if life is None or not server.start_with.can_sleep or life.loads or life.asleep_since is not None:
            return None
        server.sleep(self._rng.choice((1, 2)))
        self._in_this_life(self._some(3.0, 20.0, 90.0), server.wake)
        return True

    def _requests_arrive(self) -> object:
        self._world.server.spawn(self._world.server.somebody_asks(self._some(0.3, 3.0, 30.0)))
        return True

    def _silent_connections_end(self) -> object:
        self._world.server.hang_up()
        return True

    def _route_is_off(self) -> object:
        server = self._world.server
        if server.life is None:
            return None
        server.crash("restarted without runtime loading", self._some(1.0, 5.0))
        server.runtime_loading = False

        def mend() -> None:
            server.crash("restarted with runtime loading", 1.0)
            server.runtime_loading = True

        self._later(self._some(10.0, 40.0), mend)
        return True

    # --- the files

    def _shelve(self, state: str, *lengths: float) -> object:
        shelf = self._world.shelf
        name = self._rng.choice(NAMES)
        path = f"/adapters/{name}"
        shelf.states[path] = state
        self._world.say("fate", f"{path} is {state}")
        self._later(self._some(*lengths), lambda: shelf.states.pop(path, None))
        return True

    def _files_vanish(self) -> object:
        return self._shelve("absent", 3.0, 30.0, 200.0)

    def _adapter_is_refused(self) -> object:
        return self._shelve("refused", 10.0, 100.0)

    def _adapter_is_poison(self) -> object:
        return self._shelve("poison", 20.0, 60.0)

    # --- the network

    def _network_fault(self) -> object:
        rng, world = self._rng, self._world
        toxic = rng.choice(list(Toxic))
        every = tuple(path for path in ALL_PATHS if path not in ("/metrics", LOAD))
        paths = rng.choice((("/health",), ("/v1/models",), ("/v1/models",), every))
        return self._rule(toxic, paths, world)

    def _metrics_fault(self) -> object:
        world = self._world
        # From now on the lives of the server are not told apart by their start times alone.
        world.proves_lives = False
        return self._rule(self._rng.choice(list(Toxic)), ("/metrics",), world)

    def _load_fault(self) -> object:
        return self._rule(self._rng.choice(list(Toxic)), self._rng.choice(((LOAD,), (LOAD,), (UNLOAD,))), self._world)

    def _rule(self, toxic: Toxic, paths: tuple[str, ...], world: World) -> object:
        rng = self._rng
        left = rng.choice((1, 1, 2, 5, 1000))
        until = world.now + self._some(2.0, 10.0, 40.0)
        world.network.rules.append(Rule(toxic, paths, left, until, self._some(0.5, 2.0, 6.0)))
        world.say("fate", f"network: {toxic} on {paths}, {left} times, for {until - world.now:.1f} s")
        return True

    # --- ourselves and the disk

    def _sidecar_is_killed(self) -> object:
        world = self._world
        if world.sidecar is None:
            return None
        world.kill_sidecar()
        self._later(self._some(0.05, 1.0, 10.0, 60.0), world.start_sidecar)
        return True

    def _sidecar_is_killed_in_a_save(self) -> object:
        world = self._world
        world.volume.dies_in = self._rng.randrange(1, 12)
        self._later(self._some(10.0, 30.0), world.start_sidecar)
        return True

    def _power_is_lost(self) -> object:
        world = self._world
        world.kill_sidecar()
        world.volume.lose_power()
        world.server.crash("the node lost its power", self._some(5.0, 40.0))
        self._later(self._some(1.0, 10.0), world.start_sidecar)
        return True

    def _checkpoint_is_damaged(self) -> object:
        world = self._world
        world.kill_sidecar()
        if world.volume.damage():
            world.say("fate", "a bit of the checkpoint is flipped")
            world.oracle.damaged()
        self._later(self._some(0.1, 5.0), world.start_sidecar)
        return True

    def _disk_fails(self) -> object:
        volume, rng = self._world.volume, self._rng
        number, steps = rng.choice(
            (
                (errno.ENOSPC, ("create", "write", "link")),
                (errno.ENOSPC, ("write",)),
                (errno.EROFS, STEPS),
                (errno.EIO, ("fsync",)),
                (errno.EIO, ("fsync_directory",)),
                (errno.EACCES, ("create", "rename", "unlink", "link")),
                (errno.EPERM, ("link",)),
            )
        )
        volume.errno, volume.failing = number, steps
        self._world.say("fate", f"disk: {errno.errorcode[number]} at {steps}")
        self._later(self._some(1.0, 10.0, 100.0), lambda: setattr(volume, "errno", None))
        return True

    def _disk_is_slow(self) -> object:
        volume = self._world.volume
        volume.seconds = self._rng.choice((0.1, 2.0, 4.9, 5.1, 30.0))
        self._later(self._some(5.0, 30.0, 100.0), lambda: setattr(volume, "seconds", 0.0))
        return True

    def _clock_jumps(self) -> object:
        world = self._world
        world.wall_offset += self._rng.choice((-3e8, -3600.0, -1.0, 1.0, 3600.0, 3e8))
        return True
