"""The commands that ask a running sidecar over its control port: `status`, `adapters`, `pause`, `resume`.

Two traps are guarded against. An image without a shell and without curl leaves an operator with nothing but this
program; so whatever the port can do, a command can. And a terminal shows what it is sent: names come from servers and
configs, so nothing unprintable is passed on, but in `--json`, where it is escaped.
"""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from msgspec import Struct
from tabulate import tabulate

from lora_sidecar.config.settings import Config
from lora_sidecar.config.values import Fault, reachable, split_bind
from lora_sidecar.core.text import printable

REFUSED: Final = 1
UNAVAILABLE: Final = 69
NO_PERMISSION: Final = 77

_PATIENCE: Final = 10.0
_SLACK: Final = 30.0
_ANSWER_CAP: Final = 64 * 1024 * 1024
_COLUMNS: Final = ("name", "state", "origin", "since", "path", "reason")
_CLEAR: Final = "\x1b[H\x1b[2J"
_LINE_LIMIT: Final = 8192
"""Characters of a line, of which a path may have 4096, where no terminal is narrower."""


class Target(Struct, frozen=True):
    """A control port: `url` as http://host:port, the token's file, and the seconds that a load may take there."""

    url: str
    token_file: str | None = None
    load_seconds: float = 300.0

    @staticmethod
    def of(config: Config) -> Target:
        """The control port of the sidecar that runs by this config, on this machine or in this pod."""
        address = split_bind(config.control.bind)
        if isinstance(address, Fault):
            raise TypeError(f"control.bind was accepted and is {address.rule}")
        host, port = address
        here = reachable(host)
        shown = f"[{here}]" if ":" in here else here
        return Target(f"http://{shown}:{port}", config.control.token_file, config.restore.timeout)


class _Reply(Struct, frozen=True):
    status: int
    text: str


class _FailedError(Exception):
    """A command that comes to nothing, and its exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def status(target: Target, server: str | None, *, as_json: bool, watch: float | None) -> int:
    """Print what is known of servers and adapters, once or every `watch` seconds; returns the exit code."""
    return _told(lambda: _status(target, server, as_json=as_json, watch=watch))


def adapters(target: Target, server: str | None, *, as_json: bool) -> int:
    """Print the adapters; returns the exit code."""
    return _told(lambda: _adapters(target, server, as_json=as_json))


def load(target: Target, server: str | None, name: str, path: str) -> int:
    """Have an adapter loaded and remembered; returns the exit code."""
    body = {"lora_name": name, "lora_path": path}
    return _told(lambda: _change(target, server, "load_lora_adapter", body, target.load_seconds + _SLACK))


def unload(target: Target, server: str | None, name: str) -> int:
    """Have an adapter unloaded and not loaded again; returns the exit code."""
    return _told(lambda: _change(target, server, "unload_lora_adapter", {"lora_name": name}, 60 + _SLACK))


def pause(target: Target, server: str | None, reason: str) -> int:
    """Have nothing loaded or unloaded until `resume`; returns the exit code."""
    return _told(lambda: _change(target, server, "pause", {"reason": reason}, 60 + _SLACK))


def resume(target: Target, server: str | None) -> int:
    """End a pause; returns the exit code."""
    return _told(lambda: _change(target, server, "resume", {}, 60 + _SLACK))


def _told(command: Callable[[], int]) -> int:
    try:
        return command()
    except _FailedError as error:
        print(error, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 0


def _status(target: Target, server: str | None, *, as_json: bool, watch: float | None) -> int:
    while True:
        state = _state(target, server)
        text = json.dumps(state) if as_json else table(state, datetime.now(UTC), _width())
        clear = _CLEAR if watch is not None and not as_json and sys.stdout.isatty() else ""
        print(clear + text, flush=True)
        if watch is None:
            return 0
        time.sleep(watch)  # noqa: TID251 - a command for a terminal: there is no loop


def _adapters(target: Target, server: str | None, *, as_json: bool) -> int:
    found = _state(target, server)["adapters"]
    print(json.dumps(found) if as_json else "\n".join(_rows(found, datetime.now(UTC), _width())))
    return 0


def _change(target: Target, server: str | None, action: str, body: Mapping[str, str], deadline: float) -> int:
    reply = _ask(target, "POST", _path(server, action), json.dumps(body), deadline)
    if reply.status in (200, 202):
        print(_changed(reply.text))
        return 0
    print(_sentence(reply), file=sys.stderr)
    return REFUSED


def _changed(text: str) -> str:
    try:
        servers = json.loads(text)["servers"]
    except (ValueError, KeyError, TypeError):
        return printable(text, _LINE_LIMIT)
    said = [f"{one['server']}: {'paused' if one['paused'] else 'not paused'}" for one in servers]
    return printable("; ".join(said), _LINE_LIMIT)


def _state(target: Target, server: str | None) -> dict[str, Any]:
    reply = _ask(target, "GET", _path(server, "adapters"), None, _PATIENCE)
    if reply.status != 200:  # noqa: PLR2004 - the status is the point
        raise _FailedError(REFUSED, _sentence(reply))
    try:
        state: dict[str, Any] = json.loads(reply.text)
        state["servers"], state["adapters"]
    except (ValueError, KeyError, TypeError):
        raise _FailedError(UNAVAILABLE, f"{target.url} answers, and is no control port of lora-sidecar") from None
    return state


def _path(server: str | None, action: str) -> str:
    return ("" if server is None else f"/servers/{quote(server, safe='')}") + f"/v1/{action}"


def _ask(target: Target, method: str, path: str, body: str | None, deadline: float) -> _Reply:
    url = urlsplit(target.url)
    if url.scheme != "http" or url.hostname is None:
        raise _FailedError(UNAVAILABLE, f"{target.url} is no url of a control port, such as http://127.0.0.1:9401")
    headers = {} if body is None else {"Content-Type": "application/json"}
    if target.token_file is not None:
        headers["Authorization"] = f"Bearer {_token(target.token_file)}"
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=deadline)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        reply = _Reply(response.status, response.read(_ANSWER_CAP).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException) as error:
        hint = "does lora-sidecar run, and is control.bind this address?"
        raise _FailedError(UNAVAILABLE, f"ask {target.url}: {str(error) or type(error).__name__} ({hint})") from None
    finally:
        connection.close()
    if reply.status == 401:  # noqa: PLR2004 - as above
        hint = "name the file with the token in control.token_file or --token-file"
        raise _FailedError(NO_PERMISSION, f"ask {target.url}: unauthorized ({hint})")
    return reply


def _token(path: str) -> str:
    try:
        token = Path(path).read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise _FailedError(NO_PERMISSION, f"read the token from {path}: {error}") from None
    if not token.isprintable():
        raise _FailedError(NO_PERMISSION, f"read the token from {path}: it has more than one line")
    return token


def _sentence(reply: _Reply) -> str:
    try:
        found = json.loads(reply.text)
    except ValueError:
        found = None
    match found:
        case {"error": {"message": str(text)}} | {"error": str(text)} | {"detail": str(text)}:
            return printable(text, _LINE_LIMIT)
        case _:
            return printable(f"HTTP {reply.status}: {reply.text}", 1000)


def table(state: Mapping[str, Any], now: datetime, width: int | None) -> str:
    """The state that the control port gives, as lines for a terminal of `width` columns, None for any."""
    lines: list[str] = []
    for server in state["servers"]:
        if lines:
            lines.append("")
        detail = f": {server['detail']}" if server["detail"] else ""
        since, beat = (_ago(server[key], now) for key in ("since", "heartbeat"))
        lines.append(f"{server['server']}: {server['state']} for {since}{detail}")
        if server["failing"]:
            lines.append(f"  its container should be ended: {server['failing']}")
        lines.append(
            f"  incarnation {server['incarnation']}, checkpoint {server['generation']}, last heartbeat {beat} ago"
        )
        for condition in server["conditions"]:
            hint = f" ({condition['hint']})" if condition["hint"] else ""
            lines.append(f"  {condition['type']}: {condition['message']}{hint}")
        mine = [one for one in state["adapters"] if one["server"] == server["server"]]
        lines += [f"  {row}" for row in _rows(mine, now, None)]
    return "\n".join(printable(line, width or _LINE_LIMIT) for line in lines)


def _rows(found: Sequence[Mapping[str, Any]], now: datetime, width: int | None) -> list[str]:
    if not found:
        return ["no adapters"]
    several = len({one["server"] for one in found}) > 1
    columns = (*(("server",) if several else ()), *_COLUMNS)
    cells = [[_cell(one, column, now) for column in columns] for one in found]
    drawn = tabulate(cells, [column.upper() for column in columns], tablefmt="plain", disable_numparse=True)
    return [printable(line, width or _LINE_LIMIT) for line in drawn.splitlines()]


def _cell(one: Mapping[str, Any], column: str, now: datetime) -> str:
    value = one[column]
    if column == "reason" and not value and one["proven"]:
        return "proven"
    if column == "since" and value is not None:
        return _ago(value, now)
    marked = "*" if column == "name" and one["required"] else ""
    return "-" if value is None else printable(str(value), _LINE_LIMIT) + marked


def _ago(date: str, now: datetime) -> str:
    seconds = max(0, int((now - datetime.fromisoformat(date)).total_seconds()))
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
