"""What a benchmark hands over: named rows of numbers, printed as a table and kept as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from msgspec import Struct


class Figures(Struct, frozen=True):
    """One benchmark's result. `columns` name the values of each row; the first is what the row is about."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def table(self) -> str:
        """The rows as text, columns aligned."""
        cells = [self.columns, *(tuple(map(_shown, row)) for row in self.rows)]
        widths = [max(len(row[at]) for row in cells) for at in range(len(self.columns))]
        lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([self.title, *lines, ""])


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def median(values: Iterable[float]) -> float:
    """The median: the machine is noisy, and the mean is what its noise makes of it."""
    return statistics.median(values)
