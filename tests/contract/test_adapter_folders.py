"""102 adapter folders as people have them: what the fake and our own look at them say, held to what real servers said.

The trap guarded against is a rule of ours that stands in for the engine's answer: what an engine accepts is never held
back, and what it refuses is named where a look at the folder can know. The folders are those of `support.cases`; the
answers were recorded on vLLM 0.32.0 (CPU) and 0.24.0 (GPU).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace

from lora_sidecar.files.folder import read_folder
from lora_sidecar.files.peft import Finding, Folder, Limits, Unseen, check
from lora_sidecar.files.safetensors import base_shape
from tests.fakes.folder import AdapterRefusedError, read_adapter
from tests.support.cases import CASES, write_cases
from tests.support.drafts import HIDDEN, INNER, LAYERS
from tests.support.http_client import Api

RECORDED = Path(__file__).parent / "cases"
MAX_RANK = 16

MODEL = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": LAYERS,
}

ONLY_THE_MODEL_TELLS = frozenset({"packed_qkv", "extra_module", "moe3d"})
"""Refused for modules that the model has not: known where `servers[].base_model_config` names its files."""

ONLY_THE_ENGINE_TELLS = frozenset({"lora_embed_grown", "upper_dtype_none"})
"""Refused for what other versions or other models take."""

ONLY_THE_ENGINE_SEES = frozenset({"hf_cache_broken", "symlink_loop"})
"""A link that leads nowhere from here may lead somewhere from there: said to be unseen, and not judged."""

WRONG_ANSWERS = frozenset({"layer9", "gqa_wrong_v"})
"""Accepted, and of another base model: held back where the user has named its files."""


class Answer(Struct, frozen=True):
    """What a server answered to a load: its status, and how the worker's sentence began, empty with 200."""

    name: str
    status: int
    said: str
    why: str = ""


class Answers(Struct, frozen=True):
    """What one server answered to all of them."""

    server: str
    on: str
    answers: tuple[Answer, ...]


def recorded(version: str) -> dict[str, Answer]:
    """What that version of vLLM answered, by the names of the folders."""
    text = (RECORDED / f"vllm-{version}.json").read_bytes()
    return {answer.name: answer for answer in msgspec.json.decode(text, type=Answers).answers}


STRICT, LENIENT = recorded("0.32.0"), recorded("0.24.0")
ACCEPTED = {name for name in CASES if 200 in (STRICT[name].status, LENIENT[name].status)}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Where each of the folders is."""
    return write_cases(tmp_path_factory.mktemp("cases") / "all")


def findings(path: Path, **limits: Any) -> tuple[Finding, ...]:
    """What is to be said of a folder."""
    folder = read_folder(str(path))
    assert isinstance(folder, Folder)
    return check(folder, replace(Limits(MAX_RANK, engine="vllm"), **limits))


def test_every_recorded_answer_has_its_folder() -> None:
    """Of both servers, and none besides."""
    assert CASES.keys() == STRICT.keys() == LENIENT.keys()
    assert (len(CASES), len(ACCEPTED)) == (102, 57)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("version", "answers"), [("0.32.0", STRICT), ("0.24.0", LENIENT)], ids=["0.32.0", "0.24.0"])
def test_the_fake_refuses_what_the_real_one_refused(
    paths: Mapping[str, Path], version: str, answers: Mapping[str, Answer], name: str
) -> None:
    """And nothing else, of both versions."""
    try:
        read_adapter(str(paths[name]), max_rank=MAX_RANK, version=version)
    except AdapterRefusedError:
        status = 500
    else:
        status = 200
    assert status == answers[name].status


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("name", CASES)
async def test_a_server_answers_as_recorded(api: Api, paths: Mapping[str, Path], name: str) -> None:
    """A load of each folder has the status that it had, and leaves the server as it was."""
    reply = await api.load(name, paths[name])
    assert reply.status == STRICT[name].status, reply.text
    if reply.status == 200:
        assert (await api.unload(name)).status == 200
    else:
        assert name not in await api.listed()
    assert (await api.get("/health")).status == 200


@pytest.mark.parametrize("name", sorted(ACCEPTED))
def test_what_an_engine_accepts_is_never_held_back(paths: Mapping[str, Path], name: str) -> None:
    """Whatever is found, and none of it is said to be refused by all."""
    found = findings(paths[name])

    assert [one for one in found if one.holds or not one.doubtful] == []


@pytest.mark.parametrize("name", sorted(CASES.keys() - ACCEPTED))
def test_what_every_version_refuses_is_named(paths: Mapping[str, Path], name: str) -> None:
    """Or said to be unseen; nothing of it is called sound but what the folder alone cannot tell."""
    found = findings(paths[name])
    if name in ONLY_THE_MODEL_TELLS:
        assert found == ()
        found = findings(paths[name], base=base_shape(json.dumps(MODEL).encode()))
    if name in ONLY_THE_ENGINE_SEES:
        folder = read_folder(str(paths[name]))
        assert isinstance(folder, Folder)
        assert isinstance(folder.weights, Unseen)
    assert (found == ()) is (name in ONLY_THE_ENGINE_TELLS | ONLY_THE_ENGINE_SEES)
    assert all(one.message and one.hint for one in found)


@pytest.mark.parametrize("name", sorted(ACCEPTED))
def test_a_base_model_that_the_user_names_holds_back_what_is_not_of_it(paths: Mapping[str, Path], name: str) -> None:
    """Those that would be served with wrong answers, and no other that an engine accepts."""
    found = findings(paths[name], base=base_shape(json.dumps(MODEL).encode()))

    assert any(one.holds for one in found) is (name in WRONG_ANSWERS)


@pytest.mark.parametrize("name", sorted(name for name in ACCEPTED if STRICT[name].status == 500))
def test_what_only_0_32_refuses_is_named_as_doubtful(paths: Mapping[str, Path], name: str) -> None:
    """Other versions take it."""
    assert [one.doubtful for one in findings(paths[name])] == [True]
