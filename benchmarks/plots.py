"""Draws the JSON of the benchmarks: one PNG for each, beside it.

python -m benchmarks.plots [FOLDER]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import msgspec

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator

ProbeAnswer = dict[str, Any]


def lines(said: ProbeAnswer, axes: Any, names: tuple[str, ...], unit: str) -> None:
    """Columns over the first one, both logarithmic."""
    columns = said["columns"]
    x = [row[0] for row in said["rows"]]
    for name in names:
        at = columns.index(name)
        axes.plot(x, [row[at] for row in said["rows"]], marker="o", label=name.split(",")[0])
    axes.set(xscale="log", yscale="log", xlabel=columns[0], ylabel=unit)
    axes.set_xticks(x, [f"{value:,}" for value in x])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend()


def bars(said: ProbeAnswer, axes: Any, names: tuple[str, ...], unit: str, *, at: int = 0, log: bool = False) -> None:
    """Columns of one row side by side, each with its number; `log` where they are far apart."""
    row = said["rows"][at]
    # A file of an earlier run may lack some.
    names = tuple(name for name in names if name in said["columns"])
    values = [row[said["columns"].index(name)] for name in names]
    shown = axes.bar([name.split(",")[0] for name in names], values, width=0.5)
    axes.bar_label(shown, fmt="%.3g")
    axes.set_ylabel(unit)
    axes.margins(y=0.15)
    if log:
        axes.set_yscale("symlog", linthresh=1)


def hour(said: ProbeAnswer, axes: Any) -> None:
    """Memory over the minutes."""
    x = [row[0] for row in said["rows"]]
    for at, name in enumerate(said["columns"][1:], start=1):
        axes.plot(x, [row[at] for row in said["rows"]], label=name.split(",")[0])
    axes.set(xlabel="minutes", ylabel="MB", ylim=(0, 45))
    axes.axhline(38, color="grey", linestyle="--", linewidth=1)
    axes.legend()


def _of(said: ProbeAnswer, **values: Any) -> ProbeAnswer:
    """The rows alone that have these values."""
    at = {said["columns"].index(name): value for name, value in values.items()}
    rows = [row for row in said["rows"] if all(row[number] == value for number, value in at.items())]
    return said | {"rows": rows}


def storm(said: ProbeAnswer, axes: Any) -> None:
    """The most loads in flight over the jitter, a line for each spread of the servers' start."""
    for spread in (0.0, 2.0, 10.0):
        rows = [row for row in said["rows"] if row[0] == spread and row[1] == 1]
        axes.plot(
            [row[2] for row in rows], [row[3] for row in rows], marker="o", label=f"starts spread by {spread:g} s"
        )
    axes.set(yscale="log", xlabel="longest jitter before the first load, s", ylabel="most loads in flight, all pods")
    axes.legend()


PLOTS: dict[str, Callable[[ProbeAnswer, Any], None]] = {
    "detection": lambda said, axes: bars(
        said, axes, ("SIGKILL to FIN, ms", "FIN to server.down, ms", "worst, ms", "5 s poll, ms"), "ms", log=True
    ),
    "first_load": lambda said, axes: bars(said, axes, ("bare loop, ms", "sidecar, ms", "worst, ms"), "ms"),
    "restore": lambda said, axes: lines(
        said, axes, ("bare 1, s", "bare 4, s", "bare 8, s", "poller, s", "sidecar, s"), "seconds"
    ),
    "restore_large": lambda said, axes: bars(
        said, axes, ("bare 1, s", "bare 4, s", "bare 8, s", "poller, s", "sidecar, s"), "seconds"
    ),
    "outage": lambda said, axes: lines(said, axes, ("poller, s", "sidecar, s"), "seconds"),
    "heartbeat": lambda said, axes: lines(said, axes, ("bare, ms", "heartbeat, ms"), "CPU, ms"),
    "checkpoint": lambda said, axes: lines(
        _of(said, format="json"), axes, ("bare write, ms", "first encoding, ms", "encoding, ms", "save, ms"), "ms"
    ),
    "footprint": lambda said, axes: bars(
        said, axes, ("libraries whole, MB", "same imports, MB", "RSS, MB", said["columns"][5]), "MB"
    ),
    "startup": lambda said, axes: bars(
        said, axes, ("libraries whole, ms", "same imports, ms", "first heartbeat, ms", "worst, ms"), "ms"
    ),
    "traffic": lambda said, axes: bars(
        said, axes, ("no load, gap ms", "one load, gap ms", "bare 1, gap ms", "sidecar, gap ms"), "ms", at=-1
    ),
    "hour": hour,
    "fleet": storm,
}


_WITHOUT_A_SERVER = frozenset({"checkpoint", "fleet"})


def draw(path: Path) -> None:
    """Draw one JSON file."""
    said: ProbeAnswer = msgspec.json.decode(path.read_bytes())
    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=110, layout="constrained")
    PLOTS[said["name"]](said, axes)
    server = {"real": "vLLM 0.32.0", "fake": "the fake vLLM"}[said["server"]]
    axes.set_title(said["title"] if said["name"] in _WITHOUT_A_SERVER else f"{said['title']} ({server})", fontsize=11)
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path.with_suffix(".png"))
    plt.close(figure)


def main(arguments: list[str]) -> None:
    """Draw every file of the folder."""
    folder = Path(arguments[0] if arguments else "benchmarks/results")
    for path in sorted(folder.glob("*.json")):
        draw(path)
        print(path.with_suffix(".png"))


if __name__ == "__main__":
    main(sys.argv[1:])
