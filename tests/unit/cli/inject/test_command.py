from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import pytest

from lora_sidecar.cli.inject import add_parser, run
from tests.support.paths import ROOT
from tests.unit.cli.inject.support import IMAGE, deployment

Captured = pytest.CaptureFixture[bytes]
TEXT = deployment("image: vllm/vllm-openai\nargs: [--enable-lora]")


def command(*arguments: str) -> int:
    """Run one command line; returns the exit code."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return run(parser.parse_args(["inject", *arguments]))


@pytest.fixture(autouse=True)
def no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names no image."""
    monkeypatch.delenv("LORA_SIDECAR_IMAGE", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A manifest."""
    path = tmp_path / "model.yaml"
    path.write_text(TEXT)
    return path


def said(capfdbinary: Captured) -> tuple[str, str]:
    """What was printed on stdout and on stderr."""
    out, err = capfdbinary.readouterr()
    return out.decode(), err.decode()


def test_a_pipe(monkeypatch: pytest.MonkeyPatch, capfdbinary: Captured) -> None:
    """As a post-renderer: manifests in on stdin, manifests out on stdout, everything else on stderr; to the byte."""
    text = TEXT.replace("\n", "\r\n") + "# \N{SNOWMAN}"
    monkeypatch.setenv("LORA_SIDECAR_IMAGE", IMAGE)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    assert command() == 0

    out, err = said(capfdbinary)
    assert out.startswith(TEXT.split("spec:", maxsplit=1)[0].replace("\n", "\r\n"))
    assert f"image: {IMAGE}\r\n" in out
    assert "\n" not in out.replace("\r\n", "")
    assert err == (
        "<stdin>:7: Deployment model: guards vLLM in container vllm at http://127.0.0.1:8000; "
        "its config is in ConfigMap model-lora-sidecar\n"
    )


def test_a_file_and_back(file: Path, capfdbinary: Captured) -> None:
    """A file is printed with its sidecar; in place it is written, and --remove writes what was there before."""
    assert command(str(file), "--image", IMAGE) == 0
    printed, _ = said(capfdbinary)
    assert file.read_text() == TEXT

    file.chmod(0o640)
    assert command(str(file), "--image", IMAGE, "--in-place") == 0

    assert said(capfdbinary)[0] == ""
    assert file.read_text() == printed
    assert file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert command(str(file), "--remove", "--in-place") == 0
    assert file.read_text() == TEXT


def test_a_diff(file: Path, capfdbinary: Captured) -> None:
    """A diff shows what would be added, and nothing is written."""
    assert command(str(file), "--image", IMAGE, "--diff") == 0

    out, _ = said(capfdbinary)
    lines = out.splitlines()
    assert lines[0].startswith("--- a/")
    assert lines[1].startswith("+++ b/")
    assert not any(line.startswith("-") for line in lines[1:])
    assert "+          image: example.com/lora-sidecar:1" in lines
    assert file.read_text() == TEXT


def test_a_diff_of_nothing(file: Path, capfdbinary: Captured) -> None:
    """Where nothing would change, the diff is empty."""
    assert command(str(file), "--image", IMAGE, "--in-place") == 0
    assert command(str(file), "--image", IMAGE, "--diff") == 0

    assert said(capfdbinary)[0] == ""


def test_a_diff_of_a_file_without_a_last_newline(file: Path, capfdbinary: Captured) -> None:
    """A line that does not end is marked as diff marks it."""
    file.write_text(TEXT.removesuffix("\n"))

    assert command(str(file), "--image", IMAGE, "--diff") == 0

    assert said(capfdbinary)[0].count("\n\\ No newline at end of file\n") == 2


def test_a_folder(tmp_path: Path, capfdbinary: Captured) -> None:
    """A folder is read in the order of its names, and printed as one stream that says what the files say."""
    (tmp_path / "b.yaml").write_text(TEXT)
    (tmp_path / "a.yml").write_text("kind: Service")
    (tmp_path / "c.txt").write_text("no manifest")
    (tmp_path / "d.json").write_text('{"kind": "Service"}\n')

    assert command(str(tmp_path), "--image", IMAGE) == 0

    out, _ = said(capfdbinary)
    assert out.startswith("kind: Service\n---\napiVersion: apps/v1\n")
    assert out.endswith('---\n{"kind": "Service"}\n')


def test_a_folder_in_place(tmp_path: Path) -> None:
    """In place, each file is written for itself, and only where it changes."""
    (tmp_path / "a.yaml").write_text("kind: Service")
    (tmp_path / "b.yaml").write_text(TEXT)
    before = (tmp_path / "a.yaml").stat().st_ino

    assert command(str(tmp_path), "--image", IMAGE, "--in-place") == 0

    assert (tmp_path / "a.yaml").stat().st_ino == before
    assert "lora-sidecar" in (tmp_path / "b.yaml").read_text()


def test_a_refusal(tmp_path: Path, capfdbinary: Captured) -> None:
    """Where one file is refused nothing is printed and no file is written: helm stops there."""
    (tmp_path / "a.yaml").write_text(TEXT)
    (tmp_path / "b.yaml").write_text(
        TEXT.replace("name: model", "name: other").replace("image:", "env: null\n          image:")
    )

    assert command(str(tmp_path), "--image", IMAGE, "--in-place") == 65

    out, err = said(capfdbinary)
    assert out == ""
    assert f"{tmp_path}/b.yaml:10: Deployment other: refused: " in err
    assert err.endswith("lora-sidecar inject: refused, so nothing is changed\n")
    assert (tmp_path / "a.yaml").read_text() == TEXT


def test_files_that_are_applied_together(tmp_path: Path, capfdbinary: Captured) -> None:
    """Two files of a folder cannot each add a ConfigMap of one name."""
    (tmp_path / "a.yaml").write_text(TEXT)
    (tmp_path / "b.yaml").write_text(TEXT.replace("kind: Deployment", "kind: StatefulSet"))

    assert command(str(tmp_path), "--image", IMAGE) == 65
    assert "the same name as what is added for Deployment model" in said(capfdbinary)[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "name the sidecar's image with --image"),
        (("--image", " "), "name the sidecar's image with --image"),
        (("--image", "x", "--in-place"), "--in-place needs a file or a folder"),
        (("x", "--image", "x", "--in-place", "--diff"), "--diff changes nothing"),
        (("--remove", "--plain"), "--remove goes by what was recorded"),
        (("--remove", "--container", "x"), "--remove goes by what was recorded"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], reason: str, capfdbinary: Captured) -> None:
    """Options that make no sense together are status 64, before anything is read."""
    assert command(*arguments) == 64
    assert reason in said(capfdbinary)[1]


def test_nothing_to_read(tmp_path: Path, capfdbinary: Captured) -> None:
    """A file that is not there, a folder without manifests and a file that is no text are status 66, with reasons."""
    (tmp_path / "latin.yaml").write_bytes(b"a: b\nc: \xe9\n")

    assert command(str(tmp_path / "none.yaml"), "--image", IMAGE) == 66
    assert command(str(tmp_path / "latin.yaml"), "--image", IMAGE) == 66
    (tmp_path / "latin.yaml").unlink()
    assert command(str(tmp_path), "--image", IMAGE) == 66

    _, err = said(capfdbinary)
    assert "none.yaml: No such file or directory" in err
    assert "line 2 is not UTF-8" in err
    assert "there is no .yaml, .yml or .json in this folder" in err


def test_a_folder_that_cannot_be_written(file: Path, capfdbinary: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be replaced is status 73 and stays as it is."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(file))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", fail)

    assert command(str(file), "--image", IMAGE, "--in-place") == 73
    assert "Read-only file system" in said(capfdbinary)[1]
    assert file.read_text() == TEXT


def test_a_bad_config(file: Path, tmp_path: Path, capfdbinary: Captured) -> None:
    """A config that the sidecar would not start with is status 78, with each problem."""
    config = tmp_path / "sidecar.conf"
    config.write_text("servers: []\nx: y\n")

    assert command(str(file), "--image", IMAGE, "--config", str(config)) == 78

    _, err = said(capfdbinary)
    assert f"{config}: line 1: servers: must not be empty" in err
    assert f"{config}: line 2: x: " in err
    assert command(str(file), "--image", IMAGE, "--config", str(ROOT / "config/minimal.yaml")) == 0


def test_without_the_extra(file: Path, capfdbinary: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ruamel.yaml is not installed, status 69 says how to install it."""
    for name in [name for name in sys.modules if name.startswith(("ruamel", "lora_sidecar.cli.inject."))]:
        if name != "lora_sidecar.cli.inject.command":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ruamel", None)
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)

    assert command(str(file), "--image", IMAGE) == 69
    assert "pip install 'lora-sidecar[inject]'" in said(capfdbinary)[1]
