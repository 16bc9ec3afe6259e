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
from shapray.report.read import Run
from shapray.report.scores import tagged

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
            "counted": counted,
            "plot": _plot(rows) if rows else None,
            "grid": _grid(run, rows[:N_LISTED]) if rows else None,
        },
    )


_VERDICTS = ("helps", "harms", "not to be told")


def _verdict(row: Row) -> str:
    low, high = row["loss_low"], row["loss_high"]
    if wording.known(high) and high < 0:
        return "helps"
    return "harms" if wording.known(low) and low > 0 else "not to be told"


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
                [(row["mean"], row["loss_low"] or np.nan) for row in of],
                [(row["mean"], row["loss_high"] or np.nan) for row in of],
                color=colour,
                linewidth=0.8,
            )
            if of:
                x, y = ([row[column] for row in of] for column in ("mean", "loss_change"))
                axes.plot(x, y, marker, color=colour, label=f"removing {name}"[:24])
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set(xlabel="score", ylabel="change of the loss")

    facts = ", ".join(
        f"{name} for {sum(_verdict(row) == name for row in rows)}" for name in _VERDICTS
    )
    return plot(
        "negatives",
        "Units of negative score: what the loss of the evaluation images changes by when each "
        "alone is removed (below 0: better without it), with 95% intervals.",
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
            "score ± error",
            "images where negative",
            "that class's part",
            "change of the loss",
            "of the accuracy (points)",
        ],
        [
            [
                text(wording.named(row["group"]), row["group"]),
                Cell(
                    tagged(run, row["group"], row["unit"], str(row["unit"])), f"{row['unit']:06d}"
                ),
                text(_verdict(row)),
                text(wording.class_name(row["label"], classes)),
                with_error(row["mean"], row["total_error"]),
                num(row["negative_share"], lambda share: wording.percent(share, 0)),
                num(row["label_share"], lambda share: wording.percent(share, 0)),
                with_interval(
                    row["loss_change"], row["loss_low"], row["loss_high"], wording.number
                ),
                num(row["top1_change"], wording.points),
            ]
            for row in rows
        ],
        texts=4,
    )
