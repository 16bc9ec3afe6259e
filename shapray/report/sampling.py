"""What sampling gets wrong, on images whose values are known exactly."""

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes

from shapray.report import order, wording
from shapray.report.parts import Grid, Section, not_explained, num, text
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
from shapray.report.read import Run, array

N_BINS = 12  # of the number of active units
N_PRICES = 4  # that are drawn


def section(run: Run) -> Section:
    sampling, flips = run.explained.get("sampling"), run.explained.get("flips")
    missing = []
    if sampling is None:
        missing.append(not_explained("sampling", "Sampled against exact values"))
    if flips is None:
        missing.append(not_explained("flips", "How often sampling would have cut other units"))
    rows = [] if flips is None else flips.to_pylist()
    plots = []
    if sampling is not None and sampling.num_rows:
        plots.append(_errors(sampling))
    if _by_price(rows):
        plots.append(_flips(rows, _ranked_by(run)))
    return Section(
        "sampling",
        "Would sampling have cut other units?",
        {
            "missing": missing,
            "plots": plots,
            "grid": _grid(rows) if rows else None,
            "none_exact": not missing and not rows and not plots,
            "none_cut": bool(rows) and not _by_price(rows),
            "ranked_by": _ranked_by(run),
            "flips": [
                (wording.plural(price, "permutation"), wording.percent(float(np.median(of)), 0))
                for price, of in _by_price(rows).items()
            ],
        },
    )


def _ranked_by(run: Run) -> str:
    """These cuts are by one of the two Shapley scores, whatever else the job ranks by."""
    return "mean" if order.by_mean(run) else "mean absolute"


def _errors(table: pa.Table) -> Plot:
    n_active, error = array(table, "n_active"), array(table, "error")
    price = array(table, "permutations").astype(int)
    prices = np.unique(price)
    if len(prices) > N_PRICES:
        prices = prices[np.linspace(0, len(prices) - 1, N_PRICES).round().astype(int)]
    bins = np.array_split(np.unique(n_active), min(N_BINS, len(np.unique(n_active))))
    lines: dict[int, list[tuple[float, float, float, float]]] = {}
    for one in prices.tolist():
        lines[one] = []
        for of in bins:
            at = (price == one) & (n_active >= of[0]) & (n_active <= of[-1]) & np.isfinite(error)
            if at.any():
                low, middle, high = np.quantile(error[at], (0.25, 0.5, 0.75))
                lines[one].append((float(n_active[at].mean()), middle, low, high))

    def draw(axes: Axes) -> None:
        for place, (one, found) in enumerate(lines.items()):
            x, y, low, high = np.array(found).reshape(-1, 4).T
            colour = SERIES[place]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                x,
                y,
                color=colour,
                linestyle=DASHES[place],
                marker=MARKERS[place],
                label=wording.plural(one, "permutation"),
            )
        if np.nanmin(error) > 0:
            logarithmic(axes)
        axes.set(xlabel="active units of the image", ylabel="relative squared error")

    facts = "; ".join(
        f"{wording.plural(one, 'permutation')}: {wording.number(found[0][1], 2)} at the fewest "
        f"active units, {wording.number(found[-1][1], 2)} at the most"
        for one, found in lines.items()
        if found
    )
    return plot(
        "sampling-error",
        "Error of sampled values against exact ones on the same images: squared, over the squared "
        "norm of the exact values. Lines: median; bands: the middle half of the images.",
        f"Relative squared error of sampled values, median. {facts}.",
        draw,
        height=240,
        left=70,
    )


def _by_price(rows: list[dict[str, Any]]) -> dict[int, list[float]]:
    """Of every price, the cheapest first, the shares of draws that cut other units, of those groups
    of which any are cut."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row["n_cut"] and wording.known(row["another_cut"]):
            found[row["permutations"]].append(row["another_cut"])
    return dict(sorted(found.items()))


def _flips(rows: list[dict[str, Any]], ranked_by: str) -> Plot:
    by_price = _by_price(rows)
    prices = list(by_price)

    def draw(axes: Axes) -> None:
        for place, price in enumerate(prices):
            of = by_price[price]
            segments(
                axes,
                [(place - 0.2, y) for y in of],
                [(place + 0.2, y) for y in of],
                color=SERIES[1],
                linewidth=1,
            )
            axes.plot(place, np.median(of), "D", color=INK, markersize=6)
        medians = [float(np.median(by_price[price])) for price in prices]
        axes.plot(range(len(prices)), medians, color=INK, linewidth=1, linestyle=":")
        axes.set_xticks(range(len(prices)), [str(price) for price in prices])
        percents(axes.yaxis)
        axes.set(
            xlabel="permutations of each image",
            ylabel="draws that cut other units",
            ylim=(-0.03, 1.03),
        )

    medians = {price: wording.percent(float(np.median(by_price[price])), 0) for price in prices}
    facts = "; ".join(
        f"{wording.plural(price, 'permutation')} {medians[price]}" for price in prices
    )
    return plot(
        "sampling-flips",
        "Share of draws in which sampling would have removed another set of units than the exact "
        "values of the same images: as many as the job removes, half of a group that loses none, "
        f"by the {ranked_by} value. A tick is a group, the diamond their median.",
        f"Share of draws that would cut another set of units, median over groups: {facts}.",
        draw,
        height=240,
        left=62,
    )


def _grid(rows: list[dict[str, Any]]) -> Grid:
    return Grid(
        "How often sampling would have cut other units",
        [
            "group",
            "permutations",
            "exact images",
            "units cut (half of a group that loses none)",
            "draws that cut other units",
            "units that differ, mean",
            "draws",
        ],
        [
            [
                text(wording.named(row["group"]), row["group"]),
                num(row["permutations"], wording.count),
                num(row["n_images"], wording.count),
                num(row["n_cut"], wording.count),
                num(row["another_cut"], lambda share: wording.percent(share, 0)),
                num(row["n_other"], lambda value: wording.number(value, 2)),
                num(row["n_seeds"], wording.count),
            ]
            for row in rows
        ],
    )
