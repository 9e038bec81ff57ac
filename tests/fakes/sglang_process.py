"""Runs the fake SGLang as a process of its own, with SGLang's flags; SIGTERM ends it.

The trap guarded against is a fake that is ready as soon as it listens: with `--warmup` it answers 503 first.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from tests.fakes.sglang import FakeSglang, SglangConfig


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    flags = argparse.ArgumentParser(prog="fake_sglang", description="Answers as SGLang 0.5.23 does, without a GPU.")
    switch = argparse.BooleanOptionalAction
    flags.add_argument("--host", default="127.0.0.1")
    flags.add_argument("--port", type=int, default=30000)
    flags.add_argument("--served-model-name", default="base")
    flags.add_argument("--enable-lora", action=switch, default=True)
    flags.add_argument("--max-loaded-loras", type=int)
    flags.add_argument("--max-lora-rank", type=int, default=16)
    flags.add_argument("--dp-size", type=int, default=1)
    flags.add_argument("--enable-memory-saver", action="store_true")
    flags.add_argument("--random-seed", type=int)
    flags.add_argument("--api-key")
    flags.add_argument("--admin-api-key")
    flags.add_argument("--check-files", action=switch, default=True, help="read the adapter folders as SGLang does")
    flags.add_argument("--start-delay", type=float, default=0.0, metavar="SECONDS")
    flags.add_argument("--warmup", type=float, default=0.0, metavar="SECONDS", help="how long it answers 503")
    flags.add_argument("--load-delay", type=float, default=0.0, metavar="SECONDS")
    flags.add_argument("--check-delay", type=float, default=1.0, metavar="SECONDS", help="how long /health takes")
    flags.add_argument("--version", default="0.5.23", help="answer as this version of SGLang")
    return flags


async def run(config: SglangConfig) -> None:
    """Serve until told to stop. Raises what `FakeSglang.start` raises."""
    told = asyncio.Event()
    async with FakeSglang(config) as fake:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        sys.stderr.write(f"The server is fired up and ready to roll! {fake.url}\n")
        sys.stderr.flush()
        await told.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server that the command line asks for; the exit status."""
    parsed = parser().parse_args(arguments)
    try:
        asyncio.run(run(SglangConfig(**vars(parsed))))
    except OSError as error:
        sys.stderr.write(f"ERROR: start the fake SGLang: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
