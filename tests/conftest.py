"""What every suite needs."""

from __future__ import annotations

import asyncio

from hypothesis import settings

# A slow machine is no failure; an example that hangs meets the limit of its test.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")


def pytest_configure() -> None:
    """Have no event loop until a test makes one.

    pytest-asyncio asks for the current loop, and before Python 3.14 asking makes one that nobody closes.
    """
    asyncio.set_event_loop(None)
