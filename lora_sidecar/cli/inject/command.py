"""The command line of `inject`: what is read, what is written, and what is said.

The trap guarded against is a pipe that goes on with half a result: on a refusal nothing is printed and no file is
touched, and the exit code says so. Texts are read and written as bytes, so that no line end and no byte order mark is
lost.

Exit codes: 0 done, also where there was nothing to do; 64 usage; 65 something was refused; 66 nothing to read; 69
ruamel.yaml is not installed; 73 a file cannot be written; 78 bad config.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from lora_sidecar.config.load import parse, read
from lora_sidecar.core.errors import ConfigError, SidecarError

if TYPE_CHECKING:
    from lora_sidecar.cli.inject.outcome import Outcome

USAGE: Final = 64
BAD_DATA: Final = 65
NO_INPUT: Final = 66
NOT_INSTALLED: Final = 69
CANNOT_WRITE: Final = 73
BAD_CONFIG: Final = 78

_STDIN: Final = "-"
_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})
_Parser = TypeVar("_Parser", bound=argparse.ArgumentParser)


class _CannotReadError(SidecarError):
    """A manifest that cannot be read."""


class _CannotWriteError(SidecarError):
    """A manifest that cannot be written."""


def add_parser(commands: argparse._SubParsersAction[_Parser]) -> None:
    """Add `inject` to the commands."""
    parser = commands.add_parser(
        "inject",
        help="add the sidecar to the pods of manifests that run vLLM or SGLang",
        description="Prints manifests with a sidecar in each pod that runs vLLM or SGLang, and nothing else changed.",
    )
    parser.add_argument(
        "path", nargs="?", default=_STDIN, help="a file, a folder (of .yaml, .yml and .json), or - (stdin)"
    )
    parser.add_argument(
        "--image",
        default=os.environ.get("LORA_SIDECAR_IMAGE"),
        help="the sidecar's image (default: $LORA_SIDECAR_IMAGE)",
    )
    parser.add_argument("--plain", action="store_true", help="as a second container: for Kubernetes before 1.29")
    parser.add_argument(
        "--container", metavar="NAME", help="the container of the server, if it is not found or not the only one"
    )
    parser.add_argument("--config", metavar="FILE", help="the sidecar's config (default: made of what is found)")
    parser.add_argument("--enable-lora", action="store_true", help="give a server that has no --enable-lora that flag")
    parser.add_argument("--remove", action="store_true", help="take out what an earlier run has added")
    parser.add_argument("--diff", action="store_true", help="print what would change, and change nothing")
    parser.add_argument("--in-place", action="store_true", help="write the files instead of printing them")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    complaint = _complaint(options)
    if complaint:
        print(f"lora-sidecar inject: {complaint}", file=sys.stderr)
        return USAGE
    try:
        sources = _sources(options.path)
        outcomes = _outcomes([text for _, text in sources], options)
    except _CannotReadError as error:
        print(error, file=sys.stderr)
        return NO_INPUT
    except ConfigError as error:
        for problem in error.problems:
            print(f"{error.source}: {problem}", file=sys.stderr)
        return BAD_CONFIG
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("ruamel"):
            raise
        print("inject needs ruamel.yaml: pip install 'lora-sidecar[inject]'", file=sys.stderr)
        return NOT_INSTALLED
    for (source, _), outcome in zip(sources, outcomes, strict=True):
        for said in outcome.said:
            print(f"{source}:{said.line}: {said}", file=sys.stderr)
    if any(outcome.refused for outcome in outcomes):
        print("lora-sidecar inject: refused, so nothing is changed", file=sys.stderr)
        return BAD_DATA
    return _write(sources, [outcome.text for outcome in outcomes], options)


def _complaint(options: argparse.Namespace) -> str:
    """Return what is wrong with the options, or nothing."""
    others = [options.plain, options.container, options.config, options.enable_lora]
    if options.remove and any(others):
        return "--remove goes by what was recorded: leave --plain, --container, --config and --enable-lora out"
    if not options.remove and not (options.image or "").strip():
        return "name the sidecar's image with --image, or in LORA_SIDECAR_IMAGE"
    if options.in_place and options.diff:
        return "--diff changes nothing, and --in-place does"
    if options.in_place and options.path == _STDIN:
        return "--in-place needs a file or a folder"
    return ""


def _outcomes(texts: list[str], options: argparse.Namespace) -> tuple[Outcome, ...]:
    from lora_sidecar.cli.inject.injection import inject  # noqa: PLC0415 - these need the extra, which only they need
    from lora_sidecar.cli.inject.removal import remove  # noqa: PLC0415
    from lora_sidecar.cli.inject.settings import Given  # noqa: PLC0415
    from lora_sidecar.cli.inject.workload import Options  # noqa: PLC0415

    if options.remove:
        return remove(texts)
    config = None
    if options.config is not None:
        data = read(options.config)
        config = Given(data.decode(errors="replace"), parse(data, options.config))
    wanted = Options(
        image=options.image.strip(),
        native=not options.plain,
        container=options.container,
        enable_lora=options.enable_lora,
        config=config,
    )
    return inject(texts, wanted)


def _sources(path: str) -> list[tuple[str, str]]:
    """Return the name and the text of each manifest to read. Raises `_CannotReadError`."""
    if path == _STDIN:
        return [("<stdin>", _decoded("<stdin>", sys.stdin.buffer.read()))]
    try:
        place = Path(path)
        files = sorted(one for one in place.iterdir() if one.suffix in _SUFFIXES) if place.is_dir() else [place]
        found = [(str(file), _decoded(str(file), file.read_bytes())) for file in files]
    except OSError as error:
        raise _CannotReadError("read", error.filename or path, error.strerror or str(error)) from error
    if not found:
        raise _CannotReadError("read", path, "there is no .yaml, .yml or .json in this folder")
    return found


def _decoded(source: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _CannotReadError("read", source, f"line {line} is not UTF-8") from error


def _write(sources: list[tuple[str, str]], texts: list[str], options: argparse.Namespace) -> int:
    changed = [
        (source, before, after) for (source, before), after in zip(sources, texts, strict=True) if before != after
    ]
    if options.diff:
        sys.stdout.writelines(line for one in changed for line in _diff(*one))
    elif options.in_place:
        try:
            for source, _, after in changed:
                _replace(Path(source), after.encode())
        except _CannotWriteError as error:
            print(error, file=sys.stderr)
            return CANNOT_WRITE
    else:
        sys.stdout.buffer.write(_joined(texts).encode())
        sys.stdout.buffer.flush()
    return 0


def _diff(source: str, before: str, after: str) -> Iterable[str]:
    """Return the lines of a unified diff."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        f"a/{source.lstrip('/')}",
        f"b/{source.lstrip('/')}",
    )
    return (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _joined(texts: list[str]) -> str:
    """Return several manifests as one stream; a single one as it is."""
    stream = texts[0]
    for text in texts[1:]:
        stream += "" if stream.endswith("\n") or not stream else "\n"
        stream += text if text.startswith("---") else f"---\n{text}"
    return stream


def _replace(file: Path, data: bytes) -> None:
    """Write a file in one step, with the rights that it has. Raises `_CannotWriteError`."""
    file = file.resolve()
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as temporary:
            temporary.write(data)
        Path(temporary.name).chmod(file.stat().st_mode & 0o7777)
        Path(temporary.name).replace(file)
    except OSError as error:
        raise _CannotWriteError("write", str(file), error.strerror or str(error)) from error
