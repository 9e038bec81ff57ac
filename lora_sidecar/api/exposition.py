"""Prometheus' text format, version 0.0.4: families of series, written as lines.

The trap guarded against is a client library in every pod: it is written for many threads, registries and formats, and
its web servers come with it, which is more memory than all the metrics here. One line that a scraper cannot read would
cost the whole scrape; so values and labels are written in one place, and the tests read them with that library.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]

_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Family:
    """One metric's series. `name` is what each line begins with; `documentation` is one line without backslashes."""

    def __init__(self, kind: Kind, name: str, documentation: str, *labels: str) -> None:
        self._name = name
        self._labels = labels
        self._lines = [f"# HELP {name} {documentation}\n", f"# TYPE {name} {kind}\n"]

    def add(self, values: Sequence[str], value: float, suffix: str = "", le: str = "") -> None:
        """Add a series, with a value for each label; `suffix` and `le` are those of a histogram's."""
        pairs = [f'{label}="{text.translate(_ESCAPED)}"' for label, text in zip(self._labels, values, strict=True)]
        if le:
            pairs.append(f'le="{le}"')
        labels = f"{{{','.join(sorted(pairs))}}}" if pairs else ""
        self._lines.append(f"{self._name}{suffix}{labels} {number(value)}\n")

    def text(self) -> str:
        """The family's lines, with those that say what it is; a family without series has these two alone."""
        return "".join(self._lines)


class Total:
    """A number for each of some label values that only grows; `begin` has it appear at 0."""

    def __init__(self, name: str, documentation: str, *labels: str) -> None:
        """`name` is without the `_total` that it ends in."""
        self._about = (f"{name}_total", documentation, *labels)
        self._values: dict[tuple[str, ...], float] = {}

    def begin(self, *values: str) -> None:
        """Have a series."""
        self._values.setdefault(values, 0)

    def add(self, *values: str, by: float = 1) -> None:
        """Count."""
        self._values[values] = self._values.get(values, 0) + by

    def family(self) -> Family:
        """What is known now."""
        family = Family("counter", *self._about)
        for values, value in self._values.items():
            family.add(values, value)
        return family


class Histogram:
    """How often each of some label values took how long, in seconds; `begin` has it appear at 0."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float], *labels: str) -> None:
        """`bounds` are the buckets' upper ones, rising, without the infinite one."""
        self._about = (name, documentation, *labels)
        self._bounds = (*bounds, math.inf)
        self._buckets: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def begin(self, *values: str) -> None:
        """Have a series."""
        if values not in self._buckets:
            self._buckets[values] = [0] * len(self._bounds)
            self._sums[values] = 0

    def observe(self, *values: str, seconds: float) -> None:
        """Take one of them into account."""
        self.begin(*values)
        self._buckets[values][bisect.bisect_left(self._bounds, seconds)] += 1
        self._sums[values] += seconds

    def family(self) -> Family:
        """What is known now."""
        family = Family("histogram", *self._about)
        for values, buckets in self._buckets.items():
            count = 0
            for bound, inside in zip(self._bounds, buckets, strict=True):
                count += inside
                family.add(values, count, "_bucket", number(bound))
            family.add(values, count, "_count")
            family.add(values, self._sums[values], "_sum")
        return family


def number(value: float) -> str:
    """A number as the format has it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))


def exposition(families: Iterable[Family]) -> bytes:
    """The body of an answer to a scrape. Raises `UnicodeEncodeError` for a label that is no UTF-8."""
    return "".join(family.text() for family in families).encode()
