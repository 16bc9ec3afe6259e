"""Which units serve which class, and what the class loses without them."""

import heapq
import math
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from matplotlib.axes import Axes

from shapray.report import wording
from shapray.report.cards import card_key
from shapray.report.parts import (
    Cell,
    Grid,
    Missing,
    Section,
    not_explained,
    num,
    text,
    with_interval,
)
from shapray.report.plots import INK, MARKERS, SERIES, Plot, percents, plot, strips
from shapray.report.read import Run, array
from shapray.report.records import Timed
from shapray.report.scores import tagged
from shapray.storage import names

N_SERVING, N_SELECTIVE = 5, 4  # units named for a class
_REMOVALS = {
    "class": "units that serve it",
    "random": "as many at random",
    "score": "units of largest score",
}


def section(run: Run) -> Section:
    serving = _serving(run)
    carded = _carded(run)
    removal = run.explained.get("class_removal")
    missing = []
    if not serving:
        missing.append(Missing("Which units serve which class", names.CLASS_SCORES))
    if "units" not in run.explained:
        missing.append(not_explained("units", "How selective units are for classes"))
    if removal is None:
        missing.append(not_explained("class_removal", "What a class loses without its units"))
    rows = [] if removal is None else removal.to_pylist()
    return Section(
        "classes",
        "Which units serve which class?",
        {
            "missing": missing,
            "grid": _grid(run, serving, carded) if serving else None,
            "selectivity": _selectivity(run),
            "removal_plot": _removal_plot(rows) if rows else None,
            "removal": _removal(run, rows) if rows else None,
            "n_units": max((row["n_units"] for row in rows), default=0),
        },
    )


def _serving(run: Run) -> dict[int, list[tuple[float, str, int, float]]]:
    """For every label the units of largest mean Shapley value on its images: the mean, group, unit
    and total error."""
    best: dict[int, list[tuple[float, str, int, float]]] = defaultdict(list)
    columns = ["group", "unit", "label", "mean", "total_error"]
    for part in run.class_scores(columns):
        labels, mean = part["label"].to_numpy(), array(part, "mean")
        order = np.lexsort((-mean, labels))
        starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
        place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        for row in part.take(pa.array(order[place < N_SERVING])).to_pylist():
            error = row["total_error"]
            found = (row["mean"], row["group"], row["unit"], math.nan if error is None else error)
            best[row["label"]].append(found)
        for label, of in best.items():
            best[label] = heapq.nlargest(N_SERVING, of, key=lambda one: one[0])
    return dict(sorted(best.items()))


def _carded(run: Run) -> set[tuple[str, int]]:
    cards = run.explained.get("cards")
    if cards is None:
        return set()
    return set(zip(cards["group"].to_pylist(), cards["unit"].to_pylist()))


def _unit(run: Run, carded: set[tuple[str, int]], group: str, unit: int) -> Markup:
    name = wording.unit_name(group, unit)
    if (group, unit) in carded:
        name = Markup('<a href="#{}">{}</a>').format(card_key(run, group, unit), name)
    return tagged(run, group, unit, name)


def _grid(
    run: Run,
    serving: dict[int, list[tuple[float, str, int, float]]],
    carded: set[tuple[str, int]],
) -> Grid:
    selective: dict[int, list[tuple[float, str, int]]] = defaultdict(list)
    for (group, unit), facts in run.unit_facts.items():
        if facts["serves"] is not None and wording.known(facts["selectivity"]):
            selective[facts["serves"]].append((facts["selectivity"], group, unit))
    measured = [run.metrics.before, run.metrics.after] if run.metrics else []
    rows = []
    for label, found in serving.items():
        name = wording.class_name(label, run.record.class_names)
        most = Markup("<br>").join(
            Markup("{} <small>{} ± {}</small>").format(
                _unit(run, carded, group, unit), wording.number(mean), wording.number(error, 2)
            )
            for mean, group, unit, error in found
        )
        own = heapq.nlargest(N_SELECTIVE, selective[label], key=lambda one: one[0])
        alone = Markup("<br>").join(
            Markup("{} <small>{}</small>").format(
                _unit(run, carded, group, unit), wording.two(value)
            )
            for value, group, unit in own
        )
        rows.append(
            [
                text(name, _sorted_by(run, label)),
                Cell(Markup('<div class="list">{}</div>').format(most)),
                Cell(Markup('<div class="list">{}</div>').format(alone or wording.NONE)),
                *(num(_accuracy(of, label), wording.percent) for of in measured),
                num(len(selective[label]) if run.unit_facts else None, wording.count),
                num(found[0][0]),
            ]
        )
    return Grid(
        "Classes, and the units that serve each",
        [
            "class",
            "units that serve it most (mean Shapley value on its images ± total error)",
            "most selective of those that serve it more than any other class (selectivity)",
            *("accuracy, whole network", "accuracy after the cut")[: len(measured)],
            "units that serve it more than any other",
            "largest mean",
        ],
        rows,
        texts=3,
    )


def _accuracy(of: Timed, label: int) -> float | None:
    found = of.per_class or []
    return found[label] if 0 <= label < len(found) else None


def _sorted_by(run: Run, label: int) -> str:
    known = run.record.class_names
    return known[label] if 0 <= label < len(known) else f"{label:06d}"


def _selectivity(run: Run) -> Plot | None:
    found = run.explained.get("units")
    if found is None:
        return None
    rows = {
        "Shapley values": array(found, "selectivity"),
        "activations": array(found, "activation_selectivity"),
    }
    known = {name: of[np.isfinite(of)] for name, of in rows.items()}
    if not all(len(of) for of in known.values()):
        return None
    medians = {name: wording.two(float(np.median(of))) for name, of in known.items()}
    return plot(
        "selectivity",
        "Class selectivity of the units (Morcos et al. 2018): 0 serves all classes alike, 1 one "
        "class alone. Ticks are units or their quantiles, the diamond is the median.",
        "Class selectivity of the units, median: "
        + "; ".join(f"of the {name} {value}" for name, value in medians.items())
        + ".",
        lambda axes: strips(axes, {name: list(of) for name, of in known.items()}, "selectivity"),
        height=120,
        left=100,
    )


def _removal_plot(rows: list[dict[str, Any]]) -> Plot:
    changes = {
        kind: [
            (row["others_after"] - row["others_before"], row["top1_after"] - row["top1_before"])
            for row in rows
            if row["removed"] == kind
            and all(
                wording.known(row[column])
                for column in ("top1_before", "top1_after", "others_before", "others_after")
            )
        ]
        for kind in _REMOVALS
    }

    def draw(axes: Axes) -> None:
        for (kind, found), colour, marker in zip(changes.items(), SERIES, MARKERS):
            shown = np.array(found[:100], float).reshape(-1, 2)
            axes.plot(
                shown[:, 0], shown[:, 1], marker, color=colour, alpha=0.8, label=_REMOVALS[kind]
            )
        low = min([x for of in changes.values() for one in of for x in one], default=-1.0)
        axes.plot([low, 0], [low, 0], color=INK, linewidth=0.8, linestyle=":")
        for axis in (axes.xaxis, axes.yaxis):
            percents(axis)
        axes.set(xlabel="change of other classes' accuracy", ylabel="of the class's own")

    facts = "; ".join(
        f"without {_REMOVALS[kind]}: the class {wording.points(float(np.median(of, 0)[1]))}, "
        f"others {wording.points(float(np.median(of, 0)[0]))}"
        for kind, of in changes.items()
        if of
    )
    return plot(
        "removal",
        "What removing units changes: a mark per class. Below the dotted line the class loses more "
        "than the others.",
        f"Change of accuracy in percentage points, median over classes; {facts}.",
        draw,
        height=270,
        left=62,
    )


def _removal(run: Run, rows: list[dict[str, Any]]) -> Grid:
    return Grid(
        "Accuracy by class without some units",
        [
            "class",
            "without",
            "units gone",
            "accuracy on it before",
            "after",
            "change (points)",
            "others before",
            "others after",
            "change (points)",
        ],
        [
            [
                text(
                    wording.class_name(row["label"], run.record.class_names),
                    _sorted_by(run, row["label"]),
                ),
                text(_REMOVALS.get(row["removed"], row["removed"])),
                num(row["n_units"], wording.count),
                num(row["top1_before"], wording.percent),
                with_interval(
                    row["top1_after"], row["top1_low"], row["top1_high"], wording.percent
                ),
                num(_difference(row, "top1"), wording.points),
                num(row["others_before"], wording.percent),
                with_interval(
                    row["others_after"], row["others_low"], row["others_high"], wording.percent
                ),
                num(_difference(row, "others"), wording.points),
            ]
            for row in rows
        ],
        texts=2,
    )


def _difference(row: dict[str, Any], of: str) -> float | None:
    before, after = row[f"{of}_before"], row[f"{of}_after"]
    return after - before if wording.known(before) and wording.known(after) else None
