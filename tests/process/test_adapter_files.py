from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.process.conftest import NewSidecar
from tests.support.adapters import WEIGHTS, write_adapter
from tests.support.http_client import Api
from tests.support.servers import RunningServer
from tests.support.sidecar import eventually

SMALL = [f"a{n}" for n in range(8)]


async def test_a_huge_file_holds_up_no_other_adapter(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, tmp_path: Path
) -> None:
    """A sparse file of a TiB, the most urgent of all: the others are loaded at once, and it is sent soon, too."""
    paths = {name: write_adapter(tmp_path / "adapters" / name, layers=1) for name in ("huge", *SMALL)}
    os.truncate(paths["huge"] / WEIGHTS, 1 << 40)
    declared = [{"name": name, "path": str(path), "priority": int(name == "huge")} for name, path in paths.items()]
    sidecar = new_sidecar(vllm.url, declared, preflight={"timeout": "3s"})
    await sidecar.start()
    started = await sidecar.event("restore.started")
    assert started["first"] == "huge"

    async def all_but_it() -> bool:
        return set(SMALL) <= set(await api.listed())

    began = asyncio.get_running_loop().time()
    await eventually(all_but_it, "the others are listed")
    assert asyncio.get_running_loop().time() - began < 2.5
    assert "huge" not in await api.listed()
    succeeded = await sidecar.event("restore.succeeded", adapter="huge", within=20)
    assert 3.0 <= succeeded["seconds"] < 8.0
