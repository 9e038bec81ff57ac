"""Runs mutmut over the pure core, and adds the mutations that it does not make itself."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final

import libcst as cst
import mutmut.__main__ as program
import pytest
from _pytest.config import _prepareconfig
from mutmut.configuration import config
from mutmut.mutation import mutators
from mutmut.mutation.data import LineSpan, MutantLineSpans
from mutmut.mutation.file_mutation import FailedTypeCheckMutant, MutatedMethodLocation, MutationVisitor
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.stats import print_stats
from mutmut.type_checking import run_type_checker
from mutmut.utils.file_utils import change_cwd
from mutmut.utils.format_utils import get_mutant_name
from mutmut.workers.isolation import ForkRunner


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


def spared(visitor: MutationVisitor, node: cst.CSTNode) -> bool:
    """Leave the `strict` of `zip` as it is: like `assert_never`, it claims what nothing is to come near."""
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value == "zip":
        claims.update(one for one in node.args if one.keyword is not None and one.keyword.value == "strict")
    return node in claims or bool(skipped(visitor, node))


def unclaimed(visitor: MutationVisitor, node: cst.CSTNode, mutated: cst.CSTNode) -> bool:
    """Nor leave it out."""
    if isinstance(node, cst.Call) and isinstance(mutated, cst.Call) and claims & set(node.args) - set(mutated.args):
        return True
    return bool(removed(visitor, node, mutated))


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
    if force_output or next(_turns) % 20 == 0:
        print_stats(*data, force_output=True)


QUICK: Final = 0.02
"""Seconds."""


class Collected:
    """The tests of mutmut's choice, collected once: to start pytest for each mutant takes longer than its tests."""

    def __init__(self) -> None:
        self.items: dict[str, pytest.Item] = {}
        self.reach: Counter[str] = Counter()
        self.failed = False

    def collect(self) -> None:
        """Begin a session that never ends; every process that is forked from this one has it."""
        with change_cwd("mutants"):
            chosen = [*config().pytest_add_cli_args, *config().pytest_add_cli_args_test_selection]
            settings = _prepareconfig(["--rootdir=.", "--tb=native", "-s", *chosen], [self])
            settings._do_configure()
            settings.pluginmanager.unregister(name="terminalreporter")
            session = pytest.Session.from_config(settings)
            settings.hook.pytest_sessionstart(session=session)
            settings.hook.pytest_collection(session=session)
        self.items = {item.nodeid: item for item in session.items}
        self.reach.update(test for reached in state().tests_by_mangled_function_name.values() for test in reached)
        if not self.items:
            raise LookupError("no test was collected")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notice a failure."""
        self.failed = self.failed or report.failed

    def run(self, names: Iterable[str]) -> int:
        """Run tests until one fails, the quick ones first, and of those the ones that touch the fewest functions."""
        os.chdir("mutants")
        seconds = state().duration_by_test
        chosen = [name for name in names if name in self.items]
        chosen.sort(key=lambda name: (seconds.get(name, 0.0) > QUICK, self.reach[name], name))
        items = [self.items[name] for name in chosen]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return 1
        return 0


def start(runner: ForkRunner) -> None:
    """Collect before anything is forked."""
    collected.collect()
    started(runner)


def run(runner: PytestRunner, *, mutant_name: str | None, tests: Iterable[str]) -> int:
    """Run the tests for a mutant; without one, as mutmut does."""
    code: int = run_tests(runner, mutant_name=None, tests=tests) if mutant_name is None else collected.run(tests)
    return code


collected = Collected()
run_tests = PytestRunner.run_tests
PytestRunner.run_tests = run
started = ForkRunner.startup
ForkRunner.startup = start
_turns = count()
claims: set[cst.CSTNode] = set()
skipped = MutationVisitor._skip_node_and_children
MutationVisitor._skip_node_and_children = spared
removed = MutationVisitor._removes_ignored_code
MutationVisitor._removes_ignored_code = unclaimed
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
