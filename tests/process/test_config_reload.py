from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_sidecar.reload import POLL_SECONDS
from tests.process.conftest import NewSidecar
from tests.support.http_client import Api
from tests.support.servers import RunningServer, free_port
from tests.support.sidecar import Sidecar, eventually, settings

OFTEN = "from lora_sidecar import reload\nreload.POLL_SECONDS = 0.05\n"


class Mount:
    """A ConfigMap as the kubelet mounts it: the file is a link through `..data`, which is swapped by a rename."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        folder.mkdir()
        self.file = folder / "sidecar.yaml"
        self.file.symlink_to("..data/sidecar.yaml")

    def put(self, text: str | None) -> None:
        """Swap in a new content, None for a ConfigMap that has lost the key."""
        self._number += 1
        fresh, data = self._folder / f"..2026_{self._number}", self._folder / "..data"
        former = data.readlink() if data.is_symlink() else None
        fresh.mkdir()
        if text is not None:
            (fresh / "sidecar.yaml").write_text(text)
        link = self._folder / "..data_tmp"
        link.symlink_to(fresh.name)
        link.rename(data)
        if former is not None:
            shutil.rmtree(self._folder / former)


class Edited:
    """A sidecar whose config is a mounted ConfigMap."""

    def __init__(self, sidecar: Sidecar, mount: Mount, url: str) -> None:
        self.sidecar = sidecar
        self._mount = mount
        self._url = url

    def edit(self, adapters: list[dict[str, Any]], **sections: Any) -> None:
        """Change the ConfigMap."""
        directory = self.sidecar.folder / "checkpoints"
        self._mount.put(yaml.safe_dump(settings(self._url, directory, adapters, **sections)))

    def put(self, text: str | None) -> None:
        """Change the ConfigMap to a text that is no config."""
        self._mount.put(text)


@pytest.fixture
async def edited(new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]) -> Edited:
    """A sidecar with a mounted config of three adapters, steady, that looks at it often."""
    sidecar = new_sidecar(vllm.url)
    mount = Mount(sidecar.folder / "etc")
    sidecar.config_file = mount.file
    edited = Edited(sidecar, mount, vllm.url)
    edited.edit(declared)
    await sidecar.start(prelude=OFTEN)
    await sidecar.event("restore.completed")
    await sidecar.beats(2)
    return edited


async def test_adapter_added(edited: Edited, declared: list[dict[str, Any]], api: Api) -> None:
    """An adapter that is added to the config is loaded, without a restart and at once."""
    edited.edit([*declared, {"name": "four", "path": "/adapters/four"}])

    await edited.sidecar.event("config.reloaded", adapters=4)
    await edited.sidecar.event("restore.succeeded", adapter="four")

    assert (await api.listed())["four"] == "/adapters/four"


async def test_usual_pace(new_sidecar: NewSidecar, vllm: RunningServer, declared: list[dict[str, Any]]) -> None:
    """A plain file that is replaced is noticed within the usual time, too."""
    sidecar = new_sidecar(vllm.url, declared[:1])
    await sidecar.start()
    await sidecar.event("restore.completed")

    sidecar.write_config(settings(vllm.url, sidecar.folder / "checkpoints", declared))
    await sidecar.event("config.reloaded", within=POLL_SECONDS + 2)


async def test_adapter_removed(edited: Edited, declared: list[dict[str, Any]], vllm: RunningServer, api: Api) -> None:
    """An adapter that is removed from the config stays loaded, is not adopted, and is not restored after a restart."""
    edited.edit(declared[:2])

    released = await edited.sidecar.event("adapter.orphaned")
    await edited.sidecar.beats(3)
    assert released["adapter"] == "three"
    assert sorted(await api.listed()) == ["one", "three", "two"]
    assert edited.sidecar.named("adapter.adopted") == []

    await vllm.restart()
    await edited.sidecar.event("recovery.completed")
    assert sorted(await api.listed()) == ["one", "two"]


async def test_bad_edit_and_mended(
    edited: Edited, declared: list[dict[str, Any]], vllm: RunningServer, api: Api
) -> None:
    """A bad edit is refused, told and shown; the old config stays in force until the edit is mended."""
    sidecar = edited.sidecar
    edited.put("servers: [{name: vllm, url: 'http://127.0.0.1:8000'}]\nadapterz: []\n")

    rejected = await sidecar.event("config.rejected")
    await sidecar.answers("/readyz?verbose", 200, "condition ConfigRejected")
    assert rejected["level"] == "warning"
    assert len(rejected["problems"]) == 1
    assert rejected["problems"][0].startswith("line 2: adapterz: ")
    await vllm.restart()
    await sidecar.event("recovery.completed")
    assert sorted(await api.listed()) == ["one", "three", "two"]
    assert 'type="ConfigRejected"' in (await sidecar.get("/metrics")).text

    edited.edit([*declared, {"name": "four", "path": "/adapters/four"}])
    await sidecar.event("config.reloaded", adapters=4)
    await sidecar.event("condition.cleared", condition="ConfigRejected")
    assert "ConfigRejected" not in (await sidecar.answers("/readyz?verbose", 200)).text
    assert len(sidecar.named("config.rejected")) == 1


async def test_bad_edit_taken_back(edited: Edited, declared: list[dict[str, Any]]) -> None:
    """Going back to the config that is in force clears the condition and reloads nothing."""
    edited.put("servers: []\n")
    await edited.sidecar.event("condition.raised", condition="ConfigRejected")

    edited.edit(declared)
    await edited.sidecar.event("condition.cleared", condition="ConfigRejected")

    assert edited.sidecar.named("config.reloaded") == []


@pytest.mark.parametrize("content", ["", "\x00\xff", "a" * 2_000_000, "servers: &a [*a]", "\t- }{"])
async def test_edit_that_is_no_config(edited: Edited, content: str) -> None:
    """Whatever the file holds, the daemon refuses it and lives."""
    edited.put(content)

    await edited.sidecar.event("config.rejected")
    await edited.sidecar.beats(2, verdict="steady")


async def test_file_removed_and_back(edited: Edited, declared: list[dict[str, Any]], api: Api) -> None:
    """A config that vanishes is kept in force, and its return is noticed."""
    edited.put(None)
    await edited.sidecar.event("config.rejected")
    await edited.sidecar.answers("/readyz?verbose", 200, "condition ConfigRejected")
    await edited.sidecar.beats(2, verdict="steady")

    edited.edit(declared)
    await edited.sidecar.event("condition.cleared", condition="ConfigRejected")

    assert sorted(await api.listed()) == ["one", "three", "two"]


async def test_url_changed(edited: Edited, declared: list[dict[str, Any]], api: Api) -> None:
    """A change that only a restart can apply is said so, with its key; whatever else changed is applied."""
    elsewhere = [{"name": "vllm", "url": f"http://127.0.0.1:{free_port()}"}]
    edited.edit([*declared, {"name": "four", "path": "/adapters/four"}], servers=elsewhere)

    raised = await edited.sidecar.event("condition.raised", condition="ConfigNeedsRestart")
    await edited.sidecar.event("restore.succeeded", adapter="four")
    assert "servers[0].url" in raised["message"]
    assert "four" in await api.listed()
    await edited.sidecar.answers("/readyz?verbose", 200, "condition ConfigNeedsRestart")

    edited.edit(declared)
    await edited.sidecar.event("condition.cleared", condition="ConfigNeedsRestart")


async def test_log_level_changed(edited: Edited, declared: list[dict[str, Any]], api: Api) -> None:
    """The log's level follows the config at once, in both directions."""
    sidecar = edited.sidecar
    quiet = {"level": "warning", "format": "json"}
    edited.edit([*declared, {"name": "four", "path": "/adapters/four"}], log=quiet)
    await eventually(lambda: _listed(api, "four"), "the quiet config is in force")
    edited.put("servers: []\n")
    rejected = await sidecar.event("config.rejected")

    edited.edit(declared)
    reloaded = await sidecar.event("config.reloaded")

    between = sidecar.events[sidecar.events.index(rejected) : sidecar.events.index(reloaded)]
    assert {line["level"] for line in between} == {"warning"}


async def _listed(api: Api, name: str) -> bool:
    return name in await api.listed()


async def test_three_hundred_swaps(edited: Edited, declared: list[dict[str, Any]]) -> None:
    """However quickly the mount is swapped, no half of a config is seen: none is refused, and the last one counts."""
    sidecar = edited.sidecar
    await sidecar.terminate()
    await sidecar.start(prelude="from lora_sidecar import reload\nreload.POLL_SECONDS = 0.001\n")
    await sidecar.beats(2)
    for number in range(300):
        edited.edit(declared[: 1 + number % 2])
        await asyncio.sleep(0)
    edited.edit([*declared, {"name": "last", "path": "/adapters/last"}])

    await sidecar.event("restore.succeeded", adapter="last")

    assert sidecar.named("config.rejected") == []
    assert all(line["adapters"] in {1, 2, 4} for line in sidecar.named("config.reloaded"))
    assert len(sidecar.named("config.reloaded")) > 10


async def test_fifo_in_place_of_the_file(edited: Edited, declared: list[dict[str, Any]]) -> None:
    """A file that blocks its reader stops neither the heartbeat nor the way back."""
    sidecar = edited.sidecar
    await sidecar.terminate()
    await sidecar.start(prelude=OFTEN + "reload._READ_SECONDS = 0.3\n")
    await sidecar.beats(2)
    file = sidecar.config_file
    file.unlink()
    os.mkfifo(file)
    rejected = await sidecar.event("config.rejected")
    await sidecar.beats(2, verdict="steady")
    assert rejected["problems"] == ["reading it takes too long"]

    # A writer lets the reader that hangs come to its end; what follows it is a plain file again.
    file.rename(file.with_name("fifo"))
    file.symlink_to("..data/sidecar.yaml")
    with file.with_name("fifo").open("wb") as writer:
        writer.write(b"servers: []")
    edited.edit(declared[:1])
    await sidecar.event("config.reloaded", adapters=1)
