"""At which sizes of coalitions units earn their scores."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from matplotlib.axes import Axes

from shapray.report import wording
from shapray.report.parts import Grid, Missing, Section, not_explained, num, text, with_error
from shapray.report.plots import DASHES, INK, MARKERS, SERIES, Plot, percents, plot, strips
from shapray.report.read import Run, array, by_group


def section(run: Run) -> Section:
    found, additivity = run.explained.get("sizes"), run.explained.get("additivity")
    missing: list[Missing] = []
    if found is None:
        missing.append(not_explained("sizes", "Contributions by the size of the coalition"))
    if additivity is None:
        missing.append(not_explained("additivity", "What the units explain one by one"))
    rows = [] if additivity is None else additivity.to_pylist()
    groups = {} if found is None else by_group(found)
    return Section(
        "sizes",
        "When does a unit earn its score?",
        {
            "missing": missing,
            "plots": [_plot(run, n, name, of) for n, (name, of) in enumerate(groups.items())],
            "additivity": _additivity(rows) if rows else None,
            "additivity_plot": _additivity_plot(rows) if rows else None,
        },
    )


def _plot(run: Run, number: int, group: str, table: pa.Table) -> Plot:
    every = table.filter(pc.is_null(table["unit"]))
    # Of one unit: the sum of all of them would hide any of them.
    n_units = run.scores_of[group].num_rows if group in run.scores_of else 1
    lines = [("mean of all units", every, 1 / n_units)] if every.num_rows else []
    one_by_one = table.filter(pc.is_valid(table["unit"]))
    means = {
        unit: float(
            np.mean(array(one_by_one.filter(pc.equal(one_by_one["unit"], unit)), "marginal"))
        )
        for unit in one_by_one["unit"].unique().to_pylist()
    }
    order = sorted(means, key=lambda unit: -means[unit])
    for unit in dict.fromkeys(order[:1] + order[-1:]):
        lines.append((f"unit {unit}", one_by_one.filter(pc.equal(one_by_one["unit"], unit)), 1.0))

    n_images = max(table["n_images"].to_pylist(), default=0)

    def draw(axes: Axes) -> None:
        for place, (name, rows, scale) in enumerate(lines):
            of = rows.sort_by("size_from")
            x = (array(of, "size_from") + array(of, "size_to")) / 2
            y, error = array(of, "marginal") * scale, array(of, "standard_error") * scale
            colour = (INK, *SERIES)[place]
            if np.isfinite(error).any():
                axes.fill_between(
                    x, y - 1.96 * error, y + 1.96 * error, color=colour, alpha=0.2, linewidth=0
                )
            axes.plot(
                x, y, color=colour, linestyle=DASHES[place], marker=MARKERS[place], label=name
            )
        axes.axhline(0, color=INK, linewidth=0.7)
        percents(axes.xaxis)
        axes.set(xlabel="share of the other units that is there", ylabel="marginal contribution")

    facts = "; ".join(
        f"{name}: {wording.number(_at(of, 0) * scale)} in the smallest coalitions, "
        f"{wording.number(_at(of, -1) * scale)} in the largest"
        for name, of, scale in lines
        if of.num_rows
    )
    return plot(
        f"sizes-{number}",
        Markup("<strong>{}</strong>{}{}").format(
            wording.named(group),
            wording.plural(n_units, "unit"),
            f", {wording.plural(n_images, 'image')}" if n_images else "",
        ),
        f"Mean marginal contribution by coalition size. {facts}.",
        draw,
        left=62,
    )


def _at(table: pa.Table, place: int) -> float:
    return float(array(table.sort_by("size_from"), "marginal")[place])


def _share(row: dict[str, Any], column: str) -> float | None:
    """Of value(all) - value(none), what the units explain one by one."""
    if not (wording.known(row[column]) and wording.known(row["value_none"])):
        return None
    whole = row["value_all"] - row["value_none"]
    return row[column] / whole if whole else None


def _additivity_plot(rows: list[dict[str, Any]]) -> Plot:
    found = {
        title: [share for row in rows if (share := _share(row, column)) is not None]
        for title, column in (("first to join", "alone"), ("last to join", "last"))
    }
    facts = "; ".join(
        f"{title} {wording.percent(float(np.median(of)), 0)}" for title, of in found.items() if of
    )
    return plot(
        "additivity",
        "What the units of a group explain of its whole worth if each is counted as the first "
        "or as the last to join. A tick is a group; at 100% nothing would depend on the others.",
        f"Share of the group's worth, median over groups: {facts}.",
        lambda axes: strips(axes, found, "share of the group's worth", shares=True),
        height=120,
        left=92,
    )


def _additivity(rows: list[dict[str, Any]]) -> Grid:
    return Grid(
        "What the units explain one by one",
        [
            "group",
            "worth of all its units",
            "sum, each first to join ± standard error",
            "its share of the worth",
            "sum, each last to join ± standard error",
            "its share of the worth",
            "images",
        ],
        [
            [
                text(wording.named(row["group"]), f"{place:05d}"),
                num(
                    row["value_all"] - row["value_none"]
                    if wording.known(row["value_none"])
                    else None
                ),
                with_error(row["alone"], row["alone_error"]),
                num(_share(row, "alone"), lambda share: wording.percent(share, 0)),
                with_error(row["last"], row["last_error"]),
                num(_share(row, "last"), lambda share: wording.percent(share, 0)),
                num(row["n_images"], wording.count),
            ]
            for place, row in enumerate(rows)
        ],
    )
