"""Starts the fake server or a real vLLM as processes of their own, and leaves none behind.

The trap guarded against is the orphan: a real vLLM's engine and worker outlive a killed parent and hold gigabytes.
Each server gets a session of its own, and whatever is left of that session is killed at the end, at the latest when
the interpreter exits.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from functools import cache
from pathlib import Path
from random import SystemRandom
from typing import Self

from msgspec import Struct
from msgspec.structs import replace

PYTHON_VARIABLE = "LORA_SIDECAR_VLLM_PYTHON"
_POLL = 0.05
_LOOK = 2.0
_chance = SystemRandom()


class Kind(StrEnum):
    """Which server is started."""

    FAKE = "fake"
    REAL = "real"


def real_python() -> Path | None:
    """The interpreter of the vLLM environment that the tests were given, or None."""
    given = os.environ.get(PYTHON_VARIABLE)
    return Path(given) if given else None


@cache
def real_version() -> str | None:
    """The version of vLLM in the environment that the tests were given, or None without one."""
    if (python := real_python()) is None:
        return None
    ask = "from importlib.metadata import version; print(version('vllm').partition('+')[0])"
    return subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def free_port() -> int:
    """A TCP port of the loopback that was free a moment ago, and that the kernel gives to no outgoing connection."""
    while True:
        port = _chance.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class ServerSpec(Struct, frozen=True, kw_only=True):
    """How a server is started. `flags` are for either kind; `fake_flags` are left out for a real one.

    `port` 0 takes a free one. `ready_within` is in seconds; None is 20 for the fake and 600 for the real server.
    """

    kind: Kind
    model: Path
    port: int = 0
    uds: Path | None = None
    served_model_name: str = "base"
    api_key: str | None = None
    runtime_lora: bool = True
    dev_mode: bool = False
    max_loras: int = 4
    max_cpu_loras: int = 64
    max_lora_rank: int = 16
    lora_modules: tuple[tuple[str, Path], ...] = ()
    flags: tuple[str, ...] = ()
    fake_flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    ready_within: float | None = None

    def command(self) -> list[str]:
        """The program and its arguments. Raises `LookupError` for a real server without its environment."""
        flags = ["--served-model-name", self.served_model_name, "--max-model-len", "512"]
        flags += ["--uds", str(self.uds)] if self.uds else ["--host", "127.0.0.1", "--port", str(self.port)]
        flags += ["--max-loras", str(self.max_loras), "--max-cpu-loras", str(self.max_cpu_loras)]
        flags += ["--max-lora-rank", str(self.max_lora_rank)]
        if self.api_key is not None:
            flags += ["--api-key", self.api_key]
        if self.lora_modules:
            flags += ["--lora-modules", *(f"{name}={path}" for name, path in self.lora_modules)]
        flags += self.flags
        match self.kind:
            case Kind.FAKE:
                flags += ["--runtime-lora" if self.runtime_lora else "--no-runtime-lora"]
                flags += ["--dev-mode"] if self.dev_mode else []
                return [
                    *(sys.executable, "-m", "tests.fakes.process", "--model", str(self.model)),
                    *flags,
                    *self.fake_flags,
                ]
            case Kind.REAL:
                python = real_python()
                if python is None:
                    raise LookupError(f"{PYTHON_VARIABLE} names no interpreter of a vLLM environment")
                flags += ["--enforce-eager", "--max-num-seqs", "16", "--enable-lora"]
                return [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(self.model), *flags]

    def variables(self) -> dict[str, str]:
        """The environment of the process: ours, without its vLLM settings, and what a server on loopback needs."""
        values = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
        if self.kind is Kind.REAL:
            python = real_python()
            values.pop("PYTHONPATH", None)
            values |= {
                "PATH": f"{python.parent if python else ''}{os.pathsep}{values.get('PATH', os.defpath)}",
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "DO_NOT_TRACK": "1",
                "VLLM_HOST_IP": "127.0.0.1",
                "GLOO_SOCKET_IFNAME": "lo",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                # Left alone, each of several servers would bind itself to the first core. 0.20.2 dies of "nobind".
                "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
                "OMP_NUM_THREADS": "1",
                # Nothing is compiled: a start would take a minute longer, to be fast at what no test measures.
                "TORCHDYNAMO_DISABLE": "1",
                "VLLM_SERVER_DEV_MODE": "1" if self.dev_mode else "0",
            }
            if self.runtime_lora:
                values["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
        return values | dict(self.environment)


class ServerFailedError(Exception):
    """The server did not get ready, or did not end; the message has the end of its log."""


class RunningServer:
    """One server at one address; `start`, `restart` and the ways to end it may follow one another.

    Used as `async with RunningServer(spec, log) as server`, which waits until it answers and kills it at the end.
    """

    def __init__(self, spec: ServerSpec, log: Path) -> None:
        self.spec = spec if spec.port or spec.uds else replace(spec, port=free_port())
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        _alive.add(self)

    async def __aenter__(self) -> Self:
        try:
            self.start()
            await self.until_ready()
        except BaseException:
            await self.sigkill_all()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.sigkill_all()

    @property
    def port(self) -> int:
        """The TCP port; 0 on a unix socket."""
        return self.spec.port

    @property
    def url(self) -> str:
        """Where the server answers, without a slash at the end."""
        if self.spec.uds:
            return f"unix://{self.spec.uds}"
        scheme = "https" if "--ssl-certfile" in self.spec.flags else "http"
        return f"{scheme}://127.0.0.1:{self.spec.port}"

    @property
    def pid(self) -> int:
        """The process that was started: the API server. Raises `RuntimeError` where none was."""
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status of the API server, negative for a signal, None while it lives."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the process and return at once."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.spec.command(),
                env=self.spec.variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def until_ready(self) -> None:
        """Wait until the server answers. Raises `ServerFailedError` when it ended or the time is up."""
        limit = self.spec.ready_within or (20.0 if self.spec.kind is Kind.FAKE else 600.0)
        try:
            async with asyncio.timeout(limit):
                while not await self.answers():
                    if self.returncode is not None:
                        raise ServerFailedError(f"the server ended with status {self.returncode}{self.log_tail()}")
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise ServerFailedError(f"the server did not answer within {limit} s{self.log_tail()}") from None

    async def answers(self) -> bool:
        """Whether /health answers 200 within two seconds; over TLS, whether the port takes connections."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LOOK):
                return await self._is_healthy()
        return False

    async def _is_healthy(self) -> bool:
        if self.spec.uds:
            reader, writer = await asyncio.open_unix_connection(self.spec.uds)
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.spec.port)
        try:
            if self.url.startswith("https:"):
                return True
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b" 200 " in await reader.readline()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def members(self) -> list[int]:
        """Every living process of the server's session, orphans too."""
        return [] if self._process is None else _session_members(self._process.pid)

    def engine_pid(self) -> int:
        """The process of the engine. Raises `LookupError` where there is none; the fake has none of its own."""
        for pid in self.members():
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"VLLM::EngineCore"):
                    return pid
        raise LookupError("the server has no engine process")

    def sigkill_engine(self) -> None:
        """Kill the engine alone; the fake is told by a signal that its engine died."""
        match self.spec.kind:
            case Kind.FAKE:
                os.kill(self.pid, signal.SIGUSR1)
            case Kind.REAL:
                os.kill(self.engine_pid(), signal.SIGKILL)

    def stop_engine(self) -> None:
        """Freeze the engine alone: the server's other answers go on."""
        self._signal_engine(signal.SIGSTOP)

    def continue_engine(self) -> None:
        """Let a frozen engine go on."""
        self._signal_engine(signal.SIGCONT)

    def _signal_engine(self, number: signal.Signals) -> None:
        match self.spec.kind:
            case Kind.FAKE:
                # One signal both freezes the fake's engine and lets it go on.
                os.kill(self.pid, signal.SIGUSR2)
            case Kind.REAL:
                os.kill(self.engine_pid(), number)

    def stop(self) -> None:
        """Freeze every process of the server."""
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Let the frozen processes go on."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask the API server to end, as a container runtime does."""
        os.kill(self.pid, signal.SIGTERM)

    def sigkill_api(self) -> None:
        """Kill the API server alone: a real one's engine lives on as an orphan."""
        os.kill(self.pid, signal.SIGKILL)

    async def ended(self, within: float = 30.0) -> int:
        """Wait for the API server to end; its exit status. Raises `ServerFailedError` when it does not."""
        if self._process is None:
            raise RuntimeError("the server was not started")
        try:
            return await asyncio.to_thread(self._process.wait, within)
        except subprocess.TimeoutExpired:
            raise ServerFailedError(f"the server did not end within {within} s{self.log_tail()}") from None

    async def sigkill_all(self) -> None:
        """Kill every process of the server, as the death of its container does, and wait until all are gone."""
        self.kill_now()
        while self.members() or (self._process is not None and self.returncode is None):
            await asyncio.sleep(_POLL)
            self.kill_now()

    async def restart(self) -> None:
        """Kill every process and start anew on the same address; returns when the server answers."""
        await self.sigkill_all()
        if self.spec.uds:
            self.spec.uds.unlink(missing_ok=True)
        self.start()
        await self.until_ready()

    def kill_now(self) -> None:
        """Kill every process of the server without waiting for the end of any."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def log_tail(self, lines: int = 40) -> str:
        """The end of the server's log, for a failure's message."""
        if not self.log.exists():
            return ""
        return "\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


_alive: weakref.WeakSet[RunningServer] = weakref.WeakSet()


@atexit.register
def _leave_nothing_running() -> None:
    for server in tuple(_alive):
        server.kill_now()


def _session_members(leader: int) -> list[int]:
    """The processes of the session, without those that are dead and wait for their parent."""
    return [pid for pid, state, session in _processes() if session == leader and state not in "ZX"]


def _processes() -> Iterator[tuple[int, str, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # The name stands in parentheses and may hold anything; after it: state, parent, group, session.
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                yield int(entry.name), state, int(session)
