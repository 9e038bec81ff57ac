from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import pytest
import yaml

from lora_sidecar.cli.convert import add_parser, advice, convert, run
from lora_sidecar.config.load import parse

Captured = pytest.CaptureFixture[str]

FILE = """\
vLLMLoRAConfig:
  name: vllm-llama3
  host: localhost
  port: 8080
  defaultBaseModel: meta-llama/Llama-3.1-8B-Instruct
  ensureExist:
    models:
    - id: food-review-1
      source: org/food-review
    - base-model: other/base
      id: food-review-2
      source: /adapters/food review
  ensureNotExist:
    models:
    - id: food-review-0
      source: org/old
"""
CONFIG_MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: adapters}\ndata:\n  configmap.yaml: |\n" + "".join(
    f"    {line}\n" for line in FILE.splitlines()
)
OURS = {
    "servers": [{"name": "vllm-llama3", "url": "http://localhost:8080"}],
    "adapters": [
        {"name": "food-review-1", "path": "org/food-review"},
        {"name": "food-review-2", "path": "/adapters/food review"},
    ],
}


def command(*arguments: str) -> int:
    """Run one command line; returns the exit code."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return run(parser.parse_args(["convert", *arguments]))


def problems(text: str) -> str:
    """Why a file cannot be converted."""
    converted = convert(text.encode())
    assert converted.text == ""
    return "; ".join(converted.problems)


@pytest.mark.parametrize(
    "text",
    [
        FILE,
        CONFIG_MAP,
        f"kind: Service\n---\n{CONFIG_MAP}",
        f"\ufeff{FILE}",
        "kind: List\nitems:\n- " + CONFIG_MAP.replace("\n", "\n  ").rstrip() + "\n",
    ],
    ids=["the file", "the ConfigMap", "a stream", "a byte order mark", "a list"],
)
def test_a_whole_config(text: str) -> None:
    """The file, or the ConfigMap as kubectl prints it, becomes a config that the sidecar starts with."""
    converted = convert(text.encode())

    assert yaml.safe_load(converted.text) == OURS
    assert parse(converted.text.encode(), "converted").adapters[0].required is False
    assert converted.problems == ()


def test_what_has_no_counterpart() -> None:
    """What cannot be said in our config is named, each with what to do instead."""
    unloads, bases = convert(FILE.encode()).left_out

    assert unloads.startswith("ensureNotExist: food-review-0 is not declared")
    assert "lora-sidecar adapters unload food-review-0" in unloads
    assert bases.startswith("base models (meta-llama/Llama-3.1-8B-Instruct, other/base): vLLM ignores that field")


def test_the_least_that_it_may_say() -> None:
    """Host, port and name have the defaults that they had."""
    converted = convert(b"vLLMLoRAConfig: {}\n")

    assert yaml.safe_load(converted.text) == {"servers": [{"name": "vllm", "url": "http://127.0.0.1:8000"}]}
    assert converted.left_out == ()


def test_a_name_that_cannot_be_one() -> None:
    """A name that could not be part of a file's name is replaced, and that is said."""
    converted = convert(b"vLLMLoRAConfig: {name: My Config, host: '::1', color: red}\n")

    assert yaml.safe_load(converted.text)["servers"] == [{"name": "vllm", "url": "http://[::1]:8000"}]
    assert converted.left_out == (
        "name: My Config cannot name a server here, where it is part of a file's name: vllm",
        "color: lora-syncer has no such key either",
    )


def test_an_adapter_in_both_lists() -> None:
    """What lora-syncer skipped because it was to exist and not to exist is not declared, and named."""
    text = FILE.replace("id: food-review-0", "id: food-review-1")

    converted = convert(text.encode())

    assert [one["name"] for one in yaml.safe_load(converted.text)["adapters"]] == ["food-review-2"]
    assert "food-review-1: is in both lists" in converted.left_out[0]


def test_names_that_look_like_numbers() -> None:
    """A name is a text, whatever it looks like: it was one in the request that loaded it."""
    converted = convert(b"vLLMLoRAConfig: {ensureExist: {models: [{id: 007, source: /a}, {id: on, source: /b}]}}\n")

    assert [one["name"] for one in yaml.safe_load(converted.text)["adapters"]] == ["007", "on"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("servers: []\n", "has no vLLMLoRAConfig"),
        ("", "has no vLLMLoRAConfig"),
        ("a: [\n", "is not YAML"),
        (f"{FILE}---\n{FILE}", "has 2 vLLMLoRAConfig"),
        ("vLLMLoRAConfig: []\n", "is no mapping"),
        ("vLLMLoRAConfig: {port: 99999}\n", "host and port: http://127.0.0.1:99999 must have a port"),
        ("vLLMLoRAConfig: {host: {a: b}}\n", "host: must be one word"),
        ("vLLMLoRAConfig: {ensureExist: [a]}\n", "ensureExist: has no list of models"),
        ("vLLMLoRAConfig: {ensureExist: {models: {a: b}}}\n", "ensureExist: has no list of models"),
        ("vLLMLoRAConfig: {ensureExist: {models: [{source: /a}]}}\n", "ensureExist.models[0]: has no id and source"),
        ("vLLMLoRAConfig: {ensureExist: {models: [a]}}\n", "ensureExist.models[0]: has no id and source"),
        ("vLLMLoRAConfig: {ensureExist: {models: [{id: a, source: ./a}]}}\n", "the source of a (./a) must be"),
        (
            "vLLMLoRAConfig: {ensureExist: {models: [{id: a, source: /a}, {id: a, source: /b}]}}\n",
            "ensureExist.models[1]: a is given twice with two sources",
        ),
    ],
)
def test_what_cannot_be_converted(text: str, reason: str) -> None:
    """A file that is no such config, or asks for what cannot be, is a failure and no shorter config."""
    assert reason in problems(text)


def test_the_command(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config goes to stdout alone, what is said of it to stderr, from a file or from stdin."""
    file = tmp_path / "configmap.yaml"
    file.write_text(CONFIG_MAP)

    assert command(str(file)) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out) == OURS
    assert all(line.startswith(f"{file}: ") for line in err.splitlines())
    assert len(err.splitlines()) == 2

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FILE.encode())))
    assert command("-") == 0
    assert capsys.readouterr()[0] == out


def test_the_command_fails(tmp_path: Path, capsys: Captured) -> None:
    """A file that cannot be converted is status 65, one that cannot be read 66; nothing goes to stdout."""
    file = tmp_path / "other.yaml"
    file.write_text("servers: []\n")

    assert command(str(file)) == 65
    assert command(str(tmp_path / "none.yaml")) == 66

    out, err = capsys.readouterr()
    assert out == ""
    assert f"{file}: problem: has no vLLMLoRAConfig" in err
    assert "No such file or directory" in err


def test_a_config_in_the_wrong_place() -> None:
    """Where a config of theirs is given for one of ours, what to do is known; of any other file nothing is said."""
    assert advice(FILE.encode(), "/etc/x.yaml") == (
        "this is a config of lora-syncer: "
        "`lora-sidecar config convert /etc/x.yaml` prints one of ours that does the same"
    )
    assert advice(CONFIG_MAP.encode(), "x")
    assert advice(b"servers: []\n# not a vLLMLoRAConfig: at all\n", "x") is None
