"""What every suite needs."""

from __future__ import annotations

import asyncio


def pytest_configure() -> None:
    """Have no event loop until a test makes one.

    pytest-asyncio asks for the current loop, and before Python 3.14 asking makes one that nobody closes.
    """
    asyncio.set_event_loop(None)
