"""What a class loses without the units that serve it most."""

from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from shapray.report import wording
from shapray.report.parts import Cell, Grid, num, text, with_interval
from shapray.report.plots import INK, MARKERS, SERIES, Plot, plot
from shapray.report.read import Run
from shapray.report.units import full

N_NAMED = 40  # units of a class that are listed
Row = dict[str, Any]
_REMOVALS = {
    "class": "units that serve it",
    "random": "as many at random",
    "score": "units of largest score",
}


def content(run: Run, rows: list[Row]) -> dict[str, Any]:
    """What the section on classes shows of it.

    Args:
        rows: of ``explain/class_removal.parquet``.
    """
    own = [row for row in rows if row["removed"] == "class"]
    n_units = max((row["n_units"] for row in own), default=0)
    n_all = sum(table.num_rows for table in run.scores_of.values())
    return {
        "plot": _plot(rows),
        "grid": _grid(run, rows),
        "units": _units(run, own),
        "n_units": n_units,
        "share": wording.percent(n_units / n_all, 0) if n_all else None,
        "n_images": _n_images(rows),
        "extreme": _extreme(run, own),
    }


def _n_images(rows: list[Row]) -> str:
    return wording.count(max(row["n_images"] + row["n_others"] for row in rows))


def _change(row: Row, of: str) -> float | None:
    """In points: of the accuracy on the class (`top1`), or on `others`."""
    return wording.change(row[f"{of}_before"], row[f"{of}_after"])


def _changes(rows: list[Row], kind: str) -> list[tuple[float, float, Row]]:
    """(of other classes, of the class, row), where both are known."""
    return [
        (others, own, row)
        for row in rows
        if row["removed"] == kind
        and (others := _change(row, "others")) is not None
        and (own := _change(row, "top1")) is not None
    ]


def _extreme(run: Run, rows: list[Row]) -> Markup | None:
    """In words, the class that loses most more than the others."""
    changes = _changes(rows, "class")
    if not changes:
        return None
    others, own, row = min(changes, key=lambda change: change[1] - change[0])
    if own >= min(others, 0):
        return None
    return Markup("Farthest apart: {} falls from {} to {}, other classes {} by {} points.").format(
        wording.class_name(row["label"], run.record.class_names),
        wording.percent(row["top1_before"], 0),
        wording.percent(row["top1_after"], 0),
        "fall" if others <= 0 else "rise",
        wording.signed(others)[1:],
    )


def _plot(rows: list[Row]) -> Plot:
    changes = {
        kind: [(others, own) for others, own, _ in _changes(rows, kind)] for kind in _REMOVALS
    }

    def draw(axes: Axes) -> None:
        for (kind, found), colour, marker in zip(changes.items(), SERIES, MARKERS):
            shown = np.array(found[:100], float).reshape(-1, 2)
            axes.plot(
                shown[:, 0], shown[:, 1], marker, color=colour, alpha=0.8, label=_REMOVALS[kind]
            )
        low = min([x for of in changes.values() for one in of for x in one], default=-100.0)
        axes.plot([low, 0], [low, 0], color=INK, linewidth=0.8, linestyle=":")
        axes.set(xlabel="accuracy on other classes (points)", ylabel="on the class (points)")

    facts = "; ".join(
        f"without {_REMOVALS[kind]}: the class {wording.signed(float(np.median(of, 0)[1]))}, "
        f"others {wording.signed(float(np.median(of, 0)[0]))}"
        for kind, of in changes.items()
        if of
    )
    return plot(
        "removal",
        "What removing units from the whole, uncut network changes, on "
        f"{_n_images(rows)} evaluation images: a mark is a class. Below the dotted line the class "
        "loses more than the others. Units at random are one draw for each class.",
        f"Change of accuracy in percentage points, median over classes; {facts}.",
        draw,
        height=270,
        left=62,
    )


def _grid(run: Run, rows: list[Row]) -> Grid:
    return Grid(
        "Accuracy of the whole, uncut network by class, without some units",
        [
            "class",
            "without",
            "units gone",
            "evaluation images of it",
            "accuracy on it, whole network",
            "without the units",
            "change (points)",
            "images of others",
            "accuracy on others, whole network",
            "without the units",
            "change (points)",
        ],
        [
            [
                text(
                    wording.class_name(row["label"], run.record.class_names),
                    run.class_key(row["label"]),
                ),
                text(_REMOVALS.get(row["removed"]) or str(row["removed"])),
                num(row["n_units"], wording.count),
                num(row["n_images"], wording.count),
                num(row["top1_before"], wording.percent),
                with_interval(
                    row["top1_after"], row["top1_low"], row["top1_high"], wording.percent
                ),
                num(_change(row, "top1"), wording.signed),
                num(row["n_others"], wording.count),
                num(row["others_before"], wording.percent),
                with_interval(
                    row["others_after"], row["others_low"], row["others_high"], wording.percent
                ),
                num(_change(row, "others"), wording.signed),
            ]
            for row in rows
        ],
        texts=2,
    )


def _units(run: Run, rows: list[Row]) -> Grid:
    """Which units serve each class most."""
    return Grid(
        "Units that were removed for each class",
        ["class", "units, the one that serves it most first"],
        [
            [
                text(
                    wording.class_name(row["label"], run.record.class_names),
                    run.class_key(row["label"]),
                ),
                Cell(Markup('<div class="long">{}</div>').format(_named(run, row["units"]))),
            ]
            for row in rows
        ],
        texts=2,
    )


def _named(run: Run, units: list[str]) -> Markup:
    parted = [one.rpartition("/") for one in units[:N_NAMED]]
    said = Markup(", ").join(
        Markup('<span class="whole">{}</span>').format(full(run, group, int(unit)))
        for group, _, unit in parted
    )
    more = len(units) - N_NAMED
    return said + (f" and {more:,} more" if more > 0 else "")
