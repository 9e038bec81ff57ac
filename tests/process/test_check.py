from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.process.conftest import StartVllm
from tests.support.adapters import CONFIG, WEIGHTS, write_adapter
from tests.support.drafts import Draft
from tests.support.programs import run
from tests.support.sidecar import settings


async def check(folder: Path, config: Mapping[str, Any]) -> tuple[int, list[str], list[str]]:
    """The exit status of `lora-sidecar check`, and the lines of its two outputs."""
    file = folder / "sidecar.yaml"
    file.write_text(yaml.safe_dump(dict(config)))
    status, out, err = await run(sys.executable, "-m", "lora_sidecar", "check", "--config", file)
    return status, out.splitlines(), err.splitlines()


def having(lines: Sequence[str], *parts: str) -> list[str]:
    """The lines that have all these parts in them."""
    return [line for line in lines if all(part in line for part in parts)]


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """A folder with a sound adapter, two that no vLLM takes as it is, and one that is not sent unless it is allowed."""
    folder = tmp_path / "adapters"
    write_adapter(folder / "good", layers=1)
    write_adapter(folder / "wide", rank=64, layers=1)
    write_adapter(folder / "dora", use_dora=True, layers=1)
    Draft().as_torch("adapter_model.bin").write(folder / "pickle")
    return folder


async def test_a_sound_setup_prints_its_plan(start_vllm: StartVllm, tmp_path: Path, adapters: Path) -> None:
    """Nothing to mend is status 0, with what would be loaded; and nothing is loaded or written by it."""
    server = await start_vllm()
    state = tmp_path / "state"
    state.mkdir()
    good = {"name": "good", "path": str(adapters / "good")}
    far = {"name": "far", "path": "org/far"}
    status, out, err = await check(tmp_path, settings(server.url, state, [good, far]))

    assert (status, err) == (0, [])
    assert having(out, "adapter good", "sound")
    assert having(out, "adapter far", "unchecked, it is a hub id")
    assert having(out, "plan: to load good from")
    assert list(state.iterdir()) == []
    assert having(server.log.read_text().splitlines(), "load_lora_adapter", "POST") == []


async def test_every_problem_of_a_broken_setup_is_named_at_once(
    start_vllm: StartVllm, tmp_path: Path, adapters: Path
) -> None:
    """Route off, base model, wrong path, rank, a feature, a name, a directory: each has a line, with what to do."""
    server = await start_vllm(runtime_lora=False)
    declared = [{"name": name, "path": str(adapters / name)} for name in ("good", "wide", "dora", "typo")]
    config = settings(server.url, tmp_path / "nowhere", declared)
    config["servers"][0] |= {"max_lora_rank": 16, "base_model": "llama"}
    status, out, err = await check(tmp_path, config)

    assert status == 69
    assert all(line.startswith("problem: ") and line.endswith(")") for line in err), err
    assert having(err, str(tmp_path / "nowhere"), "ENOENT", "mount a volume")
    assert having(err, "no route to load adapters", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True")
    assert having(err, "adapter wide", "LoRA rank 64 is greater than max_lora_rank 16.", "--max-lora-rank 64")
    assert having(err, "adapter dora", "vLLM does not yet support DoRA.")
    assert having(err, "adapter typo", "No adapter found for", "is the path right")
    assert having(err, "base_model_absent", "not 'llama'", "is servers[].url the right server")
    assert len(err) == 6
    assert out[-1].endswith("6 problems")
    assert having(out, "plan: to load and unload nothing until")


async def test_the_plan_is_that_of_the_daemon(start_vllm: StartVllm, tmp_path: Path, adapters: Path) -> None:
    """What would not be sent is not planned, and what "sound" leaves out is said; a taken name is a problem."""
    server = await start_vllm()
    state = tmp_path / "state"
    state.mkdir()
    declared = [{"name": name, "path": str(adapters / name)} for name in ("good", "dora", "pickle")]
    config = settings(server.url, state, [*declared, {"name": "base", "path": str(adapters / "good")}])
    status, out, err = await check(tmp_path, config)

    assert status == 69
    assert having(out, "plan: to load good from")
    assert having(err, "adapter dora", "vLLM does not yet support DoRA.")
    assert having(out, "plan: to load dora from")
    assert having(out, "plan: not to load pickle: preflight, not sent: its weights are a pickle")
    assert not having(out, "plan: to load pickle")
    assert having(err, "AdapterNameTaken", "base: its name is that of a served base model", "another name")
    assert having(out, "ranks are not checked", "servers[].max_lora_rank")
    assert having(out, "shapes are not checked", "servers[].base_model_config")


async def test_what_the_engine_refuses_is_not_called_sound(start_vllm: StartVllm, tmp_path: Path) -> None:
    """What a person can mend is named, each with what to do; what only some versions refuse is no problem."""
    server = await start_vllm()
    state, folder = tmp_path / "state", tmp_path / "adapters"
    state.mkdir()
    Draft().text(lambda text: b"\xef\xbb\xbf" + text).write(folder / "bom")
    Draft().text(lambda text: text.decode().encode("utf-16")).write(folder / "utf16")
    Draft().say(lora_alpha=None).write(folder / "alpha")
    Draft().header({"step": 500}).write(folder / "metadata")
    Draft().weightless().file("adapter_model.bin", b"").write(folder / "empty")
    Draft().weights(lambda _: b"version https://git-lfs.github.com/spec/v1\n").write(folder / "pointer")
    Draft().say(bias="all").write(folder / "doubt")
    folder.joinpath("link").symlink_to("/volume-of-the-server/a")
    (Draft().write(folder / "far") / WEIGHTS).unlink()
    (folder / "far" / WEIGHTS).symlink_to("/volume-of-the-server/weights")
    names = [path.name for path in folder.iterdir()]
    config = settings(server.url, state, [{"name": name, "path": str(folder / name)} for name in names])
    config["preflight"] = {"allow_pickle": True}
    status, out, err = await check(tmp_path, config)

    assert (status, len(err)) == (69, 6)
    assert having(err, "adapter bom", CONFIG, "byte order mark")
    assert having(err, "adapter utf16", CONFIG, "UTF-16")
    assert having(err, "adapter alpha", "`lora_alpha` is None")
    assert having(err, "adapter metadata", "something else than text in the __metadata__")
    assert having(err, "adapter empty", "adapter_model.bin is empty")
    assert having(err, "adapter pointer", "is a Git LFS pointer", "git lfs pull")
    assert having(out, "adapter doubt", "some versions of the engine refuse it", "Adapter bias is not supported.")
    assert having(out, "adapter link", "unchecked, it cannot be seen from here")
    assert having(out, "adapter far", f"unchecked, {WEIGHTS} is a link that leads nowhere from here")
    assert not having(out, "adapter ", "sound")
    assert len(having(out, "plan: to load")) == len(names)


async def test_a_folder_for_two_servers_is_told_once(start_vllm: StartVllm, tmp_path: Path, adapters: Path) -> None:
    """Each problem has one line, and each server a plan of its own."""
    left, right = await start_vllm(), await start_vllm()
    state = tmp_path / "state"
    state.mkdir()
    config = settings(left.url, state, [{"name": "pickle", "path": str(adapters / "pickle")}])
    config["servers"] = [{"name": "left", "url": left.url}, {"name": "right", "url": right.url}]
    status, out, err = await check(tmp_path, config)

    assert (status, len(err)) == (69, 1)
    assert having(out, "plan for left: not to load pickle")
    assert having(out, "plan for right: not to load pickle")


async def test_a_key_that_is_wrong_and_a_base_model_that_is_not_there(start_vllm: StartVllm, tmp_path: Path) -> None:
    """Two servers are both looked at, and each says what is wrong with it."""
    locked, other = await start_vllm(api_key="right"), await start_vllm()
    key, state = tmp_path / "key", tmp_path / "state"
    key.write_text("wrong")
    state.mkdir()
    config = settings(locked.url, state)
    config["servers"] = [
        {"name": "locked", "url": locked.url, "api_key_file": str(key)},
        {"name": "other", "url": other.url, "base_model": "llama"},
        {"name": "gone", "url": "http://127.0.0.1:9"},
    ]
    status, _, err = await check(tmp_path, config)

    assert status == 69
    assert having(err, "server locked", "unauthorized", "the key in api_key_file")
    assert having(err, "server other", "base_model_absent", "'llama'")
    assert having(err, "server gone", "refused")
    assert len(err) == 3


async def test_a_checkpoint_directory_that_cannot_be_written(start_vllm: StartVllm, tmp_path: Path) -> None:
    """A file in the place of the directory is named, with what to do."""
    server = await start_vllm()
    (tmp_path / "state").write_text("")
    status, _, err = await check(tmp_path, settings(server.url, tmp_path / "state"))

    assert status == 69
    assert having(err, str(tmp_path / "state"), "ENOTDIR")
