"""The command line: to run, to check a config, to ask a running sidecar, to look at a checkpoint, to edit manifests.

The trap guarded against is a check that disturbs what it checks: `check` and `checkpoint` take no lock and no port and
load nothing, and the daemon is imported only to be run.

Exit codes: 0 done, or stopped by a signal; 1 refused by the sidecar or the server, or not alive; 64 usage; 65 a
checkpoint that does not verify, or a manifest that is refused; 66 nothing to read; 69 no sidecar answers, `check` found
something to mend, or an extra is not installed; 70 a bug; 73 a manifest cannot be written; 75 the lock is held; 77 the
token is missing or wrong; 78 bad config.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

from lora_sidecar import __version__
from lora_sidecar.cli import convert, inject
from lora_sidecar.config.load import parse, read
from lora_sidecar.config.process import OpsConfig
from lora_sidecar.config.reference import example, json_schema
from lora_sidecar.config.settings import Config
from lora_sidecar.core.errors import ConfigError
from lora_sidecar.lean import without_openssl, without_system_certificates

NOT_ALIVE: Final = 1
USAGE: Final = 64
BAD_DATA: Final = 65
NOT_READY: Final = 69
BAD_CONFIG: Final = 78
DEFAULT_CONFIG: Final = "/etc/lora-sidecar/sidecar.yaml"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    match options.command:
        case "run":
            return _run(options.config)
        case "check":
            return _check(options.config, config_only=options.config_only)
        case "status" | "adapters" | "pause" | "resume":
            return _ask(options)
        case "schema":
            return _schema()
        case "config":
            return _config(options)
        case "checkpoint":
            return _checkpoint(options.action, options.file)
        case "healthcheck":
            return _healthcheck(options.config)
        case "inject":
            return inject.run(options)
        case _:
            raise AssertionError(options.command)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lora-sidecar", description="Keeps the LoRA adapters of a vLLM server loaded.")
    parser.add_argument("--version", action="version", version=f"lora-sidecar {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    run = commands.add_parser("run", help="guard the servers of a config until a signal")
    run.add_argument("--config", default=DEFAULT_CONFIG, help="the YAML file (default: %(default)s)")
    check = commands.add_parser("check", help="say everything that is wrong with a set-up, and what would be done")
    check.add_argument("--config", default=DEFAULT_CONFIG, help="the YAML file (default: %(default)s)")
    check.add_argument("--config-only", action="store_true", help="look at the file alone, at no server and no folder")
    _add_questions(commands)
    commands.add_parser("schema", help="print the JSON Schema of the config")
    config = commands.add_parser("config", help="write a config")
    writing = config.add_subparsers(dest="action", required=True, parser_class=_Parser)
    writing.add_parser("example", help="print every key with its default and its meaning")
    convert.add_parser(writing)
    inject.add_parser(commands)
    checkpoint = commands.add_parser("checkpoint", help="look at a checkpoint file")
    checkpoint.add_argument("action", choices=["show", "verify"])
    checkpoint.add_argument("file", help="the checkpoint's path")
    health = commands.add_parser("healthcheck", help="ask the sidecar of this host whether it is alive")
    health.add_argument("--config", default=DEFAULT_CONFIG, help="the YAML file it runs with (default: %(default)s)")
    return parser


def _add_questions(commands: argparse._SubParsersAction[_Parser]) -> None:
    """Add the commands that ask a running sidecar."""
    where = _Parser(add_help=False)
    where.add_argument("--config", default=DEFAULT_CONFIG, help="names the control port (default: %(default)s)")
    where.add_argument("--url", help="the control port itself, http://host:port, instead of a config")
    where.add_argument("--token-file", help="the file with its token, with --url")
    where.add_argument("--server", help="the server's name in the config, where there are several")
    status = commands.add_parser("status", parents=[where], help="what is known of servers and adapters")
    status.add_argument("--json", action="store_true", help="as one line of JSON")
    status.add_argument("--watch", nargs="?", type=_seconds, const=2.0, metavar="SECONDS", help="again and again")
    adapters = commands.add_parser("adapters", help="list, load and unload adapters")
    actions = adapters.add_subparsers(dest="action", required=True, parser_class=_Parser)
    listing = actions.add_parser("list", parents=[where], help="the adapters that are remembered, and their state")
    listing.add_argument("--json", action="store_true", help="as one line of JSON")
    load = actions.add_parser("load", parents=[where], help="load an adapter, now and after every restart")
    load.add_argument("name")
    load.add_argument("path", help="a folder that the server sees, or a hub id")
    unload = actions.add_parser("unload", parents=[where], help="unload an adapter, and do not load it again")
    unload.add_argument("name")
    pause = commands.add_parser("pause", parents=[where], help="load and unload nothing until resume")
    pause.add_argument("reason", help="what people read in readiness and status meanwhile")
    commands.add_parser("resume", parents=[where], help="end a pause")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:  # noqa: PLR2004 - bounds that nobody needs to leave
        raise ValueError(text)
    return seconds


def _ask(options: argparse.Namespace) -> int:
    from lora_sidecar.cli import client as console  # noqa: PLC0415 - no part of the daemon

    if options.url is not None:
        target = console.Target(options.url, options.token_file)
    else:
        try:
            target = console.Target.of(parse(read(options.config), options.config))
        except ConfigError as error:
            _print_problems(error)
            return BAD_CONFIG
    server: str | None = options.server
    match (options.command, getattr(options, "action", None)):
        case ("status", _):
            return console.status(target, server, as_json=options.json, watch=options.watch)
        case ("adapters", "list"):
            return console.adapters(target, server, as_json=options.json)
        case ("adapters", "load"):
            return console.load(target, server, options.name, options.path)
        case ("adapters", "unload"):
            return console.unload(target, server, options.name)
        case ("pause", _):
            return console.pause(target, server, options.reason)
        case _:
            return console.resume(target, server)


def _run(path: str) -> int:
    config = _parsed(path)
    if config is None:
        return BAD_CONFIG
    for number in (signal.SIGTERM, signal.SIGINT):
        # As the first process of a container it would not hear of them before the daemon listens.
        signal.signal(number, _leave)
    with without_system_certificates() if _wants_tls(config) else without_openssl():
        from lora_sidecar.daemon import run  # noqa: PLC0415 - only this command needs an event loop

    return run(path, config)


def _wants_tls(config: Config) -> bool:
    """Whether a server is asked over TLS; its url cannot be changed without a restart."""
    return any(server.url.startswith("https://") for server in config.servers)


def _leave(_: int, __: FrameType | None) -> None:
    os._exit(0)


def _check(path: str, *, config_only: bool) -> int:
    config = _parsed(path)
    if config is None:
        return BAD_CONFIG
    for server in config.servers:
        print(f"{path}: guards {server.name} at {server.url}")
    for adapter in config.adapters:
        required = ", required" if adapter.required else ""
        print(f"{path}: keeps {adapter.name} from {adapter.path} (priority {adapter.priority}{required})")
    if config_only:
        print(f"{path}: ok")
        return 0
    from lora_sidecar.cli.check import examine  # noqa: PLC0415 - only this command needs it

    found = examine(config)
    problems = [one for one in found if one.problem]
    for one in found:
        print(f"problem: {one.text}" if one.problem else one.text, file=sys.stderr if one.problem else sys.stdout)
    print(f"{path}: {len(problems)} problems" if problems else f"{path}: ok")
    return NOT_READY if problems else 0


def _parsed(path: str) -> Config | None:
    """Return the config of a file, or None with its problems told."""
    data = b""
    try:
        data = read(path)
        return parse(data, path)
    except ConfigError as error:
        _print_problems(error)
        advice = convert.advice(data, path)
        if advice is not None:
            print(f"{path}: {advice}", file=sys.stderr)
        return None


def _print_problems(error: ConfigError) -> None:
    for problem in error.problems:
        print(f"{error.source}: {problem}", file=sys.stderr)


def _schema() -> int:
    print(json.dumps(json_schema(), indent=2))
    return 0


def _config(options: argparse.Namespace) -> int:
    match options.action:
        case "example":
            print(example(), end="")
            return 0
        case "convert":
            return convert.run(options)
        case _:
            raise AssertionError(options.action)


def _checkpoint(action: str, path: str) -> int:
    from lora_sidecar.cli.checkpoint import show, verify  # noqa: PLC0415 - no part of the daemon

    return 0 if (show if action == "show" else verify)(path) else BAD_DATA


def _healthcheck(path: str) -> int:
    from lora_sidecar.cli.healthcheck import ask  # noqa: PLC0415 - no part of the daemon

    try:
        bind = parse(read(path), path).ops.bind
    except ConfigError:
        # A bad edit leaves the last good config in force, which is not known here: its port is most likely the default.
        bind = OpsConfig().bind
    health = ask(bind)
    print(health.text)
    return 0 if health.alive else NOT_ALIVE
