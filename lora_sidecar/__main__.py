"""Runs the command line as `python -m lora_sidecar`, and as the first process of a container.

The trap guarded against is a pod that takes its whole grace period to go: the kernel gives the first process of a
container only those signals that it handles, and importing the program takes longer than it takes to delete a pod.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Handle signals where nothing else would, then run the command line, which takes them over."""
    if os.getpid() == 1:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
    from lora_sidecar.cli.main import main as run  # noqa: PLC0415 - not before the signals are handled

    sys.exit(run())


def _leave(_: int, __: FrameType | None) -> None:
    os._exit(0)


if __name__ == "__main__":
    main()
