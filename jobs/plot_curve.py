"""Draws a finished run: accuracy and loss against the multiply-adds that are left; then, layer by
layer, what it costs to remove the units of one group alone.

python jobs/plot_curve.py RUN_DIRECTORY PICTURE.png [PICTURE_OF_GROUPS.png]
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
COLUMNS = 4  # of panels


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


def draw_groups(rows: Iterable[Row], picture: str) -> None:
    """A panel for each group: the loss (KL divergence from the whole network, on calibration
    images, after the job's repair) against the share of its units that are gone, all other groups
    whole. A line for each criterion; of several seeds their mean, with a band from the least to the
    greatest.

    In the legend is each criterion's mean over the removals of all units but one, one after the
    other, then over the groups: the smaller, the better it knows which units are worth least. In
    between what was measured, losses are taken to lie on straight lines.

    Source: Ancona, Oztireli, Gross 2020, "Shapley Value as Principled Metric for Structured Network
    Pruning", where this mean tells criteria apart.
    """
    curves: dict[str, dict[str, dict[int | None, list[tuple[int, float]]]]] = {}
    for row in rows:
        of_criterion = curves.setdefault(row["group"], {}).setdefault(row["criterion"], {})
        of_criterion.setdefault(row["seed"], []).append((row["n_removed"], row["loss"]))
    criteria = list(dict.fromkeys(name for of_group in curves.values() for name in of_group))
    means: dict[str, list[float]] = defaultdict(list)
    n_lines = -(-len(curves) // COLUMNS)
    size = (3 * min(COLUMNS, len(curves)), 2.4 * n_lines + 1.2)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(n_lines, min(COLUMNS, len(curves)), squeeze=False).ravel()
    for unused in panels[len(curves) :]:
        unused.set_axis_off()
    for axes, (group, of_group) in zip(panels, curves.items()):
        for criterion, of_seeds in of_group.items():
            look = criteria.index(criterion)
            colour, marker = COLOURS[look % len(COLOURS)], MARKERS[look % len(MARKERS)]
            n_removed = np.array(sorted(n for n, _ in next(iter(of_seeds.values()))))
            losses = np.array([[y for _, y in sorted(of_seed)] for of_seed in of_seeds.values()])
            removals = np.arange(1, n_removed[-1] + 1)
            mean = losses.mean(0)
            means[criterion].append(float(np.interp(removals, n_removed, mean).mean()))
            shares = n_removed / (n_removed[-1] + 1)
            line = marker + DASHES[look // len(COLOURS) % len(DASHES)]
            axes.plot(shares, mean, line, color=colour, label=criterion, markersize=4)
            if len(losses) > 1:
                axes.fill_between(shares, losses.min(0), losses.max(0), color=colour, alpha=0.15)
        axes.set_title(group, fontsize=9)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3)
        axes.set(xlim=(0, 1), ylim=(0, None))
    figure.supxlabel("units of the group removed", fontsize=9)
    figure.supylabel("KL divergence (nats)", fontsize=9)
    found = {
        label: handle for ax in panels for handle, label in zip(*ax.get_legend_handles_labels())
    }
    best_first = sorted(criteria, key=lambda name: float(np.mean(means[name])))
    figure.legend(
        [found[name] for name in best_first],
        [f"{name}, mean {np.mean(means[name]):.3g}" for name in best_first],
        loc="outside upper center",
        ncols=3,
        fontsize=9,
    )
    figure.savefig(picture, dpi=120)


def _read(folder: str, table: str) -> list[Row]:
    path = f"{folder.rstrip('/')}/prune/{table}"
    try:
        with fsspec.open(path) as file:
            rows: list[Row] = pq.read_table(file).to_pylist()
    except FileNotFoundError:
        sys.exit(
            f"{path}: no such file; is the run finished"
            + ("?" if table == "curve.parquet" else ", and prune.allocation measured?")
        )
    return rows


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    draw(_read(sys.argv[1], "curve.parquet"), sys.argv[2])
    if len(sys.argv) == 4:
        draw_groups(_read(sys.argv[1], "group_losses.parquet"), sys.argv[3])
