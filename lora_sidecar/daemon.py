"""The composition root: builds the parts, runs their tasks, and ends them.

The traps guarded against: a task that dies unseen (a `TaskGroup` ends all of them with it, and the container is
restarted); a shutdown that waits for something that never ends (it is bounded, and a second signal does not wait); and
a process that as PID 1 ignores SIGTERM (it is handled explicitly).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Final

from lora_sidecar import __version__
from lora_sidecar.api.control import ControlServer
from lora_sidecar.api.listener import AcceptErrors
from lora_sidecar.api.metrics import Metrics
from lora_sidecar.api.ops import OpsServer
from lora_sidecar.checkpoint.manager import CheckpointManager
from lora_sidecar.checkpoint.store import Store
from lora_sidecar.config.inventory import ServerConfig
from lora_sidecar.config.settings import Config
from lora_sidecar.control.queue import RequestQueue
from lora_sidecar.controller import Clock, ServerController
from lora_sidecar.core.errors import LockHeldError, SidecarError
from lora_sidecar.core.events import Event, EventName, Level, info
from lora_sidecar.engines.base import Engine
from lora_sidecar.engines.detect import make
from lora_sidecar.log import EventLog, NonBlockingWriter, configure, set_level
from lora_sidecar.reload import Reloader
from lora_sidecar.status.board import Board, Snapshot

STOPPED: Final = 0
BUG: Final = 70
LOCK_HELD: Final = 75
BAD_CONFIG: Final = 78

SHUTDOWN_SECONDS: Final = 4.5
"""Everything must have ended by then, or the process ends without it; Kubernetes is promised 5 s."""

_LEFTOVER_SECONDS: Final = 0.5


def run(path: str, config: Config) -> int:
    """Run until a signal ends it; returns the exit code. `path` is where `config` was read from."""
    sink = configure(config.log.level, config.log.format)
    try:
        return asyncio.run(_run(path, config, sink))
    finally:
        sink.close()


async def _run(path: str, config: Config, sink: NonBlockingWriter) -> int:
    code = await _Daemon(path, config, sink).run()
    # Only a thread in the system's resolver can be left now. The loop would wait for it, and nothing can end it.
    asyncio.get_running_loop().call_later(_LEFTOVER_SECONDS, os._exit, code)
    return code


class _Daemon:
    """The parts of one process."""

    def __init__(self, path: str, config: Config, sink: NonBlockingWriter) -> None:
        self._path = path
        self._config = config
        self._sink = sink
        self._watches: list[ServerController] = []
        self._engines: list[Engine] = []
        self._keepers: list[CheckpointManager] = []
        self._desks: dict[str, RequestQueue] = {}
        self._stopping = asyncio.Event()
        self._signal = ""

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.set_exception_handler(AcceptErrors())
        now = loop.time
        self._journal = EventLog(now)
        self._board = Board(tuple(server.name for server in self._config.servers), now())
        self._metrics = Metrics(server.name for server in self._config.servers)
        self._ops = OpsServer(self._config.ops, self._snapshot, self._metrics)
        self._control = ControlServer(self._config.control, self._snapshot, self._desks, now, self._load_deadline)
        self._report(info(EventName.DAEMON_STARTED, version=__version__, pid=os.getpid(), config=self._path))
        try:
            code = await self._guarded(now)
        finally:
            await self._close()
        if code == STOPPED:
            self._journal.write(info(EventName.DAEMON_STOPPED, signal=self._signal, exit_code=code))
        return code

    async def _guarded(self, now: Callable[[], float]) -> int:
        """Start and run the parts; every way in which that ends has an exit code."""
        try:
            await self._until_stopped(now)
        except LockHeldError as error:
            return self._ended(LOCK_HELD, error)
        except SidecarError as error:
            return self._ended(BAD_CONFIG, error)
        except Exception:  # noqa: BLE001 - a bug: told once with its traceback, and the container is restarted
            failed = {"exit_code": BUG, "hint": "this is a bug of lora-sidecar: please report the traceback"}
            self._journal.write(Event(EventName.DAEMON_FAILED, Level.ERROR, failed | {"exc_info": sys.exc_info()}))
            return BUG
        return STOPPED

    def _ended(self, code: int, error: SidecarError) -> int:
        fields = {
            "exit_code": code,
            "attempted": error.attempted,
            "target": error.target,
            "cause": error.cause,
            "hint": error.hint,
        }
        self._journal.write(Event(EventName.DAEMON_FAILED, Level.ERROR, fields))
        return code

    async def _until_stopped(self, now: Callable[[], float]) -> None:
        """Start and run the parts until a signal comes, at whatever stage; raises what ends them before that."""
        work = asyncio.create_task(self._work(now), name="work")
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        work.cancel()
        await asyncio.wait({work})
        if not work.cancelled():
            work.result()

    async def _work(self, now: Callable[[], float]) -> None:
        await self._start(now)
        await self._run_tasks()

    async def _start(self, now: Callable[[], float]) -> None:
        await self._ops.start()
        clock = Clock(now, random.random)
        for server in self._config.servers:
            self._watches.append(self._watch(server, clock))
        await self._control.start()
        self._report(
            info(
                EventName.CONFIG_LOADED,
                source=self._path,
                servers=[server.name for server in self._config.servers],
                adapters=len(self._config.adapters),
                ops=list(self._ops.addresses),
                control=list(self._control.addresses),
            )
        )
        # All at once: each may have to wait for a lock, or for a disk that hangs.
        await asyncio.gather(*(watch.open() for watch in self._watches))

    def _watch(self, server: ServerConfig, clock: Clock) -> ServerController:
        checkpoint = self._config.checkpoint
        store = Store(checkpoint.directory, server.name, checkpoint.format)
        keeper = CheckpointManager(store, checkpoint.timeout, clock.now)
        self._keepers.append(keeper)
        journal = EventLog(clock.now, server=server.name)

        def report(*facts: Event) -> None:
            journal.write(*facts)
            self._metrics.count(server.name, facts)
            self._board.note(server.name, clock.now(), facts)

        engine = make(server, self._config, clock.now, report)
        self._engines.append(engine)
        watch = ServerController(server.name, self._config, engine, keeper, self._board, report, clock)
        self._desks[server.name] = watch.requests
        return watch

    async def _run_tasks(self) -> None:
        reloader = Reloader(self._path, self._config, self._board, self._report, self._apply)
        async with asyncio.TaskGroup() as group:
            group.create_task(reloader.run(), name="reload")
            group.create_task(self._ops.run(), name="ops")
            group.create_task(self._control.run(), name="control")
            for watch in self._watches:
                group.create_task(watch.run(), name="watch")
                group.create_task(watch.loader.run(), name="restore")
                group.create_task(watch.retirer.run(), name="retire")
                group.create_task(watch.prober.run(), name="verify")
                group.create_task(watch.unloader.run(), name="unload")
                group.create_task(watch.watcher.run(), name="survey")

    def _report(self, *facts: Event) -> None:
        """Tell what happened to the process itself."""
        self._journal.write(*facts)
        self._metrics.count("", facts)
        self._board.note("", asyncio.get_running_loop().time(), facts)

    def _apply(self, config: Config) -> None:
        self._config = config
        set_level(config.log.level)
        for watch in self._watches:
            watch.reconfigure(config)

    def _snapshot(self) -> Snapshot:
        return self._board.snapshot(asyncio.get_running_loop().time(), self._config.heartbeat.liveness)

    def _load_deadline(self) -> float:
        return self._config.restore.timeout

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            os._exit(STOPPED)
        self._signal = number.name
        self._stopping.set()
        asyncio.get_running_loop().call_later(SHUTDOWN_SECONDS, os._exit, STOPPED)
        self._journal.write(info(EventName.DAEMON_STOPPING, signal=number.name))

    async def _close(self) -> None:
        """End what is left; a save under way is let finish, anything else is not waited for."""
        for desk in self._desks.values():
            desk.close()
        await self._control.close()
        await asyncio.gather(*(keeper.close(SHUTDOWN_SECONDS / 2) for keeper in self._keepers))
        for engine in self._engines:
            await engine.close()
        await self._ops.close()
        if self._sink.dropped:
            self._journal.write(Event(EventName.LOG_DROPPED, Level.WARNING, {"lines": self._sink.dropped}))
