from __future__ import annotations

import json
from typing import Any

import pytest

from lora_sidecar.core.outcomes import FailureKind
from lora_sidecar.files.peft import Engine, Finding, Folder, Hold, Limits, NotAFile, Unseen, Weights, check
from lora_sidecar.files.safetensors import BaseShape
from tests.support.adapters import CONFIG, WEIGHTS, adapter_config
from tests.support.drafts import HIDDEN, Draft, header_of, safetensors_file

STEM = "base_model.model.model.layers.0.self_attn"
BASE = BaseShape(2, {"q_proj": (HIDDEN, HIDDEN)})
NONE = Limits()
ENGINES: tuple[Engine | None, ...] = ("vllm", "sglang", None)


def weights_of(draft: Draft) -> Weights:
    """The file of a draft's weights."""
    data = safetensors_file(header_of(draft.tensors))
    return Weights(WEIGHTS, len(data), data)


PLAIN = weights_of(Draft())


def said(
    limits: Limits = NONE, weights: Weights | NotAFile | Unseen | None = PLAIN, **config: Any
) -> tuple[Finding, ...]:
    """What is to be said of an adapter with these settings and these weights."""
    return check(Folder("/a", "/real/a", json.dumps(adapter_config(**config)).encode(), weights), limits)


def holds(*found: Finding) -> list[Hold]:
    """Why it is held back."""
    return [one.holds for one in found if one.holds is not None]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sound_adapter_has_no_finding(engine: Engine | None) -> None:
    """Whatever serves it."""
    assert (
        said(Limits(16, base=BaseShape(2, {"q_proj": (HIDDEN, HIDDEN)}), engine=engine), weights_of(only("q_proj")))
        == ()
    )


def only(module: str) -> Draft:
    """A plain adapter for one module."""
    return Draft().keep(lambda name: f".{module}." in name)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"r": 0},
        {"r": "8"},
        {"lora_alpha": None},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"rank_pattern": {"q_proj": "x"}},
        {"r": 64},
    ],
    ids=str,
)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_engine_may_refuse_is_advice(config: dict[str, Any], engine: Engine | None) -> None:
    """It is told and sent: the engine has the last word, and its versions differ."""
    assert holds(*said(Limits(engine=engine), **config)) in ([], [Hold.DEADLY])
    assert said(Limits(engine="vllm"), **config)


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"{}"])
def test_a_config_that_cannot_be_read_is_advice(config: bytes) -> None:
    """Half a config too: a load of it does no harm, and whether it is half is a guess."""
    (first, *_) = check(Folder("/a", "/a", config, PLAIN), NONE)

    assert first.holds is None
    assert not first.doubtful


def test_every_problem_is_named_at_once() -> None:
    """What holds it back first, what only some versions refuse last."""
    found = said(Limits(16, engine="vllm"), None, r=64, use_dora=True, bias="all")

    assert [one.message for one in found] == [
        "LoRA rank 64 is greater than max_lora_rank 16.",
        "vLLM does not yet support DoRA.",
        "/a doesn't contain tensors: there is no adapter_model.safetensors",
        "Adapter bias is not supported.",
    ]
    assert [(one.holds, one.doubtful) for one in found] == [
        (Hold.LIMIT, False),
        (None, False),
        (None, False),
        (None, True),
    ]


def test_rules_of_vllm_are_told_of_vllm_alone() -> None:
    """Of a server that did not say what it is, as a doubt."""
    settings = {"use_dora": True, "bias": "all", "modules_to_save": ["lm_head"]}
    strange = weights_of(Draft().add(HIDDEN, name="norm.weight"))

    assert len(said(Limits(engine="vllm"), strange, **settings)) == 4
    assert said(Limits(engine="sglang"), strange, **settings) == ()
    assert all(one.doubtful for one in said(NONE, strange, **settings))


@pytest.mark.parametrize("rank", [17, 16.5, 64.0])
def test_the_rank_limit_that_the_user_sets_holds_back(rank: float) -> None:
    """Whatever the engine, by the highest rank that the config names, and by no number of rows."""
    assert holds(*said(Limits(16, engine="sglang", hold_deadly=False), r=rank)) == [Hold.LIMIT]
    assert holds(*said(Limits(16), rank_pattern={"q_proj": rank})) == [Hold.LIMIT]
    assert holds(*said(Limits(16), weights_of(Draft().widen(4)))) == []
    assert holds(*said(Limits(64), r=rank)) == []


@pytest.mark.parametrize(
    ("rank", "flag"),
    [
        *((1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (33, 64), (65, 128), (129, 256), (257, 320), (321, 512)),
        *((512, 512), (513, 513)),
    ],
)
def test_the_flag_that_takes_a_rank_is_named(rank: int, flag: int) -> None:
    """The smallest one that vLLM accepts, and the rank itself where there is none."""
    (finding,) = (one for one in said(Limits(0), r=rank) if one.holds)

    assert finding.hint.startswith(f"start the server with --max-lora-rank {flag},")


@pytest.mark.parametrize(("root", "inside"), [("/models/X", False), ("/models", True), ("/models/", True), ("/", True)])
def test_a_root_ends_at_a_slash(root: str, *, inside: bool) -> None:
    """A folder whose name begins alike is beside it; slashes at its end, and no other characters, are ignored."""
    folder = Folder("/a", "/models/a", json.dumps(adapter_config()).encode(), PLAIN)

    assert holds(*check(folder, Limits(roots=(root,)))) == ([] if inside else [Hold.LIMIT])


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_a_pickle_is_held_back_unless_allowed(name: str) -> None:
    """Our own rule; of its content nothing is known but that it is there."""
    (finding,) = said(Limits(allow_pickle=False), Weights(name, 9, b"PK"))

    assert (finding.holds, finding.kind) == (Hold.LIMIT, FailureKind.ADAPTER)
    assert name in finding.message
    assert said(NONE, Weights(name, 9, b"PK")) == ()


def test_a_file_that_is_shorter_than_its_header_says_is_held_back() -> None:
    """It is being copied: whole, it will be another."""
    for size in (0, 7, 100, PLAIN.size - 1):
        (finding,) = said(NONE, Weights(WEIGHTS, size, PLAIN.head[:size]))
        assert (finding.holds, finding.kind) == (Hold.SHORT, FailureKind.FILES)
    (longer,) = said(NONE, Weights(WEIGHTS, PLAIN.size + 1, PLAIN.head))
    assert longer.holds is None


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_model.bin"])
def test_a_pointer_of_git_in_the_place_of_weights_is_named(name: str) -> None:
    """What a clone without Git LFS leaves: it is to be pulled, and not to be copied again."""
    (finding,) = said(NONE, Weights(name, 133, b"version https://git-lfs.github.com/spec/v1\noid sha256:4e\n"))

    assert finding.message == f"{name} is a Git LFS pointer and not the weights themselves"
    assert "git lfs pull" in finding.hint
    assert finding.holds is None


def test_an_empty_pickle_is_named() -> None:
    """No engine reads it."""
    (finding,) = said(NONE, Weights("adapter_model.bin", 0))

    assert finding.message == "adapter_model.bin is empty"


def test_what_hangs_is_held_back_and_a_directory_is_not() -> None:
    """A pipe in the place of a file stops the engine, with every request in it."""
    text = json.dumps(adapter_config()).encode()
    for folder in (Folder("/a", "/a", NotAFile(hangs=True), PLAIN), Folder("/a", "/a", text, NotAFile(hangs=True))):
        assert holds(*check(folder, NONE)) == [Hold.HANG]
    (finding,) = check(Folder("/a", "/a", NotAFile(hangs=False), PLAIN), NONE)
    assert (finding.message, finding.holds) == (f"{CONFIG} is a directory", None)


def test_of_what_is_not_seen_nothing_is_said() -> None:
    """The rest is judged all the same."""
    unseen = Unseen("no permission")

    assert check(Folder("/a", "/a", unseen, unseen), Limits(16, engine="vllm")) == ()
    assert said(Limits(16), unseen, r=64)[0].holds is Hold.LIMIT
    assert check(Folder("/a", "/a", unseen, Weights(WEIGHTS, 3, b"abc")), NONE)[0].holds is Hold.SHORT


def test_what_is_not_there_is_told_as_the_engine_does() -> None:
    """No config and no weights; SGLang takes weights of other names."""
    (config,) = check(Folder("/a", "/a", None, PLAIN), NONE)
    assert (config.message, config.holds, config.kind) == ("No adapter found for /a", None, FailureKind.FILES)
    assert [one.doubtful for one in said(Limits(engine="vllm"), None)] == [False]
    assert [one.doubtful for one in said(Limits(engine="sglang"), None)] == [True]


DEADLY = {
    "a rank that the weights contradict": (weights_of(Draft().widen(2)), None),
    "only lora_A": (weights_of(Draft().keep(lambda name: "lora_A" in name)), None),
    "a module that the model has not": (weights_of(only("k_proj")), BASE),
    "a shape that the model has not": (weights_of(only("q_proj").reshape(lambda _, shape: shape[::-1])), BASE),
}


@pytest.mark.parametrize("what", DEADLY)
def test_what_kills_sglang_at_its_first_use_is_held_back_there(what: str) -> None:
    """It would be accepted: the engine's word comes too late. A key sends it all the same."""
    weights, base = DEADLY[what]
    found = said(Limits(base=base, engine="sglang"), weights)

    assert set(holds(*found)) == {Hold.DEADLY}
    assert all(
        "SGLang would accept it and die of the first request for it" in one.message for one in found if one.holds
    )
    assert all("preflight.hold_deadly: false" in one.message for one in found if one.holds)
    assert Hold.DEADLY not in holds(*said(Limits(base=base, engine="sglang", hold_deadly=False), weights))


@pytest.mark.parametrize("engine", ["vllm", None])
@pytest.mark.parametrize("what", [what for what in DEADLY if "shape" not in what])
def test_what_kills_sglang_is_advice_elsewhere(what: str, engine: Engine | None) -> None:
    """VLLM refuses it or answers wrongly from it; and what did not say that it is SGLang is not taken for it."""
    weights, base = DEADLY[what]
    found = said(Limits(base=base, engine=engine), weights)

    assert found
    assert holds(*found) == []


@pytest.mark.parametrize(
    "config", [{"rank_pattern": {"q_proj": 16}}, {"target_parameters": ["mlp.experts.down_proj"]}], ids=str
)
def test_ranks_that_the_config_explains_are_not_judged(config: dict[str, Any]) -> None:
    """A pattern of ranks, and experts that are kept in one tensor."""
    assert said(Limits(engine="sglang"), weights_of(Draft().widen(2)), **config) == ()


def test_a_scaling_of_one_forgives_half_a_pair_in_vllm() -> None:
    """It then multiplies nothing."""
    half = weights_of(Draft().keep(lambda name: "lora_A" in name))

    assert [one.doubtful for one in said(Limits(engine="vllm"), half, lora_alpha=8)] == [True]
    assert [one.doubtful for one in said(Limits(engine="vllm"), half, lora_alpha=16)] == [False]


def test_shapes_of_a_base_model_that_the_user_names_hold_back() -> None:
    """What vLLM loads without a word and answers wrongly from."""
    wrong = weights_of(only("q_proj").reshape(lambda name, shape: (8, 64) if "lora_A" in name else shape))
    deep = weights_of(only("q_proj").rename(lambda name: name.replace("layers.1", "layers.9")))

    for weights in (wrong, deep):
        assert holds(*said(Limits(base=BASE, engine="vllm"), weights)) == [Hold.LIMIT]
        assert said(Limits(engine="vllm"), weights) == ()


@pytest.mark.parametrize("shape", [(0,), (16, 64)])
def test_what_a_finding_says_is_bounded(shape: tuple[int, ...]) -> None:
    """A name of a megabyte does not become an answer of a megabyte, and nothing of it forges a line."""
    long = "\x1b" + "x" * 300_000
    weights = weights_of(Draft().rename(lambda _: f"{long}.q_proj.lora_A.weight").add(*shape, full=f"layers.7.{long}"))
    limits = Limits(1, base=BASE, engine="vllm", roots=("/elsewhere",))
    settings: dict[str, Any] = {
        "bias": long,
        "init_lora_weights": long[:60_000],
        "rank_pattern": {long[:60_000]: long[:5_000]},
    }
    found = check(Folder(f"/{long}", f"/{long}", json.dumps(adapter_config(**settings)).encode(), weights), limits)
    found += check(Folder(f"/{long}", f"/{long}", None, None), limits)

    assert len(found) >= 8
    assert all(len(one.message) < 800 and one.message.isprintable() for one in found)
