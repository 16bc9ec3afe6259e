"""Accuracy and loss against what is left to compute."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from shapray.report import wording
from shapray.report.parts import Grid, Missing, Section, num, text, with_interval
from shapray.report.plots import (
    DASHES,
    INK,
    MARKERS,
    SERIES,
    Plot,
    logarithmic,
    percents,
    plot,
    segments,
)
from shapray.report.read import Run
from shapray.storage import names

Row = dict[str, Any]


def section(run: Run) -> Section:
    path = f"{names.CUTS}/{names.CURVE}"
    if run.curve is None or not run.curve.num_rows:
        missing = Missing("Accuracy and loss at several sizes", path)
        return Section("curves", "Accuracy and loss by size", _content(missing))
    rows = run.curve.to_pylist()
    whole = next((row for row in rows if row["criterion"] == "whole"), rows[0])
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row is not whole:
            lines[_name(row)].append(row)
    plots = [
        _plot("accuracy", "top1", lines, whole, "Accuracy"),
        _plot("loss", "loss", lines, whole, "Loss (cross-entropy, nats)"),
    ]
    return Section("curves", "Accuracy and loss by size", _content(None, plots, _grid(rows, whole)))


def _content(missing: Any, plots: Sequence[Plot] = (), grid: Grid | None = None) -> dict[str, Any]:
    return {"missing": missing, "plots": plots, "grid": grid}


def _name(row: Row) -> str:
    name = row["criterion"] + (f" in {row['rounds']} rounds" if row["rounds"] > 1 else "")
    return name if row["repair"] == "none" else f"{name}, repaired"


def _plot(key: str, column: str, lines: dict[str, list[Row]], whole: Row, title: str) -> Plot:
    scale = whole["multiply_adds"] or 1
    points = {name: _points(rows, column, scale) for name, rows in lines.items()}
    own = [row[column] for rows in lines.values() for row in rows if row[column]]

    def draw(axes: Axes) -> None:
        if whole[column] is not None:
            axes.axhline(whole[column], color=INK, linewidth=2.2, label="whole network")
        for place, (name, found) in enumerate(points.items()):
            look = place % len(SERIES)
            colour, dash = SERIES[look], DASHES[(place // len(SERIES) + place) % len(DASHES)]
            x, y, low, high = found.T
            segments(axes, list(zip(x, low)), list(zip(x, high)), color=colour, linewidth=0.9)
            axes.plot(x, y, color=colour, linestyle=dash, marker=MARKERS[look], label=name[:24])
        axes.set(xlabel="multiply-adds left")
        percents(axes.xaxis)
        if column == "top1":
            percents(axes.yaxis)
        elif own and max(own) > 5 * min(own) > 0:
            logarithmic(axes)
            axes.set(ylabel="nats, logarithmic scale")

    facts = "; ".join(
        f"{name}: "
        + ", ".join(f"{_shown(y, column)} at {wording.percent(x, 0)}" for x, y, _, _ in found[::-1])
        for name, found in points.items()
    )
    shown = _shown(whole[column], column)
    return plot(
        f"curve-{key}",
        f"{title} against the multiply-adds that are left. Whiskers: 95% intervals; of random "
        "cuts the mean, least and greatest.",
        f"{title} by multiply-adds left. Whole network: {shown}. {facts}.",
        draw,
        height=260,
    )


def _shown(value: float | None, column: str) -> str:
    return wording.percent(value) if column == "top1" else wording.number(value)


def _points(rows: list[Row], column: str, scale: float) -> np.ndarray:
    """(n_sizes, 4): share of multiply-adds, number, its low and high end; of several seeds their
    mean, least and greatest."""
    sizes: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        if row[column] is not None:
            sizes[row["size"]].append(row)
    found = []
    for of_size in sizes.values():
        values = [row[column] for row in of_size]
        low, high = of_size[0][f"{column}_low"], of_size[0][f"{column}_high"]
        if len(of_size) > 1 or low is None or high is None:
            low, high = min(values), max(values)
        share = fmean(row["multiply_adds"] for row in of_size) / scale
        found.append((share, fmean(values), low, high))
    return np.array(sorted(found), float).reshape(-1, 4)


def _grid(rows: list[Row], whole: Row) -> Grid:
    return Grid(
        "Every network that was measured",
        ["criterion", "repair", "seed", "multiply-adds left", "parameters", "accuracy", "loss"],
        [
            [
                text(wording.named(row["criterion"]), row["criterion"]),
                text(wording.named(row["repair"])),
                num(row["seed"], wording.count),
                num(row["multiply_adds"] / (whole["multiply_adds"] or 1), wording.percent),
                num(row["parameters"], wording.short),
                with_interval(row["top1"], row["top1_low"], row["top1_high"], wording.percent),
                with_interval(row["loss"], row["loss_low"], row["loss_high"], wording.number),
            ]
            for row in rows
        ],
        texts=2,
    )
