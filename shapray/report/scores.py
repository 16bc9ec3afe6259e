"""The scores of every group, sorted, with what they are not sure of."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from shapray.report import order, wording
from shapray.report.parts import (
    Cell,
    Grid,
    Missing,
    Section,
    not_explained,
    num,
    text,
    with_error,
)
from shapray.report.plots import BANDS, INK, SERIES, Plot, plot, segments
from shapray.report.read import Run, array
from shapray.report.units import linked
from shapray.storage import names

N_WHOLE = 128  # units of a group that its table shows all of
N_IN_ALL = 4000  # units of such groups together, from which on no table shows all
N_LISTED = 10  # units at each end that it shows else
_INTERVAL = 1.96  # standard errors to each side: 95%
_PARTS: tuple[dict[str, Any], ...] = (
    {"label": "positive part", "edgecolor": SERIES[0], "facecolor": SERIES[0] + "55"},
    {"label": "negative part", "edgecolor": SERIES[1], "facecolor": "none", "hatch": "/////"},
)
_VALUES = {
    "neg_cross_entropy": "minus the cross-entropy, in nats",
    "neg_kl_divergence": "minus the divergence from the whole network's outputs, in nats",
    "target_logit": "the logit of the image's class",
    "logit_margin": "the logit of the image's class less the largest other",
    "target_probability": "the probability of the image's class",
    "top1": "1 where the network is right, else 0",
}


def section(run: Run) -> Section:
    missing = [] if run.scores is not None else [Missing("The scores", names.SCORES)]
    if run.scores is not None and "units" not in run.explained:
        missing.append(not_explained("units", "The positive and the negative part of each score"))
    groups = [(name, run.scores_of[name]) for name in run.scored if name in run.scores_of]
    sizes = [scores.num_rows for _, scores in groups]
    fits = sum(size for size in sizes if size <= N_WHOLE) <= N_IN_ALL
    most = N_WHOLE if fits else 2 * N_LISTED
    ranked_by = order.ranked_by(run)
    return Section(
        "scores",
        "Scores of the units",
        {
            "missing": missing,
            "plots": [_plot(run, n, name, scores) for n, (name, scores) in enumerate(groups)],
            "tables": [
                {
                    "title": wording.named(name),
                    "note": _note(scores, most),
                    "grid": _grid(run, name, scores, most),
                }
                for name, scores in groups
            ],
            "value": _VALUES.get(str(run.record.asked("score", "value")), "that of the job"),
            "ranked_by": order.in_words(ranked_by) if ranked_by else None,
            "by_mean": order.by_mean(run),
            "linked": bool(run.carded),
        },
    )


def _plot(run: Run, number: int, name: str, scores: pa.Table) -> Plot:
    mean, error = array(scores, "mean"), array(scores, "total_error")
    facts = run.units_of.get(name)
    parts = [array(facts, column) for column in ("positive", "negative")] if facts else []
    parts = [part for part in parts if len(part) == len(mean)]
    order = np.argsort(-mean, kind="stable")
    bands = np.array_split(order, min(len(order), BANDS))
    x = np.array([band.size for band in bands]).cumsum() - np.array([b.size for b in bands]) / 2
    means, errors, *apart = (
        np.array([_middle(of[band]) for band in bands]) for of in (mean, error, *parts)
    )
    gone = np.array([bool(run.is_removed(name, int(unit))) for unit in scores["unit"].to_pylist()])

    def draw(axes: Axes) -> None:
        edges = np.concatenate([[0], np.cumsum([band.size for band in bands])])
        for part, look in zip(apart, _PARTS):
            axes.stairs(part, edges, fill=True, linewidth=0.7, **look)
        if len(bands) <= 80:
            low, high = means - _INTERVAL * errors, means + _INTERVAL * errors
            segments(axes, list(zip(x, low)), list(zip(x, high)), color=INK, linewidth=0.9)
            half = 0.3
            ends = list(zip(x - half, means)), list(zip(x + half, means))
            segments(axes, *ends, color=INK, linewidth=2, label="score")
        else:
            axes.plot(x, means, color=INK, linewidth=1.4, label="score")
        axes.axhline(0, color=INK, linewidth=0.7)
        if gone.any():
            share = np.array([gone[band].mean() for band in bands])
            at = [(left, right) for left, right, of in zip(edges, edges[1:], share) if of >= 0.5]
            segments(
                axes,
                [(left + 0.12, 0.015) for left, _ in at],
                [(right - 0.12, 0.015) for _, right in at],
                color=SERIES[3],
                linewidth=4,
                label="removed",
                transform=axes.get_xaxis_transform(),
                solid_capstyle="butt",
            )
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.margins(x=0.01)
        axes.set(xlabel="units, largest score first")

    best, worst = order[0], order[-1]
    alternative = (
        f"{len(mean):,} units, sorted by score: from {wording.number(mean[best])} (unit {best}) to "
        f"{wording.number(mean[worst])} (unit {worst}); {int((mean < 0).sum()):,} below 0; "
        f"{int(gone.sum()):,} removed; median total error {wording.number(_middle(error, 0.5))}."
    )
    caption = Markup("<strong>{}</strong>{}, {} below 0").format(
        wording.named(name),
        wording.plural(len(mean), "unit"),
        f"{int((mean < 0).sum()):,}",
    )
    return plot(f"scores-{number}", caption, alternative, draw, height=230)


def _middle(values: np.ndarray, quantile: float | None = None) -> float:
    found = values[np.isfinite(values)]
    if not len(found):
        return float("nan")
    return float(found.mean() if quantile is None else np.quantile(found, quantile))


def _note(scores: pa.Table, most: int) -> str:
    n = scores.num_rows
    if n <= most:
        return ""
    return f"The {N_LISTED} units at each end of {n:,}; all are in {names.SCORES}."


def _grid(run: Run, name: str, scores: pa.Table, most: int) -> Grid:
    by_score = np.argsort(-array(scores, "mean"), kind="stable")
    if len(by_score) > most:
        by_score = np.concatenate([by_score[:N_LISTED], by_score[-N_LISTED:]])
    rows = scores.take(pa.array(by_score)).to_pylist()
    criteria = [one for one in order.ranked_by(run) if one in order.COLUMNS]
    return Grid(
        "Units of one group",
        [
            "unit",
            "serves most",
            "score (mean) ± standard error",
            "mean absolute (mean_abs) ± standard error",
            *(one.replace("_", " ") for one in criteria),
            "positive part",
            "negative part",
            "images where negative",
            "images where active",
            "selectivity",
            "chance of the wrong side",
        ],
        [list(_row(run, name, row, criteria)) for row in rows],
        texts=2,
    )


def _row(run: Run, group: str, row: dict[str, Any], criteria: list[str]) -> Iterator[Cell]:
    facts = run.unit_facts.get((group, row["unit"]), {})
    yield Cell(linked(run, group, row["unit"], str(row["unit"])), str(row["unit"]))
    label = facts.get("serves")
    yield text(wording.class_name(label, run.record.class_names))
    yield with_error(row["mean"], row["total_error"])
    yield with_error(row["mean_abs"], row["mean_abs_total_error"])
    for one in criteria:
        yield num(facts.get(order.COLUMNS[one]))
    yield num(facts.get("positive"))
    yield num(facts.get("negative"))
    yield num(facts.get("negative_share"), lambda share: wording.percent(share, 0))
    yield num(row["active_fraction"], lambda share: wording.percent(share, 0))
    yield num(facts.get("selectivity"), wording.two)
    yield num(facts.get("misplaced"), wording.percent)
