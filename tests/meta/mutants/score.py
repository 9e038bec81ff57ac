"""The score of the last `make mutation`, module by module, and whether each mutant that lived is explained.

The trap guarded against is a list of excuses that outlives its mutants. A survivor is known by its function and by the
lines that it changes, so an explanation that fits none any more is an error, as is a survivor without one.

    python -m tests.meta.mutants.score              the table, and what is not explained
    python -m tests.meta.mutants.score reconcile    the survivors of one module, to be explained or killed
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

SURVIVORS: Final = Path(__file__).with_name("survivors.toml")
REFUSED: Final = "caught by type check"
KILLED: Final = frozenset({"killed", "timeout", REFUSED})
UNTRIED: Final = frozenset({"not checked", "check was interrupted by user"})
ENOUGH: Final = 95.0
"""Per cent of the mutants, over all modules."""


class Survivor(NamedTuple):
    """A mutant that no test noticed: its function, and the lines as they were and as they are."""

    function: str
    was: str
    now: str


def mutants() -> Iterator[tuple[Path, str, str]]:
    """Every mutant: its module, its name and what became of it."""
    for path in sorted(walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            yield path, name, status_by_exit_code[code]


def survivor(path: Path, name: str) -> Survivor:
    """What a mutant changed."""
    lines = [line for line in get_diff_for_mutant(name, path=path).splitlines() if line[:3] not in ("---", "+++")]
    was, now = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    module, _, mangled = name.rpartition(".")
    function = mangled.partition("__mutmut_")[0].removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return Survivor(f"{module.removeprefix('lora_sidecar.')}.{function}", was, now)


def explained() -> Counter[Survivor]:
    """The survivors that are known, as often as they are."""
    entries = tomllib.loads(SURVIVORS.read_text()).get("survivor", [])
    return Counter(Survivor(one["function"], one["was"], one["now"]) for one in entries if one["why"])


def main() -> int:
    """Print the score; 1 where it is too low, or a survivor and its explanation do not come together."""
    if sys.argv[1:]:
        for path, name, status in mutants():
            if path.stem == sys.argv[1] and status not in KILLED | UNTRIED:
                print(f"{name}: {status}\n  {survivor(path, name)._asdict()}")
        return 0
    found = list(mutants())
    by_module: dict[str, Counter[str]] = {}
    for path, _, status in found:
        by_module.setdefault("/".join(path.with_suffix("").parts[1:]), Counter())[status] += 1
    print(
        "| module | mutants | refused by the types | killed by a test | survived | score |\n|---|---|---|---|---|---|"
    )
    for module, counts in by_module.items():
        print(_row(f"`{module}`", counts))
    total = sum(by_module.values(), Counter())
    print(_row("all", total))
    alive = Counter(survivor(path, name) for path, name, status in found if status not in KILLED | UNTRIED)
    known = explained()
    for one in (alive - known).elements():
        print(f"not explained: {one.function}\n  - {one.was}\n  + {one.now}")
    for one in (known - alive).elements():
        print(f"explained, and dead: {one.function}\n  - {one.was}\n  + {one.now}")
    undecided = sum(count for status, count in total.items() if status in UNTRIED)
    if undecided:
        print(f"{undecided} mutants were not tried")
    return int(alive != known or undecided > 0 or _score(total) < ENOUGH)


def _score(counts: Counter[str]) -> float:
    tried = sum(count for status, count in counts.items() if status not in UNTRIED)
    return 100 * sum(counts[status] for status in KILLED) / max(tried, 1)


def _row(name: str, counts: Counter[str]) -> str:
    every = sum(count for status, count in counts.items() if status not in UNTRIED)
    dead, refused = sum(counts[status] for status in KILLED), counts[REFUSED]
    return f"| {name} | {every} | {refused} | {dead - refused} | {every - dead} | {_score(counts):.1f} % |"


if __name__ == "__main__":
    sys.exit(main())
