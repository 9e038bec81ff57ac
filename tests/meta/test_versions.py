from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tests.contract.transcript import read_recording, recorded_versions
from tests.matrix.__main__ import PASSED, ROOT, locked_versions, read_report


def test_every_locked_version_was_recorded() -> None:
    """A version that can be installed is one whose answers are known."""
    assert tuple(locked_versions()) == recorded_versions()


@pytest.mark.parametrize("version", recorded_versions())
def test_every_recording_is_whole(version: str) -> None:
    """Each has the answers to the same tests, so that none was left out where a version is difficult."""
    assert read_recording(version).vllm == version
    assert read_recording(version).answers.keys() == read_recording(recorded_versions()[-1]).answers.keys()


@pytest.mark.parametrize("version", locked_versions())
def test_every_lock_has_what_a_cuda_build_of_its_torch_needs(version: str) -> None:
    """Where pip finds no CPU build of torch, the lock alone would not do."""
    lines = (ROOT / "locks" / f"vllm-{version}.txt").read_text().splitlines()
    (torch,) = (line.removeprefix("torch==") for line in lines if line.startswith("torch=="))
    assert (ROOT / "locks" / f"torch-{torch}-cuda.txt").exists()


def test_report_names_tests_without_the_version() -> None:
    """So the results of two versions compare line by line."""
    report = ET.fromstring(
        "<testsuite>"
        '<testcase name="test_a[real-0.24.0-whole]"/>'
        '<testcase name="test_b[real-0.24.0]"><failure message="not so&#10;at all"/></testcase>'
        '<testcase name="test_c"><error message="no server"/></testcase>'
        "</testsuite>"
    )
    assert dict(read_report(report.iter("testcase"))) == {"a[whole]": PASSED, "b": "not so", "c": "no server"}
