from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from urllib.parse import urlsplit

import pytest

from lora_sidecar import __version__
from lora_sidecar.cli import main as cli
from tests.support.paths import ROOT

DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://)([^)#]*)(#[^)]*)?\)")
_NEEDS_A_CLUSTER = {"logs", "exec", "get", "apply"}


def _commands() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for block in _BLOCK.findall((ROOT / document).read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.split("  #")[0].strip()
                if command and not command.startswith("#"):
                    yield document, command


def _targets() -> set[str]:
    text = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
    return {name for names in re.findall(r"^([\w./ -]+):(?!=)", text, re.MULTILINE) for name in names.split()}


@pytest.mark.parametrize(("document", "command"), list(_commands()))
def test_a_command(document: str, command: str) -> None:
    """Every command of a document names what exists: a target of make, a command of ours, a folder to render."""
    program, *arguments = shlex.split(command.split("|", maxsplit=1)[0])
    match program:
        case "make":
            assert {argument for argument in arguments if "=" not in argument} <= _targets()
        case "lora-sidecar":
            _accepted(arguments)
        case "kubectl" if arguments[0] == "kustomize":
            assert (ROOT / arguments[1] / "kustomization.yaml").is_file()
        case "kubectl":
            assert arguments[0] in _NEEDS_A_CLUSTER
            if "--" in arguments:
                own, *rest = arguments[arguments.index("--") + 1 :]
                assert own == "lora-sidecar"
                _accepted(rest)
        case "helm":
            assert arguments[arguments.index("--post-renderer") + 1] == "lora-sidecar"
            _accepted([after for before, after in pairwise(arguments) if before == "--post-renderer-args"])
        case "curl":
            (url,) = [argument for argument in arguments if re.fullmatch(r"(http://)?[\w.]+:\d+/[\w./?=&]*", argument)]
            assert urlsplit(url if "://" in url else f"http://{url}").path in _paths()
        case ".venv/bin/python":
            assert (ROOT / arguments[2]).exists()
        case _:
            pytest.fail(f"{document}: nobody has run {command}")


def _paths() -> set[str]:
    """What the ops port and the control port answer on."""
    routes = [(ROOT / f"lora_sidecar/api/{name}.py").read_text() for name in ("ops", "control")]
    return set(re.findall(r'"(/[\w./-]*)"', "".join(routes)))


def _accepted(arguments: list[str]) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            cli._parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"lora-sidecar {' '.join(arguments)}: {told.getvalue()}")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links(document: str) -> None:
    """Every link to a file of the project leads to one."""
    place = (ROOT / document).parent

    missing = [target for target, _ in _LINK.findall((ROOT / document).read_text()) if not (place / target).exists()]

    assert missing == []


def test_the_version() -> None:
    """Every place that names the version names the same one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    places = [ROOT / "Dockerfile", ROOT / "README.md", *(ROOT / "config/kubernetes").rglob("*.yaml")]
    pattern = re.compile(r"ARG VERSION=(\S+)|lora-sidecar:(\d[\w.]*)|newName: \S*lora-sidecar, newTag: ([\w.]+)")

    named = {
        version for place in places for found in pattern.findall(place.read_text()) for version in found if version
    }

    assert project["version"] == __version__
    assert named == {__version__}


def test_the_architecture_names_no_module_that_is_gone() -> None:
    """What the page names in the form of a module is there."""
    text = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", text))
    package = ROOT / "lora_sidecar"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert named
    assert named <= modules | {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
