from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from lora_sidecar.core.conditions import ConditionType
from lora_sidecar.core.events import EventName
from tests.support.paths import ROOT

TABLE = (ROOT / "docs/failure-modes.md").read_text()
LINES = [line[2:-2].split(" | ") for line in TABLE.splitlines() if re.match(r"\| [A-G]\d", line)]
ROWS = {cells[0]: cells for cells in LINES}
KNOWN = {"A": 15, "B": 20, "C": 22, "D": 20, "E": 10, "F": 13, "G": 9}
"""How many faults of each part are known: the numbers go from 1 to these, and may go further."""

CANNOT_BE_TESTED = {"E4"}
"""What the sidecar cannot see."""

CODE = re.compile(r"`([^`]+)`")


def names_in(path: Path) -> set[str]:
    """The test functions of a file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)}


def test_every_known_fault_has_its_row() -> None:
    """Nothing that is known to happen is left out, and no row is there twice."""
    wanted = {f"{part}{number}" for part, last in KNOWN.items() for number in range(1, last + 1)}
    assert wanted <= ROWS.keys()
    assert len(LINES) == len(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_row_names_tests_that_exist(row: str) -> None:
    """Each row has five cells and is held by at least one test; a case that it names is a case of that test."""
    cells = ROWS[row]
    assert len(cells) == 5
    assert all(cells)
    tests = CODE.findall(cells[4])
    assert bool(tests) is (row not in CANNOT_BE_TESTED)
    for test in tests:
        found = re.fullmatch(r"([\w/]+\.py)::(test_\w+)(?:\[(.+)\])?", test)
        assert found is not None, test
        path = ROOT / "tests" / found[1]
        assert path.is_file(), test
        assert found[2] in names_in(path), test
        assert found[3] is None or f'"{found[3]}"' in path.read_text(), test


@pytest.mark.parametrize("row", ROWS)
def test_row_speaks_of_events_and_conditions_that_exist(row: str) -> None:
    """What a person is told to look for can occur."""
    known = {event.value for event in EventName} | {condition.value for condition in ConditionType}
    for word in CODE.findall(ROWS[row][3]):
        if re.fullmatch(r"[a-z]+\.[a-z_]+|[A-Z][A-Za-z]+", word):
            assert word in known, word
