"""Runs the tests against a real vLLM on every version that has a lock, and writes down which pass.

The trap guarded against is a version that is supported because nobody has tried it. Each version's result is a file of
its own, `results/VERSION.json`, so that a change shows which version it changes. A version whose environment cannot be
made has failed, and the others are run all the same.

    python -m tests.matrix                    all versions, oldest first
    python -m tests.matrix 0.12.0 0.24.0      some
    python -m tests.matrix --suite e2e        one suite; what came of the other is kept
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results")
SUITES = ("contract", "e2e")
PASSED = "passed"
_COLLECTED = re.compile(r"collected (\d+) items?(?:.* / (\d+) selected)?")
_DECIDED = re.compile(r"\b(PASSED|FAILED|ERROR) +\[ *\d+%\]")


class Result(Struct, frozen=True):
    """What came of one version: by suite and test, `passed` or the first line of why not."""

    vllm: str
    day: str
    suites: dict[str, dict[str, str]]

    @property
    def failures(self) -> dict[str, str]:
        """The tests that did not pass."""
        tests = ((f"{suite}: {test}", told) for suite, each in self.suites.items() for test, told in each.items())
        return {test: told for test, told in tests if told != PASSED}

    def __str__(self) -> str:
        counts = (f"{suite} {list(tests.values()).count(PASSED)}/{len(tests)}" for suite, tests in self.suites.items())
        return f"vLLM {self.vllm}: {', '.join(counts)}"


def locked_versions() -> list[str]:
    """The versions of vLLM that have a lock, oldest first."""
    versions = [file.stem.removeprefix("vllm-") for file in (ROOT / "locks").glob("vllm-*.txt")]
    return sorted(versions, key=lambda version: [int(number) for number in re.findall(r"\d+", version)])


def run_version(version: str, wanted: Sequence[str], environments: Path, progress: Progress, bar: TaskID) -> Result:
    """Make the version's environment unless it is there, and run these suites; logs go beside the environment."""
    folder = environments / f"vllm-{version}"
    progress.update(bar, description=f"{version} environment", completed=0, total=None)
    environments.mkdir(parents=True, exist_ok=True)
    log = environments / f"vllm-{version}-environment.log"
    with log.open("wb") as file:
        made = subprocess.run(
            ["bash", ROOT / "scripts" / "vllm-env.sh", version, folder], stdout=file, stderr=file, check=False
        )
    if made.returncode:
        suites = {suite: {"environment": f"cannot be made, see {log.name}"} for suite in wanted}
    else:
        suites = {}
        for suite in wanted:
            progress.update(bar, description=f"{version} {suite}", completed=0, total=None)
            suites[suite] = run_suite(suite, folder, progress, bar)
    before = RESULTS / f"{version}.json"
    kept = msgspec.json.decode(before.read_bytes(), type=Result).suites if before.exists() else {}
    return Result(version, f"{datetime.now(UTC):%Y-%m-%d}", dict(sorted((kept | suites).items())))


def run_suite(suite: str, folder: Path, progress: Progress, bar: TaskID) -> dict[str, str]:
    """Run one suite with the vLLM of `folder`; what came of each of its tests."""
    environment = os.environ | {"LORA_SIDECAR_VLLM_PYTHON": str(folder / "bin" / "python")}
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-v", "-m", "vllm", "-p", "no:xdist", "-p", "no:randomly"]
        command += [f"--junitxml={report}", f"tests/{suite}"]
        with (
            folder.with_name(f"{folder.name}-{suite}.log").open("w", buffering=1) as log,
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process,
        ):
            for line in process.stdout or ():
                log.write(line)
                if collected := _COLLECTED.search(line):
                    progress.update(bar, total=int(collected[2] or collected[1]))
                elif _DECIDED.search(line):
                    progress.advance(bar)
        if not report.exists():
            return {"pytest": f"ended with status {process.returncode} and without a report"}
        return dict(sorted(read_report(ET.parse(report).iter("testcase"))))


def read_report(cases: Iterator[ET.Element]) -> Iterator[tuple[str, str]]:
    """Each test of a report, without the version in its name, and what came of it."""
    for case in cases:
        name = re.sub(r"\breal-[\d.]+-?|-?\breal-[\d.]+", "", case.get("name", "")).replace("[]", "")
        faults = [fault.get("message", "") for kind in ("failure", "error") for fault in case.iter(kind)]
        yield name.removeprefix("test_"), faults[0].partition("\n")[0][:200] if faults else PASSED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the versions that the command line names; the exit status is 1 where a test failed."""
    locked = locked_versions()
    flags = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__.partition("\n")[0])
    flags.add_argument("versions", nargs="*", metavar="VERSION", help=f"of {', '.join(locked)}; default: all")
    flags.add_argument("--suite", choices=SUITES, action="append", help="default: all")
    flags.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "lora-sidecar")
    parsed = flags.parse_args(arguments)
    versions = parsed.versions or locked
    if unknown := set(versions) - set(locked):
        flags.error(f"no lock for {', '.join(sorted(unknown))} (there are: {', '.join(locked)})")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    RESULTS.mkdir(exist_ok=True)
    failed = False
    with Progress(*columns, console=Console()) as progress:
        whole = progress.add_task("versions", total=len(versions))
        bar = progress.add_task("", total=None)
        for version in versions:
            result = run_version(version, parsed.suite or SUITES, parsed.environments, progress, bar)
            text = json.dumps(msgspec.to_builtins(result), indent=1, ensure_ascii=False)
            (RESULTS / f"{version}.json").write_text(text + "\n")
            progress.console.print(str(result), highlight=False, markup=False)
            for test, told in result.failures.items():
                progress.console.print(f"  {test}: {told}", highlight=False, markup=False)
            failed = failed or bool(result.failures)
            progress.advance(whole)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
