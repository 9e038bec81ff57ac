"""Runs mutmut over the pure core, and adds the mutations that it does not make itself."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final

import libcst as cst
import mutmut.__main__ as program
from mutmut.configuration import config
from mutmut.mutation import mutators
from mutmut.mutation.data import LineSpan, MutantLineSpans
from mutmut.mutation.file_mutation import FailedTypeCheckMutant, MutatedMethodLocation
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.stats import print_stats
from mutmut.type_checking import run_type_checker
from mutmut.utils.file_utils import change_cwd
from mutmut.utils.format_utils import get_mutant_name


def words(node: cst.BaseString) -> Iterable[cst.BaseString]:
    """Spoil the strings that a program reads; a sentence is for people."""
    if isinstance(node, cst.SimpleString) and " " not in node.value:
        yield from mutators.operator_string(node)


def negated(node: cst.If | cst.While | cst.CompIf) -> Iterable[cst.CSTNode]:
    """Take the other branch. mutmut swaps comparisons and drops a `not` itself."""
    if isinstance(node.test, cst.Comparison | cst.UnaryOperation):
        return
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


def left_out(node: cst.Expr) -> Iterable[cst.CSTNode]:
    """Leave a step out."""
    if isinstance(node.value, cst.Call | cst.Await | cst.Yield):
        yield cst.Pass()


def ill_typed() -> dict[str, FailedTypeCheckMutant]:
    """The mutants that the type checker refuses. mutmut's own search parses each mutated file, which takes minutes."""
    with change_cwd("mutants"):
        errors = run_type_checker(config().type_check_command)
    refused: dict[str, FailedTypeCheckMutant] = {}
    for error in errors:
        path = error.file_path.relative_to(Path("mutants").absolute())
        index = _spans(path)
        name = next((name for name, span in index.items() if span.start <= error.line_number <= span.end), "")
        if not name:
            raise LookupError(f"{path}:{error.line_number} is in no mutant: {error.error_description}")
        where = MutatedMethodLocation(error.file_path, name, index[name].start, index[name].end)
        key = get_mutant_name(path, name)
        refused[key] = FailedTypeCheckMutant(where, key, error)
    return refused


@cache
def _spans(path: Path) -> Mapping[str, LineSpan]:
    index = MutantLineSpans.load(path)
    return {} if index is None else index.span_by_function_name


def now_and_then(*data: object, force_output: bool = False) -> None:
    """Print the figures; mutmut counts every mutant anew for each, which is half of its own time."""
    turn = next(_turns)
    if turn == 0:
        gc.collect()
        gc.freeze()  # so that no process that is forked from this one goes through all of it again
    if force_output or turn % 20 == 0:
        print_stats(*data, force_output=True)


def specific_first(runner: PytestRunner, *, mutant_name: str | None, tests: Iterable[str]) -> int:
    """Run the tests that touch the fewest functions, and only if none of them fails the others.

    Most mutants end there; to collect hundreds of tests takes longer than to run thirty.
    """
    reach = Counter(test for reached in state().tests_by_mangled_function_name.values() for test in reached)
    ordered = sorted(tests, key=lambda test: (reach[test], test))
    if not ordered:
        return run_tests(runner, mutant_name=mutant_name, tests=ordered)
    for some in (ordered[:FIRST], ordered[FIRST:]):
        code: int = run_tests(runner, mutant_name=mutant_name, tests=some) if some else NOTHING_LEFT
        if code not in (0, NOTHING_LEFT):
            return code
    return 0


FIRST: Final = 30
NOTHING_LEFT: Final = 5
"""Pytest's own: all of the tests were left out for taking long."""

run_tests = PytestRunner.run_tests
PytestRunner.run_tests = specific_first
_turns = count()
program.print_stats = now_and_then
program.filter_mutants_with_type_checker = ill_typed
mutators.mutation_operators[:] = [
    *(
        (kind, words if operator is mutators.operator_string else operator)
        for kind, operator in mutators.mutation_operators
    ),
    (cst.If, negated),
    (cst.While, negated),
    (cst.CompIf, negated),
    (cst.Expr, left_out),
]

if __name__ == "__main__":
    sys.exit(program.cli())
