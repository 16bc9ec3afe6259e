"""Units with scores below 0, and whether the network is better without them."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from shapray.report import wording
from shapray.report.parts import (
    Cell,
    Grid,
    Section,
    not_explained,
    num,
    text,
    with_error,
    with_interval,
)
from shapray.report.plots import INK, MARKERS, SERIES, Plot, plot, segments
from shapray.report.read import Run, array
from shapray.report.units import linked

N_LISTED, N_DRAWN = 40, 60
Row = dict[str, Any]


def section(run: Run) -> Section:
    found = run.explained.get("negatives")
    rows: list[Row] = [] if found is None else sorted(found.to_pylist(), key=lambda r: r["mean"])
    counted = {name: sum(_verdict(row) == name for row in rows) for name in _VERDICTS}
    return Section(
        "negatives",
        "Do negative scores mean that removing helps?",
        {
            "missing": not_explained("negatives", "Units whose score is below 0")
            if found is None
            else None,
            "n": len(rows),
            "n_below": 0 if run.scores is None else int((array(run.scores, "mean") < 0).sum()),
            "n_listed": min(N_LISTED, len(rows)),
            "n_images": _n_images(rows),
            "counted": counted,
            "plot": _plot(rows) if rows else None,
            "grid": _grid(run, rows[:N_LISTED]) if rows else None,
        },
    )


_VERDICTS = ("better", "worse", "not clear")  # without the unit


def _n_images(rows: list[Row]) -> str:
    return wording.count(max((row["n_images"] or 0 for row in rows), default=0))


def _verdict(row: Row) -> str:
    low, high = row["loss_low"], row["loss_high"]
    if wording.known(high) and high < 0:
        return "better"
    return "worse" if wording.known(low) and low > 0 else "not clear"


def _plot(rows: list[Row]) -> Plot:
    measured = [row for row in rows if wording.known(row["loss_change"])]
    # Of many, those at equal steps from the first to the last by score.
    at = np.unique(np.linspace(0, max(0, len(measured) - 1), N_DRAWN).round().astype(int))
    drawn = [measured[place] for place in at] if measured else []

    def draw(axes: Axes) -> None:
        for name, colour, marker in zip(_VERDICTS, (SERIES[0], SERIES[1], INK), MARKERS):
            of = [row for row in drawn if _verdict(row) == name]
            segments(
                axes,
                [
                    (row["mean"], np.nan if row["loss_low"] is None else row["loss_low"])
                    for row in of
                ],
                [
                    (row["mean"], np.nan if row["loss_high"] is None else row["loss_high"])
                    for row in of
                ],
                color=colour,
                linewidth=0.8,
            )
            if of:
                x, y = ([row[column] for row in of] for column in ("mean", "loss_change"))
                axes.plot(x, y, marker, color=colour, label=f"removing it: {name}")
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set(xlabel="score", ylabel="change of the loss (nats)")

    facts = ", ".join(
        f"{name} for {sum(_verdict(row) == name for row in rows)}" for name in _VERDICTS
    )
    return plot(
        "negatives",
        "Units of negative score: what the loss of the whole, uncut network changes by on "
        f"{_n_images(rows)} evaluation images when each alone is removed (below 0: better without "
        "it). Whiskers: 95% intervals.",
        f"{len(rows)} units with negative scores; removing alone: {facts}.",
        draw,
        height=230,
        left=70,
    )


def _grid(run: Run, rows: list[Row]) -> Grid:
    classes = run.record.class_names
    return Grid(
        "Units with negative scores",
        [
            "group",
            "unit",
            "removing it alone",
            "class it harms most",
            "score ± standard error",
            "images where negative",
            "that class's part",
            "change of the whole network's loss",
            "change of the accuracy (points)",
            "evaluation images",
        ],
        [
            [
                text(wording.named(row["group"]), row["group"]),
                Cell(linked(run, row["group"], row["unit"], str(row["unit"])), str(row["unit"])),
                text(_verdict(row)),
                text(wording.class_name(row["label"], classes)),
                with_error(row["mean"], row["total_error"]),
                num(row["negative_share"], lambda share: wording.percent(share, 0)),
                num(row["label_share"], lambda share: wording.percent(share, 0)),
                with_interval(
                    row["loss_change"], row["loss_low"], row["loss_high"], wording.number
                ),
                num(row["top1_change"], wording.points),
                num(row["n_images"], wording.count),
            ]
            for row in rows
        ],
        texts=4,
    )
