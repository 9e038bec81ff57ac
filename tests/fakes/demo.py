"""The demo: a small vLLM-compatible server is killed under the real sidecar, and its adapters come back.

The trap guarded against is a demo that believes the program it shows. The server and the sidecar are processes of their
own, the server is killed with SIGKILL, and what came back is asked of the server.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

_DECLARED: Final = "sql-assistant"
_LEARNED: Final = ("support-bot", "translator")
_PATIENCE: Final = 15.0

_CONFIG: Final = """\
servers:
  - name: vllm
    url: http://127.0.0.1:{server}
adapters:
  - name: {declared}
    path: /adapters/{declared}
    required: true
heartbeat: {{interval: 1s}}
checkpoint: {{directory: {folder}}}
ops: {{bind: "127.0.0.1:0"}}
control: {{bind: "127.0.0.1:0"}}
log: {{format: json}}
"""


class DemoError(Exception):
    """Something did not happen in time."""


class _Stage:
    """Prints what happens, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, who: str, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.2f} s  {who:8} {what}", flush=True)


class _Server:
    """The fake vLLM as a process, and its API as somebody else uses it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start a life; it takes a second to listen, as a real one takes half a minute."""
        flags = ["--port", str(self._port), "--no-check-files", "--start-delay", "1"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.process", *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def adapters(self) -> tuple[str, ...] | None:
        """The adapters that it lists, None while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/v1/models", timeout=2) as answer:
                cards = json.load(answer)["data"]
        except OSError:
            return None
        return tuple(card["id"] for card in cards if card["parent"] is not None)

    def load(self, name: str) -> None:
        """Load an adapter as any script would."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/v1/load_lora_adapter",
            data=json.dumps({"lora_name": name, "lora_path": f"/adapters/{name}"}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=5).close()


class _Sidecar:
    """The real sidecar as a process, and its log as it comes."""

    def __init__(self, folder: Path, server_port: int, stage: _Stage) -> None:
        config = folder / "sidecar.yaml"
        config.write_text(_CONFIG.format(server=server_port, declared=_DECLARED, folder=folder))
        self._log = folder / "log"
        self._stage = stage
        self._seen = 0
        self._stream = self._log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lora_sidecar", "run", "--config", str(config)],
            stdout=self._stream,
            stderr=subprocess.STDOUT,
        )

    def follow(self) -> Iterator[Mapping[str, Any]]:
        """The events logged since the last call, each shown on the terminal."""
        lines = self._log.read_text().splitlines(keepends=True)
        for line in lines[self._seen :]:
            if not line.endswith("\n"):
                return
            self._seen += 1
            event = json.loads(line)
            told = _TOLD.get(event["event"])
            if told is not None:
                self._stage.say("sidecar", f"{event['event']:20} {told(event)}")
            yield event

    def stop(self) -> None:
        """End it with SIGTERM."""
        self.process.terminate()
        self.process.wait(timeout=5)
        self._stream.close()


_TOLD: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "server.up": lambda e: f"after {e['away_seconds']:.1f} s",
    "server.down": lambda e: f"{e['reason']}: {e['hint']}",
    "server.restarted": lambda e: f"lost {e['lost']}: {', '.join(e['lost_adapters'])}",
    "adapter.adopted": lambda e: f"{e['adapter']}, loaded by somebody else",
    "restore.succeeded": lambda e: f"{e['adapter']} in {e['seconds'] * 1000:.0f} ms",
    "restore.failed": lambda e: f"{e['adapter']}: {e['message']}",
    "recovery.completed": lambda e: (
        f"{e['restored']} of {e['lost']} restored {e['restore_seconds'] * 1000:.0f} ms after the server was back, "
        f"{e['outage_seconds']:.1f} s of outage"
    ),
}


def main() -> int:
    """Run the demo; 0 only if the server lists every adapter again."""
    stage = _Stage()
    with tempfile.TemporaryDirectory(prefix="lora-sidecar-demo-") as folder, _played(Path(folder), stage) as play:
        server, sidecar = play
        try:
            _act(server, sidecar, stage)
        except DemoError as error:
            stage.say("demo", f"FAILED: {error}")
            return 1
        listed = set(server.adapters() or ())
    missing = {_DECLARED, *_LEARNED} - listed
    if missing:
        stage.say("demo", f"FAILED: the server does not list {', '.join(sorted(missing))}")
        return 1
    stage.say("server", f"lists {', '.join(sorted(listed))}")
    stage.say("demo", "every adapter is back, and nobody did anything")
    return 0


@contextmanager
def _played(folder: Path, stage: _Stage) -> Iterator[tuple[_Server, _Sidecar]]:
    """The server and the sidecar, started, and ended whatever happens."""
    port = _free_port()
    server = _Server(port)
    stage.say("server", f"starts, a vLLM-compatible fake on port {port}; it refuses connections for a second")
    server.start()
    sidecar = _Sidecar(folder, port, stage)
    stage.say("sidecar", f"starts, with {_DECLARED} declared in its config")
    try:
        yield server, sidecar
    finally:
        sidecar.stop()
        server.kill()


def _act(server: _Server, sidecar: _Sidecar, stage: _Stage) -> None:
    _until(sidecar, lambda event: event.get("event") == "restore.completed", f"{_DECLARED} restored")
    for name in _LEARNED:
        server.load(name)
        stage.say("somebody", f"loads {name} through the server's API, without telling the sidecar")
    adopted: set[str] = set()

    def all_adopted(event: Mapping[str, Any]) -> bool:
        if event.get("event") == "adapter.adopted":
            adopted.add(event["adapter"])
        return adopted.issuperset(_LEARNED)

    _until(sidecar, all_adopted, "both adopted")
    stage.say("somebody", "kills the server with SIGKILL")
    server.kill()
    _until(sidecar, lambda event: event.get("event") == "server.down", "the outage noticed")
    stage.say("server", "starts again, and has forgotten everything")
    server.start()
    _until(sidecar, lambda event: event.get("event") == "recovery.completed", "the recovery completed")


def _until(sidecar: _Sidecar, done: Callable[[Mapping[str, Any]], bool], what: str) -> None:
    """Follow the sidecar's log until `done` says so of an event, or between events."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        for event in sidecar.follow():
            if done(event):
                return
        if done({}):
            return
        if sidecar.process.poll() is not None:
            raise DemoError(f"the sidecar ended with status {sidecar.process.returncode}")
        time.sleep(0.02)
    raise DemoError(f"not within {_PATIENCE:g} s: {what}")


def _free_port() -> int:
    """A port that the kernel gives to no outgoing connection while the server is away."""
    for port in range(8000, 9000):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise DemoError("no port from 8000 to 8999 is free")


if __name__ == "__main__":
    sys.exit(main())
