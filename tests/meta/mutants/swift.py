"""Has a mutant meet the quick tests first, fewer examples of each law, and no search for a smaller counterexample."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import Phase, settings

EXAMPLES: Final = 25
SLOW: Final = 0.9  # seconds; what takes longer starts processes, or reads files of megabytes
PHASES: Final = (Phase.explicit, Phase.generate)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order by the seconds that mutmut measured, and leave out what is slow and no law."""
    record = Path("mutmut-stats.json")
    seconds = json.loads(record.read_text())["duration_by_test"] if record.exists() else {}
    slow = []
    for item in items:
        function: Any = getattr(item, "function", None)
        mine = getattr(function, "_hypothesis_internal_use_settings", None)
        if mine is not None:
            examples = min(EXAMPLES, mine.max_examples)
            quick = settings(mine, max_examples=examples, phases=PHASES, derandomize=True, database=None, deadline=None)
            function._hypothesis_internal_use_settings = quick
        elif seconds.get(item.nodeid, 0.0) > SLOW:
            slow.append(item)
    # The process that this one is a fork of has run the tests: what it remembers would hide the mutant.
    for name in [name for name in sys.modules if name.startswith("lora_sidecar.")]:
        for one in vars(sys.modules[name]).values():
            if hasattr(one, "cache_clear"):
                one.cache_clear()
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]
