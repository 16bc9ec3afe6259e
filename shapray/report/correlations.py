"""Whether simpler criteria would have said the same."""

from statistics import median
from typing import Any

from shapray.report import order, wording
from shapray.report.parts import Cell, Grid, Section, not_explained, text, with_interval
from shapray.report.plots import Plot, plot, strips
from shapray.report.read import Run

Row = dict[str, Any]
_SCORES = {"mean_abs": "Mean absolute Shapley value", "mean": "Mean Shapley value"}


def section(run: Run) -> Section:
    found = run.explained.get("correlations")
    rows: list[Row] = [] if found is None else found.to_pylist()
    of_scores = {name: [row for row in rows if row["score"] == name] for name in _SCORES}
    of_scores = {name: of for name, of in of_scores.items() if of}
    ranked_by = order.ranked_by(run)
    return Section(
        "correlations",
        "Do simpler criteria say the same?",
        {
            "missing": not_explained("correlations", "Correlations with simpler criteria")
            if found is None
            else None,
            "nearest": _nearest(of_scores),
            "beyond": order.in_words(ranked_by) if set(ranked_by) - {"mean", "mean_abs"} else None,
            "plots": [_plot(name, of) for name, of in of_scores.items()],
            "grids": [
                {"title": f"{_SCORES[name]}, group by group", "grid": _grid(of)}
                for name, of in of_scores.items()
            ],
        },
    )


def _nearest(of_scores: dict[str, list[Row]]) -> list[dict[str, str]]:
    """In words, which number's order is most like that of each score, and which least."""
    found = []
    for name, rows in of_scores.items():
        medians = {
            other: median(of)
            for other in _others(rows)
            if (of := [r["correlation"] for r in rows if r["other"] == other and _known(r)])
        }
        if medians:
            most, least = (pick(medians, key=medians.__getitem__) for pick in (max, min))
            found.append(
                {
                    "score": _SCORES[name].lower().replace("shapley", "Shapley"),
                    "most": f"{order.criterion(most)} ({wording.two(medians[most])})",
                    "least": f"{order.criterion(least)} ({wording.two(medians[least])})",
                }
            )
    return found


def _known(row: Row) -> bool:
    return wording.known(row["correlation"])


def _others(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["other"] for row in rows))


def _plot(score: str, rows: list[Row]) -> Plot:
    found = {
        order.criterion(other)[:20]: [
            row["correlation"] for row in rows if row["other"] == other and _known(row)
        ]
        for other in _others(rows)
    }
    facts = "; ".join(
        f"{other} {wording.number(sorted(of)[len(of) // 2], 2)} (from {wording.number(min(of), 2)} "
        f"to {wording.number(max(of), 2)})"
        for other, of in found.items()
        if of
    )
    return plot(
        f"correlations-{score}",
        f"{_SCORES[score]}: Spearman's rank correlation with what could stand in its place. A tick "
        "is a group, the diamond their median; 1 is the same order, 0 none.",
        f"Rank correlation of the {_SCORES[score].lower()}, median over groups: {facts}.",
        lambda axes: strips(axes, found, "rank correlation"),
        height=70 + 26 * len(found),
        left=14 + 6.0 * max(map(len, found)),
    )


def _grid(rows: list[Row]) -> Grid:
    others = _others(rows)
    by_group: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_group.setdefault(row["group"], {})[row["other"]] = row
    return Grid(
        "Rank correlations of one score, with 95% intervals",
        ["group", *(order.criterion(other) for other in others)],
        [
            [text(wording.named(group), f"{place:05d}")]
            + [
                with_interval(
                    of[other]["correlation"], of[other]["low"], of[other]["high"], wording.two
                )
                if other in of
                else Cell(wording.NONE)
                for other in others
            ]
            for place, (group, of) in enumerate(by_group.items())
        ],
    )
