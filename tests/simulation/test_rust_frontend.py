"""vLLM's Rust frontend in the life of a pod; the fake answers as its source does, and no real one runs here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from lora_sidecar.core.model import Origin
from lora_sidecar.status.adapters import AdapterState
from lora_sidecar.status.board import adapters_of
from tests.fakes.vllm import FakeConfig
from tests.simulation.conftest import Pod, PodMaker
from tests.support.adapters import SMALL, write_adapter

pytestmark = pytest.mark.looptime


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """An adapter's folder as a symbolic link to a version of it."""
    write_adapter(tmp_path / "store" / "v1", **SMALL)
    write_adapter(tmp_path / "store" / "v2", **SMALL)
    link = tmp_path / "current"
    link.symlink_to("store/v1")
    return link


def swing(link: Path) -> None:
    """Have the link point to the other version."""
    link.unlink()
    link.symlink_to("store/v2")


def rust(*allowed: Path) -> FakeConfig:
    """A server with the Rust frontend that takes adapters from these folders."""
    return FakeConfig(rust=True, check_files=False, allowed_path_prefixes=tuple(map(str, allowed)))


def conditions(pod: Pod) -> dict[ConditionType, str]:
    """The conditions that hold now."""
    return {one.type: one.message for one in pod.status.conditions}


async def test_a_symbolic_link_is_no_drift(make_pod: PodMaker, linked: Path, tmp_path: Path) -> None:
    """A declared link that is listed with its target is the adapter that was asked for, also after our own restart."""
    async with make_pod(f"adapters: [{{name: sql, path: {linked}, required: true}}]", server=rust(tmp_path)) as pod:
        await pod.until_listed("sql")
        for _ in range(2):
            await asyncio.sleep(60)
            (status,) = adapters_of(pod.status)
            assert status.state is AdapterState.LISTED
            assert (status.adapter.path, status.adapter.listed_as) == (str(linked), f"{tmp_path}/store/v1")
            assert conditions(pod) == {}
            await pod.die()
            await pod.start()
        assert pod.loads() == ["sql"]
    assert [one for one in pod.of(EventName.DRIFT_DETECTED) if one.fields["replaced"]] == []


async def test_a_link_that_was_swung_is_loaded_from_where_it_points(
    make_pod: PodMaker, linked: Path, tmp_path: Path
) -> None:
    """After a restart the declared path is sent again, and the new target that is listed is no drift either."""
    async with make_pod(f"adapters: [{{name: sql, path: {linked}}}]", server=rust(tmp_path)) as pod:
        await pod.until_listed("sql")
        await asyncio.sleep(10)
        swing(linked)
        await pod.server.restart()
        await pod.until_listed("sql")
        await asyncio.sleep(60)
        assert pod.server.adapters == {"sql": f"{tmp_path}/store/v2"}
        assert conditions(pod) == {}


async def test_another_folder_behind_the_name_is_drift(make_pod: PodMaker, linked: Path, tmp_path: Path) -> None:
    """What somebody else loaded under a declared name is told: only our own load says what a path becomes."""
    async with make_pod(settings="policy: {replace: never}", server=rust(tmp_path)) as pod:
        await pod.somebody_loads("sql", f"{tmp_path}/store/v2")
        pod.reconfigure(f"adapters: [{{name: sql, path: {linked}}}]")
        await asyncio.sleep(30)
        assert ConditionType.ADAPTER_PATH_DIFFERS in conditions(pod)
        assert pod.loads() == []


async def test_a_learned_adapter_comes_back_by_its_real_path(make_pod: PodMaker, tmp_path: Path) -> None:
    """It was adopted as it was listed, and the server takes that path again."""
    write_adapter(tmp_path / "store" / "v1", **SMALL)
    async with make_pod(server=rust(tmp_path)) as pod:
        await pod.somebody_loads("chat", f"{tmp_path}/store/v1")
        await pod.until(lambda: bool(pod.of(EventName.ADAPTER_ADOPTED)), 6)
        await pod.server.kill()
        await asyncio.sleep(10)
        await pod.server.start()
        await pod.until_listed("chat")
        await asyncio.sleep(30)
        assert pod.loads() == ["chat"]
        assert pod.status.desired.adapters["chat"].origin is Origin.ADOPTED
    assert pod.of(EventName.ADAPTER_REPLACED) == []


@pytest.mark.parametrize("allowed", [(), ("store",)])
async def test_a_refused_prefix_names_the_setting(
    make_pod: PodMaker, linked: Path, tmp_path: Path, allowed: tuple[str, ...]
) -> None:
    """A path that the server was not allowed to read is parked, and the condition names what has to be set."""
    server = rust(*(tmp_path / "elsewhere" / name for name in allowed))
    async with make_pod(f"adapters: [{{name: sql, path: {linked}}}]", server=server) as pod:
        await asyncio.sleep(120)
        assert "VLLM_RUNTIME_LORA_ALLOWED_PATH_PREFIXES" in conditions(pod)[ConditionType.ADAPTER_FAILING]
        assert pod.loads() == ["sql"]
        assert [one.state for one in adapters_of(pod.status)] == [AdapterState.PARKED]


async def test_without_a_start_time_an_outage_still_restores(make_pod: PodMaker, linked: Path, tmp_path: Path) -> None:
    """The Rust frontend publishes no start of its process; an outage that was seen is evidence enough."""
    async with make_pod(f"adapters: [{{name: sql, path: {linked}}}]", server=rust(tmp_path)) as pod:
        await pod.until_listed("sql")
        await pod.server.kill()
        await asyncio.sleep(10)
        await pod.server.start()
        assert await pod.until_listed("sql") < 1.0
        assert pod.status.desired.incarnation.start_time is None
