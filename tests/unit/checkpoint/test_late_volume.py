from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lora_sidecar.checkpoint.decode import Checkpoint
from lora_sidecar.checkpoint.manager import CheckpointManager
from lora_sidecar.checkpoint.store import Store
from lora_sidecar.core.model import Desired, Incarnation, Origin
from lora_sidecar.threads import BlockingCall
from tests.support.core import adapter, desired

T = TypeVar("T")


class Late(BlockingCall):
    """A disk that answers from the second call on."""

    def __init__(self) -> None:
        super().__init__("late")
        self.calls = 0

    async def run(self, function: Callable[[], T], deadline: float) -> T:
        """Time out once."""
        self.calls += 1
        if self.calls == 1:
            raise TimeoutError
        return await super().run(function, deadline)


async def joined(directory: Path, remembered: Desired, known: Desired) -> Desired:
    """What is desired after a start at which the volume was late, with `known` at the first save."""
    store = Store(str(directory), "vllm", "json")
    store.open()
    store.load()
    store.save(Checkpoint(1, "vllm", remembered))
    store.close()
    at = [0.0]
    keeper = CheckpointManager(Store(str(directory), "vllm", "json"), 1.0, lambda: at[0], Late())
    nothing, _ = await keeper.open()
    assert nothing.adapters == {}
    at[0] = 10.0
    result, _ = await keeper.keep(known)
    await keeper.close(1.0)
    await asyncio.sleep(0)
    return result


async def test_what_was_learned_is_remembered_when_the_volume_comes(tmp_path: Path) -> None:
    """A volume that is late at the start costs nothing of what was learned."""
    after = await joined(tmp_path, desired(adapter("chat")), desired(adapter("sql", Origin.DECLARED)))
    assert sorted(after.adapters) == ["chat", "sql"]


async def test_what_the_config_names_no_more_does_not_come_back_with_the_volume(tmp_path: Path) -> None:
    """The config was in force before the checkpoint could be read, and alone says what is declared."""
    after = await joined(tmp_path, desired(adapter("old", Origin.DECLARED)), desired(adapter("new", Origin.DECLARED)))
    assert sorted(after.adapters) == ["new"]


async def test_what_was_unloaded_in_this_life_is_told_from_what_was_lost(tmp_path: Path) -> None:
    """What was seen listed in this very life of the server is still known to have been, once it can be read."""
    life = Incarnation(7, 100.0)
    remembered = Desired({"chat": adapter("chat")}, life, frozenset({"chat"}))
    same = await joined(tmp_path, remembered, Desired({}, Incarnation(1, 100.0)))
    assert same.listed == {"chat"}


async def test_what_was_listed_in_a_former_life_was_lost(tmp_path: Path) -> None:
    """In another life of the server, or one that is not known to be the same, nothing was listed yet."""
    remembered = Desired({"chat": adapter("chat")}, Incarnation(7, 100.0), frozenset({"chat"}))
    for number, start_time in ((0, 200.0), (1, None)):
        (tmp_path / str(number)).mkdir()
        other = await joined(tmp_path / str(number), remembered, Desired({}, Incarnation(1, start_time)))
        assert other.listed == frozenset()
