"""What every suite needs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.programs import interruptible

# A slow machine is no failure; an example that hangs meets the limit of its test.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")


def pytest_configure() -> None:
    """Have no event loop until a test makes one.

    pytest-asyncio asks for the current loop, and before Python 3.14 asking makes one that nobody closes.
    """
    asyncio.set_event_loop(None)


@pytest.fixture(scope="session", autouse=True)
def _whatever_is_started_can_be_interrupted() -> Iterator[None]:
    """Tests run under `nohup` and in a script's background too."""
    with interruptible():
        yield
