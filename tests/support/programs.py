"""Programs that a test starts and that come to an end: a command of ours, a script of somebody else.

Two traps are guarded against. Whoever runs the tests may ignore SIGINT (`nohup`, a job in a script's background), and
an ignored signal stays ignored in every program that is started from there, so what a test interrupts goes on. And a
program that outlives its failed test is reported against whichever test comes next.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import FrameType

DEADLINE = 30.0
"""Seconds that a program may take on a busy machine before the test has failed."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Have whatever is started in this block end at SIGINT; this process itself goes on ignoring it if it did.

    That holds for each way to start a program: `execve` keeps an ignored signal ignored, and sets a handled one to its
    default. For the main thread alone, as `signal.signal` is.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, _take_no_notice)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _take_no_notice(_number: int, _frame: FrameType | None) -> None:
    """Ignore a signal in this process alone."""


@asynccontextmanager
async def started(
    *command: str | Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program with pipes for its two outputs, which is killed at the end of the block if it still runs."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        # To the end of its pipes too: they are closed by that.
        await process.communicate()


async def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run a program to its end; its status (negative for a signal) and what it said on its two outputs.

    Raises `TimeoutError` where it does not end, and then it is gone too.
    """
    async with started(*command, environment=environment) as process, asyncio.timeout(DEADLINE):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()
