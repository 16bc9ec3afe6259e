"""Which units serve which class, and what the class loses without them."""

import heapq
import math
from collections import defaultdict

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from shapray.report import removal, wording
from shapray.report.parts import (
    Cell,
    Grid,
    Missing,
    Section,
    not_explained,
    num,
    text,
)
from shapray.report.plots import Plot, plot, strips
from shapray.report.read import Run, array
from shapray.report.records import Timed
from shapray.report.units import full
from shapray.storage import names

N_SERVING, N_SELECTIVE = 5, 4  # units named for a class


def section(run: Run) -> Section:
    serving = _serving(run)
    found = run.explained.get("class_removal")
    missing = []
    if not serving:
        missing.append(Missing("Which units serve which class", names.CLASS_SCORES))
    if "units" not in run.explained:
        missing.append(not_explained("units", "How selective units are for classes"))
    if found is None:
        missing.append(not_explained("class_removal", "What a class loses without its units"))
    rows = [] if found is None else found.to_pylist()
    return Section(
        "classes",
        "Which units serve which class?",
        {
            "missing": missing,
            "grid": _grid(run, serving) if serving else None,
            "selectivity": _selectivity(run),
            "removal": removal.content(run, rows) if rows else None,
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


def _grid(
    run: Run,
    serving: dict[int, list[tuple[float, str, int, float]]],
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
                full(run, group, unit), wording.number(mean), wording.number(error, 2)
            )
            for mean, group, unit, error in found
        )
        own = heapq.nlargest(N_SELECTIVE, selective[label], key=lambda one: one[0])
        alone = Markup("<br>").join(
            Markup("{} <small>{}</small>").format(full(run, group, unit), wording.two(value))
            for value, group, unit in own
        )
        rows.append(
            [
                text(name, run.class_key(label)),
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
            "units that serve it most (mean Shapley value on its images ± standard error)",
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
