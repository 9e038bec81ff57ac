from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.conftest import PATIENCE, NewSidecar
from tests.support.adapters import write_adapter
from tests.support.http_client import Api
from tests.support.servers import RunningServer

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROBE = {"by": "probe", "interval": "1s"}


def filled(folder: Path, value: float, *, part: str) -> Path:
    """Give every weight of the tensors whose names hold `part` this value."""
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    half = struct.pack("<f", value)[2:]
    for name, tensor in header.items():
        if part in name:
            begin, end = (8 + length + offset for offset in tensor["data_offsets"])
            data[begin:end] = half * ((end - begin) // 2)
    file.write_bytes(data)
    return folder


async def test_the_probe_tells_live_adapters_from_dead_and_idle_ones(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path], tmp_path: Path
) -> None:
    """Of four, one whose weights are no numbers says nothing usable, and one of zeros says what the base model says."""
    poisoned = filled(write_adapter(tmp_path / "poisoned", seed=50), math.nan, part="lora_")
    idle = filled(write_adapter(tmp_path / "idle", seed=51), 0.0, part="lora_B")
    declared = {"live-1": adapters[0], "live-2": adapters[1], "poisoned": poisoned, "idle": idle}
    sidecar = new_sidecar(vllm.url, [{"name": n, "path": str(p)} for n, p in declared.items()], verify=PROBE)
    await sidecar.start()
    told = await sidecar.event("verification.completed", within=PATIENCE)
    print(f"\n    {told}")
    assert sorted(await api.listed()) == sorted(declared)
    assert (told["adapters"], told["proven"]) == (4, 2)
    assert sorted(told["not_proven"]) == ["idle", "poisoned"]
    dead = await sidecar.event("condition.raised", condition="AdapterDead")
    assert dead["message"].startswith("poisoned: ")
    idle_told = await sidecar.event("condition.raised", condition="AdapterNotApplied")
    assert idle_told["message"].startswith("idle: ")
    assert (await sidecar.get("/serverz/vllm")).status == 200


async def test_an_idle_server_with_a_frozen_engine_is_found_by_the_probe(
    new_sidecar: NewSidecar, vllm: RunningServer, api: Api, adapters: Sequence[Path]
) -> None:
    """With nothing to load, /serverz turns 503 after SIGSTOP of the engine, and 200 by itself after SIGCONT."""
    declared = [{"name": "declared", "path": str(adapters[0])}]
    sidecar = new_sidecar(vllm.url, declared, verify=PROBE, server_health={"hung_after": "5s"})
    await sidecar.start()
    await sidecar.event("verification.completed", within=PATIENCE)
    vllm.stop_engine()
    try:
        await sidecar.answers("/serverz/vllm", 503, within=30)
        assert (await api.get("/health")).status == 200
    finally:
        vllm.continue_engine()
    await sidecar.answers("/serverz/vllm", 200, within=30)
    raised = {line["condition"] for line in sidecar.named("condition.raised")}
    assert raised == {"ServerHung"}
