"""A browser for the suite's pages; screenshots are kept where `LORA_SIDECAR_SCREENSHOTS` names a folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.process.conftest import api, new_sidecar, pytest_runtest_makereport, session, start_vllm, vllm
from tests.support.browser import Browser, Tab

__all__ = ["api", "new_sidecar", "pytest_runtest_makereport", "session", "start_vllm", "vllm"]

Keep = Callable[[Tab, str], Awaitable[Path]]


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    """A headless Chromium with an empty profile."""
    async with Browser(tmp_path / "profile") as browser:
        yield browser


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Takes a screenshot for somebody to look at, and gives its file."""
    folder = Path(os.environ.get("LORA_SIDECAR_SCREENSHOTS") or tmp_path)

    async def take(tab: Tab, name: str) -> Path:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        await tab.screenshot(folder / f"{name}.png")
        return folder / f"{name}.png"

    return take
