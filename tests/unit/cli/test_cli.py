from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_sidecar import __version__
from lora_sidecar.checkpoint.encode import encode
from lora_sidecar.cli.main import DEFAULT_CONFIG, main
from tests.support.checkpoints import a_checkpoint, sealed_tree

Captured = pytest.CaptureFixture[str]

GOOD = """
servers:
  - name: vllm
    url: http://127.0.0.1:8000
adapters:
  - {name: sql, path: /adapters/sql, required: true, priority: 3}
  - {name: chat, path: /adapters/chat}
"""
BAD = "servers: []\nadapters:\n  - {name: sql, path: x/y/z}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config file."""
    file = tmp_path / "sidecar.yaml"
    file.write_text(GOOD)
    return file


def usage(*arguments: str) -> int:
    """The exit code of a command line that is refused while it is read."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("run", "--speed"),
        ("run", "extra"),
        ("checkpoint",),
        ("checkpoint", "show"),
        ("checkpoint", "x", "y"),
        ("config",),
        ("config", "wish"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], capsys: Captured) -> None:
    """A wrong command line is status 64, with the usage and the reason on stderr and nothing on stdout."""
    assert usage(*arguments) == 64

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: lora-sidecar")
    assert "lora-sidecar" in err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("checkpoint", "--help")])
def test_help(arguments: tuple[str, ...], capsys: Captured) -> None:
    """Help is asked for and not an error: status 0, on stdout."""
    assert usage(*arguments) == 0
    assert capsys.readouterr().out.startswith("usage: lora-sidecar")


def test_default_config_is_named(capsys: Captured) -> None:
    """The help of `run` says which file is read where none is given."""
    usage("run", "--help")

    assert DEFAULT_CONFIG in "".join(capsys.readouterr().out.split())


def test_version(capsys: Captured) -> None:
    """The version is the package's."""
    assert usage("--version") == 0
    assert capsys.readouterr().out == f"lora-sidecar {__version__}\n"


def test_check_of_a_good_config(config: Path, capsys: Captured) -> None:
    """A sound config is status 0, and each server and adapter is said back."""
    assert main(["check", "--config-only", "--config", str(config)]) == 0

    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        f"{config}: guards vllm at http://127.0.0.1:8000",
        f"{config}: keeps sql from /adapters/sql (priority 3, required)",
        f"{config}: keeps chat from /adapters/chat (priority 0)",
        f"{config}: ok",
    ]


@pytest.mark.parametrize("command", ["check", "run"])
def test_bad_config(config: Path, capsys: Captured, command: str) -> None:
    """`check` and `run` say the same of a bad config: status 78, and a line on stderr for each problem."""
    config.write_text(BAD)

    assert main([command, "--config", str(config)]) == 78

    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(config)] * 2
    assert lines[0].startswith(f"{config}: line 1: servers: ")
    assert lines[1].startswith(f"{config}: line 3: adapters[0].path: ")


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("place", ["missing.yaml", "", "file/sidecar.yaml"])
def test_config_that_cannot_be_read(tmp_path: Path, capsys: Captured, command: str, place: str) -> None:
    """A file that is absent, a folder, or below a file is status 78, with the path and the system's reason."""
    (tmp_path / "file").write_text("")
    path = str(tmp_path / place)

    assert main([command, "--config", path]) == 78

    err = capsys.readouterr().err
    assert err.startswith(f"{path}: cannot be read: ")
    assert err.count("\n") == 1


def test_schema(capsys: Captured) -> None:
    """The schema is one JSON document that names the keys of the config."""
    assert main(["schema"]) == 0

    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "servers" in schema["properties"]


def test_example(config: Path, capsys: Captured) -> None:
    """The example is a sound config as it is printed: it can be redirected into a file and changed there."""
    assert main(["config", "example"]) == 0

    config.write_text(capsys.readouterr().out)
    assert main(["check", "--config-only", "--config", str(config)]) == 0


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint file of generation 7."""
    file = tmp_path / "vllm.json"
    file.write_bytes(encode(a_checkpoint(7), "json"))
    return file


def test_checkpoint_shown(checkpoint: Path, capsys: Captured) -> None:
    """A checkpoint is shown with its generation, its incarnation and a line for each adapter."""
    assert main(["checkpoint", "show", str(checkpoint)]) == 0

    out = capsys.readouterr().out
    desired = a_checkpoint(7).desired
    assert out.startswith("server vllm, generation 7\n")
    assert f"incarnation {desired.incarnation.number}, " in out
    for adapter in desired.adapters.values():
        assert any(adapter.name in line and adapter.path in line for line in out.splitlines())
    for name in desired.orphaned:
        assert any(name in line and "orphaned" in line for line in out.splitlines())


def test_checkpoint_verified(checkpoint: Path, capsys: Captured) -> None:
    """A sound checkpoint is status 0."""
    assert main(["checkpoint", "verify", str(checkpoint)]) == 0
    assert f"{checkpoint}: ok, generation 7" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["show", "verify"])
def test_checkpoint_damaged(checkpoint: Path, capsys: Captured, action: str) -> None:
    """A damaged checkpoint is status 65, with the reason, and is left as it is."""
    damaged = checkpoint.read_bytes()[:-9]
    checkpoint.write_bytes(damaged)

    assert main(["checkpoint", action, str(checkpoint)]) == 65

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{checkpoint}: ")
    assert checkpoint.read_bytes() == damaged


@pytest.mark.parametrize("action", ["show", "verify"])
def test_checkpoint_missing(tmp_path: Path, capsys: Captured, action: str) -> None:
    """A checkpoint that is not there is status 65, and says so."""
    assert main(["checkpoint", action, str(tmp_path / "vllm.json")]) == 65
    assert "No such file" in capsys.readouterr().err


def test_checkpoint_of_a_newer_version(checkpoint: Path, capsys: Captured) -> None:
    """A checkpoint of a later format is status 65, and says which program reads it."""
    checkpoint.write_bytes(sealed_tree({"version": 99}, "json"))

    assert main(["checkpoint", "show", str(checkpoint)]) == 65
    assert "read it with the lora-sidecar that wrote it" in capsys.readouterr().err
