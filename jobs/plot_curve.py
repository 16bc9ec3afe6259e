"""Draws accuracy and loss against the multiply-adds that are left, from a finished run.

python jobs/plot_curve.py RUN_DIRECTORY PICTURE.png
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import fsspec
import matplotlib as mpl
import numpy as np
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

mpl.use("Agg")
Row = dict[str, Any]
# Told apart by eyes that see few colours (Okabe and Ito 2008), and by their markers.
COLOURS = ("#0072b2", "#767676", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "black")
MARKERS = "os^DvPX*"  # of criteria, as the colours
DASHES = ("-", "--", ":", "-.")  # of repairs


def draw(rows: Iterable[Row], picture: str) -> None:
    """A line for each criterion and repair, and the whole network's level.

    Whiskers are 95 % intervals; several seeds are drawn as their mean, with a band and whiskers
    from the least to the greatest. What is not finite is left out.
    """
    lines: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        lines[_criterion(row), row["repair"]].append(row)
    [whole] = [row for name in list(lines) if name[0] == "whole" for row in lines.pop(name)]
    criteria, repairs = (list(dict.fromkeys(names)) for names in zip(*lines))
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, key, title in ((left, "top1", "accuracy"), (right, "loss", "cross-entropy (nats)")):
        if whole[key] is not None:
            axes.axhline(whole[key], color="black", linewidth=1, label="whole network")
        for (criterion, repair), found in lines.items():
            look, dash = criteria.index(criterion), DASHES[repairs.index(repair) % len(DASHES)]
            colour, marker = COLOURS[look % len(COLOURS)], MARKERS[look % len(MARKERS)]
            _draw_line(axes, found, key, whole["multiply_adds"], colour, marker + dash)
        axes.set(title=title, xlabel="multiply-adds left")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3)
    left.yaxis.set_major_formatter(PercentFormatter(1))
    right.set_yscale("log")
    least = min(row["loss"] for row in rows if row["loss"])
    right.set_ylim(bottom=least / 2)  # an interval may reach below 0
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(picture, dpi=120)


def _draw_line(
    axes: Axes, rows: Sequence[Row], key: str, whole: int, colour: str, style: str
) -> None:
    """The rows of one criterion and repair; `whole`: multiply-adds of the whole network."""
    sizes: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        if row[key] is not None:
            sizes[row["size"]].append(row)
    points = np.array(sorted(_point(found, key) for found in sizes.values())).reshape(-1, 4)
    x, y, low, high = points.T
    n_seeds = len({row["seed"] for row in rows})
    name, repair = _criterion(rows[0]), rows[0]["repair"]
    name += f", repaired by {repair}" if repair != "none" else ""
    axes.errorbar(
        x / whole,
        y,
        yerr=(y - low, high - y),
        fmt=style,
        color=colour,
        label=f"{name}, mean and range of {n_seeds}" if n_seeds > 1 else name,
        markersize=5,
        elinewidth=0.8,
        capsize=2,
    )
    if n_seeds > 1:
        axes.fill_between(x / whole, low, high, color=colour, alpha=0.15, linewidth=0)


def _criterion(row: Row) -> str:
    """What a network was cut by, and in how many rounds."""
    several = row.get("rounds", 1) > 1
    return f"{row['criterion']} in {row['rounds']} rounds" if several else row["criterion"]


def _point(rows: Sequence[Row], key: str) -> tuple[float, float, float, float]:
    """Mean multiply-adds and mean number of the networks of one size, and the number's range."""
    values = [row[key] for row in rows]
    low, high = rows[0][f"{key}_low"], rows[0][f"{key}_high"]
    if len(rows) > 1 or low is None:
        low, high = min(values), max(values)
    return float(np.mean([row["multiply_adds"] for row in rows])), float(np.mean(values)), low, high


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with fsspec.open(f"{sys.argv[1].rstrip('/')}/prune/curve.parquet") as file:
        draw(pq.read_table(file).to_pylist(), sys.argv[2])
