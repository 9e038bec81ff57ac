"""Notices that the mounted config changed, and hands over a valid one.

The traps guarded against: a ConfigMap is swapped by renaming a link, which file watching reports differently on every
system and `stat` on the file alone misses; so the content is read again and compared. In the middle of a swap the file
is gone for an instant; so one absence is looked at twice. And a bad edit must not disarm the watchdog: the last good
config stays in force and a condition says so until the file is mended.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Final

from lora_sidecar.config.changes import restart_needed
from lora_sidecar.config.load import parse, read
from lora_sidecar.config.settings import Config
from lora_sidecar.core.conditions import Condition, ConditionType, transitions
from lora_sidecar.core.errors import ConfigError
from lora_sidecar.core.events import EventName, info, warning
from lora_sidecar.status.board import Board
from lora_sidecar.threads import BlockingCall

POLL_SECONDS: Final = 2.0
_READ_SECONDS: Final = 5.0
_PARSE_SECONDS: Final = 60.0


class Reloader:
    """Watches one config file on behalf of everybody."""

    def __init__(
        self, path: str, config: Config, board: Board, report: Callable[..., None], apply: Callable[[Config], None]
    ) -> None:
        """`config` is the one in force, read from `path`; `apply` is called with each valid one that differs."""
        self._path = path
        self._started_with = config
        self._config = config
        self._board = board
        self._report = report
        self._apply = apply
        self._offloader = BlockingCall("config")
        self._digest: bytes | None = None
        self._needs_restart: Condition | None = None

    async def run(self) -> None:
        """Look every 2 s, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(POLL_SECONDS)

    async def look(self) -> None:
        """Read the file once, and take over what it says if it is new and valid."""
        try:
            data = await self._read()
        except (ConfigError, TimeoutError) as error:
            self._digest = None
            self._reject(error)
            return
        digest = hashlib.sha256(data).digest()
        if digest == self._digest:
            return
        self._digest = None
        try:
            # Not in the loop: on a slice of a processor a long config takes seconds.
            config = await self._offloader.run(lambda: parse(data, self._path), _PARSE_SECONDS)
        except TimeoutError as error:
            self._reject(error)
            return
        except ConfigError as error:
            self._reject(error)
        else:
            self._accept(config)
        self._digest = digest

    async def _read(self) -> bytes:
        try:
            return await self._offloader.run(lambda: read(self._path), _READ_SECONDS)
        except ConfigError:
            await asyncio.sleep(_READ_SECONDS / 50)
            return await self._offloader.run(lambda: read(self._path), _READ_SECONDS)

    def _accept(self, config: Config) -> None:
        changed = config != self._config
        self._needs_restart = _needs_restart(restart_needed(self._started_with, config))
        if changed:
            self._config = config
            self._board.config_generation += 1
            self._apply(config)
            self._report(
                info(EventName.CONFIG_RELOADED, adapters=len(config.adapters), generation=self._board.config_generation)
            )
        self._show(None)

    def _reject(self, error: ConfigError | TimeoutError) -> None:
        told = [str(p) for p in error.problems] if isinstance(error, ConfigError) else ["reading it takes too long"]
        rejected = Condition(
            ConditionType.CONFIG_REJECTED,
            f"{self._path}: {'; '.join(told[:5])}",
            "mend the file; until then the config before it stays in force",
        )
        self._report(
            warning(
                EventName.CONFIG_REJECTED, repeats="; ".join(told), source=self._path, problems=told, hint=rejected.hint
            )
        )
        self._show(rejected)

    def _show(self, rejected: Condition | None) -> None:
        before = self._board.config_conditions
        self._board.config_conditions = tuple(c for c in (rejected, self._needs_restart) if c is not None)
        self._report(*transitions(before, self._board.config_conditions))


def _needs_restart(fields: tuple[str, ...]) -> Condition | None:
    if not fields:
        return None
    message = f"these take effect at the next start only: {', '.join(fields)}"
    return Condition(ConditionType.CONFIG_NEEDS_RESTART, message, "restart the sidecar's container to apply them")
