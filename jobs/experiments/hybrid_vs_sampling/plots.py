"""The experiment's plots."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from jobs.experiments.hybrid_vs_sampling.compare import differences, paired
from jobs.experiments.hybrid_vs_sampling.cuts import REPAIRED_RANKING, Row
from jobs.experiments.hybrid_vs_sampling.danger import BINS
from jobs.experiments.hybrid_vs_sampling.networks import PLANS
from jobs.experiments.hybrid_vs_sampling.tables import bin_of

mpl.use("Agg")
# Told apart by eyes that see few colours (Okabe and Ito 2008), and by their markers.
STYLES = {
    "random": ("#767676", "s", "random"),
    "sampling": ("#0072b2", "o", "sampling, equal permutations"),
    "sampling_equal_evaluations": ("#d55e00", "^", "sampling, equal evaluations"),
}
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00")  # of the bins


def draw(cuts: Sequence[Row], dangers: Sequence[Row], folder: Path) -> None:
    """differences.png and danger.png, of what there are results of."""
    if cuts:
        _differences(cuts).savefig(folder / "differences.png", dpi=80)
    if dangers:
        _danger(dangers).savefig(folder / "danger.png", dpi=80)


def _differences(rows: Sequence[Row]) -> Figure:
    """Hybrid less each rival, mean and 95 % interval over seeds; a panel per network and repair."""
    repairs = {"none": "not repaired", "least_squares": "repaired"}
    names = [name for name in PLANS if any(row["network"] == name for row in rows)]
    figure = Figure(figsize=(4.6 * len(repairs), 2.8 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), len(repairs), squeeze=False)
    for line, name in zip(grid, names):
        plan = PLANS[name]
        for axes, (repair, title) in zip(line, repairs.items()):
            places = [(n, p) for p in plan.permutations for n in plan.n_images]
            for shift, rival in zip((-0.2, 0.0, 0.2), STYLES):
                for place, (n_images, permutations) in enumerate(places):
                    part = [
                        row
                        for row in rows
                        if (row["network"], row["repair"], row["share"], row["n_images"])
                        == (name, repair, plan.shares[0], n_images)
                        and (
                            row["method"] == "random"
                            or (row["sampler"], row["permutations"], row["ranking"])
                            == ("plain", permutations, REPAIRED_RANKING)
                        )
                    ]
                    if part:
                        _whisker(axes, place + shift, part, rival, first=place == 0)
            axes.axhline(0, color="black", linewidth=0.8)
            labels = [f"{n} img\n{p} perm" for n, p in places]
            axes.set_xticks(range(len(places)), labels, fontsize=7)
            axes.set_title(f"{name}, {plan.shares[0]:.0%} left, {title}", fontsize=9)
            axes.set_yscale("symlog", linthresh=0.02)
            axes.set_yticks([-0.1, -0.02, -0.01, 0, 0.01, 0.02, 0.1, 0.5])
            axes.yaxis.set_major_formatter(PercentFormatter(1))
    figure.supylabel("accuracy of the hybrid's cut less the other's", fontsize=9)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _whisker(axes: Axes, at: float, rows: Sequence[Row], rival: str, *, first: bool) -> None:
    found = paired(list(differences(rows, "hybrid", rival, "top1").values()))
    colour, marker, label = STYLES[rival]
    axes.errorbar(
        at,
        found.mean,
        yerr=[[found.mean - found.low], [found.high - found.mean]],
        color=colour,
        marker=marker,
        markersize=4,
        capsize=2,
        label=label if first else None,
    )


def _danger(rows: Sequence[Row]) -> Figure:
    """Units cut wrongly against the price; dashed: by other images, exact."""
    rows = [row for row in rows if row["ranking"] == REPAIRED_RANKING and row["sampler"] == "plain"]
    names = [name for name in PLANS if any(row["network"] == name for row in rows)]
    sizes = sorted({row["n_images"] for row in rows})
    figure = Figure(figsize=(3.4 * len(sizes), 2.8 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), len(sizes), squeeze=False, sharey="row")
    for line, name in zip(grid, names):
        for axes, n_images in zip(line, sizes):
            part = [row for row in rows if (row["network"], row["n_images"]) == (name, n_images)]
            axes.set_xscale("log", base=2)
            for colour, ends in zip(COLOURS, BINS):
                active = f"{ends[0]}–{ends[1]}"
                here = [row for row in part if bin_of(row) == active]
                if not here:
                    continue
                prices = sorted({row["permutations"] for row in here})
                means = [
                    np.mean([r["wrong_by_sampling"] for r in here if r["permutations"] == price])
                    for price in prices
                ]
                label = f"{active} active, sampled"
                axes.plot(prices, means, "o-", color=colour, label=label)
                axes.set_xticks(prices, [str(price) for price in prices])
                by_images = np.mean([row["wrong_by_images"] for row in here])
                axes.axhline(by_images, color=colour, linestyle="--", linewidth=0.9)
            axes.plot([], [], "--", color="#767676", label="as many other images, exact")
            axes.set_title(f"{name}, {n_images} images", fontsize=9)
            axes.set_xlabel("permutations", fontsize=8)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            if part:
                axes.legend(fontsize=6)
    figure.supylabel("units cut that exact values keep", fontsize=9)
    return figure
