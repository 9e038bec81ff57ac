"""Runs the fake server as a process of its own, with vLLM's flags and vLLM's ways of ending.

The trap guarded against is a fake process that dies more cleanly than vLLM. SIGTERM ends it with status 0, and so
does the death of its engine some seconds later; a load in flight at either keeps the process, deaf to SIGTERM and
with its port closed, until it is killed. A SIGTERM before it listens ends it at once. The engine is no process of its
own here: SIGUSR1 kills it, and SIGUSR2 freezes it or lets it go on.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from tests.fakes.vllm import FakeConfig, FakeVllm


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    flags = argparse.ArgumentParser(prog="fake_vllm", description="Answers as vLLM does, without a GPU.")
    switch = argparse.BooleanOptionalAction
    flags.add_argument("--host", default="127.0.0.1")
    flags.add_argument("--port", type=int, default=8000)
    flags.add_argument("--uds", help="listen on this unix socket instead")
    flags.add_argument("--version", default=FakeConfig().version, help="answer as this version of vLLM")
    flags.add_argument("--model", default="/models/tiny")
    flags.add_argument("--served-model-name", nargs="+", default=["base"])
    flags.add_argument("--max-model-len", type=int, default=512)
    flags.add_argument("--enable-lora", action=switch, default=True)
    flags.add_argument("--max-loras", type=int, default=4)
    flags.add_argument("--max-cpu-loras", type=int, default=64)
    flags.add_argument("--max-lora-rank", type=int, default=16)
    flags.add_argument("--lora-modules", nargs="+", default=[], metavar="NAME=PATH")
    flags.add_argument("--api-key", action="append", default=[])
    flags.add_argument("--runtime-lora", action=switch, default=True, help="VLLM_ALLOW_RUNTIME_LORA_UPDATING")
    flags.add_argument("--dev-mode", action="store_true", help="VLLM_SERVER_DEV_MODE")
    flags.add_argument("--gpu", action="store_true", help="a load into a sleeping engine destroys it")
    flags.add_argument("--rust", action="store_true", help="VLLM_USE_RUST_FRONTEND")
    flags.add_argument("--allowed-path-prefixes", nargs="+", default=[], metavar="FOLDER", help="for --rust")
    flags.add_argument("--deadly", nargs="+", default=[], metavar="PATH", help="the engine dies of loading these")
    flags.add_argument("--check-files", action=switch, default=True, help="read the adapter folders as vLLM does")
    flags.add_argument("--start-delay", type=float, default=0.0, metavar="SECONDS")
    flags.add_argument("--load-delay", type=float, default=0.0, metavar="SECONDS")
    flags.add_argument("--ssl-certfile")
    flags.add_argument("--ssl-keyfile")
    flags.add_argument("--ssl-ca-certs", help="require a client certificate that one of these signed")
    flags.add_argument("--engine-watchdog", type=float, default=5.0, metavar="SECONDS", help="VLLM_WATCHDOG_TIME_S")
    return flags


def config_from(arguments: argparse.Namespace) -> FakeConfig:
    """The server's config that the command line asks for."""
    values = {name: value for name, value in vars(arguments).items() if name in FakeConfig.__struct_fields__}
    values["served_model_name"] = tuple(arguments.served_model_name)
    values["allowed_path_prefixes"] = tuple(arguments.allowed_path_prefixes)
    values["deadly"] = tuple(arguments.deadly)
    values["api_key"] = tuple(arguments.api_key)
    values["lora_modules"] = tuple((name, path) for name, _, path in (m.partition("=") for m in arguments.lora_modules))
    return FakeConfig(**values)


async def run(config: FakeConfig, engine_watchdog: float) -> None:
    """Serve until told to stop or until the engine has died and `engine_watchdog` seconds have passed.

    Raises what `FakeVllm.start` raises.
    """
    fake = FakeVllm(config)
    await fake.start()
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    loop.add_signal_handler(signal.SIGUSR1, fake.engine.die)
    loop.add_signal_handler(signal.SIGUSR2, _toggle_hang, fake)
    _say(f"Application startup complete. Serving on {fake.url}")
    ends = [asyncio.create_task(told.wait()), asyncio.create_task(_engine_failure(fake, engine_watchdog))]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    _say("Shutting down")
    await fake.shut_down()


def _toggle_hang(fake: FakeVllm) -> None:
    fake.hung = not fake.hung
    _say("EngineCore hangs" if fake.hung else "EngineCore goes on")


async def _engine_failure(fake: FakeVllm, engine_watchdog: float) -> None:
    await fake.engine.death()
    _say("EngineCore died")
    try:
        async with asyncio.timeout(engine_watchdog):
            await fake.routes.ending.wait()
    except TimeoutError:
        return


def _say(line: str) -> None:
    sys.stderr.write(f"INFO:     {line}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server that the command line asks for; the exit status."""
    parsed = parser().parse_args(arguments)
    try:
        asyncio.run(run(config_from(parsed), parsed.engine_watchdog))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"ERROR:    start the fake vLLM: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
