"""Which units make up for each other, and which need each other."""

from collections import defaultdict
from typing import Any

import numpy as np

from shapray.report import order, wording
from shapray.report.parts import Cell, Grid, Section, not_explained, num, text, with_error
from shapray.report.plots import plot, strips
from shapray.report.read import Run
from shapray.report.units import tagged

N_PAIRS = 12  # of each sign that are listed
_CLEAR = 1.96  # standard errors from 0
Row = dict[str, Any]


def section(run: Run) -> Section:
    found = run.explained.get("interactions")
    rows: list[Row] = [] if found is None else found.to_pylist()
    content: dict[str, Any] = {"missing": None, "n": len(rows), "plot": None, "pairs": None}
    content |= {"groups": None, "shares": {}}
    if found is None:
        content["missing"] = not_explained("interactions", "Redundancy and synergy of units")
    if rows:
        ends = order.ends(run)
        kinds = {kind: f"both {end}" for kind, end in ends.items()} | {"across": "one of each"}
        of_kinds = {
            shown: [row["interaction"] for row in rows if row["kind"] == kind]
            for kind, shown in kinds.items()
        }
        facts = "; ".join(
            f"{kind} {wording.number(float(np.median(of)), 2)}"
            for kind, of in of_kinds.items()
            if of
        )
        content |= {
            "plot": plot(
                "interactions",
                "Interaction of pairs of units, by the ends of the group they are from. Ticks are "
                "pairs or their quantiles, the diamond is the median.",
                f"Pairwise interaction, median: {facts}.",
                lambda axes: strips(axes, of_kinds, "interaction"),
                height=150,
                left=112,
            ),
            "pairs": _pairs(run, rows, kinds),
            "groups": _groups(rows, kinds),
            "shares": _shares(rows),
        }
    return Section("interactions", "Do units make up for each other?", content)


def _sign(row: Row) -> int:
    """-1 redundant, 1 synergetic, 0 where the errors leave it open."""
    error = row["total_error"] if wording.known(row["total_error"]) else row["standard_error"]
    if not wording.known(error):
        return 0
    return int(np.sign(row["interaction"])) * (abs(row["interaction"]) > _CLEAR * error)


def _shares(rows: list[Row]) -> dict[str, str]:
    signs = np.array([_sign(row) for row in rows])
    return {
        name: wording.percent(float((signs == sign).mean()), 0)
        for name, sign in (("redundant", -1), ("synergetic", 1), ("neither", 0))
    }


def _pairs(run: Run, rows: list[Row], kinds: dict[str, str]) -> Grid:
    by_value = sorted(rows, key=lambda row: row["interaction"])
    chosen = by_value[:N_PAIRS] + by_value[max(N_PAIRS, len(rows) - N_PAIRS) :]
    meaning = {-1: "make up for each other", 1: "need each other", 0: "not clear"}
    return Grid(
        "Pairs of units with the strongest interactions",
        ["group", "units", "from", "reads", "interaction ± standard error", "images", "exact"],
        [
            [
                text(wording.named(row["group"]), row["group"]),
                Cell(
                    tagged(run, row["group"], row["unit"], str(row["unit"]))
                    + " and "
                    + tagged(run, row["group"], row["other"], str(row["other"])),
                    str(row["unit"]),
                ),
                text(kinds.get(row["kind"]) or str(row["kind"])),
                text(meaning[_sign(row)]),
                with_error(row["interaction"], row["total_error"]),
                num(row["n_images"], wording.count),
                num(row["n_exact"], wording.count),
            ]
            for row in chosen
        ],
        texts=4,
    )


def _groups(rows: list[Row], kinds: dict[str, str]) -> Grid:
    by_group: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_group[row["group"]].append(row)
    return Grid(
        "Interactions by group",
        [
            "group",
            "pairs",
            *(f"mean, {shown}" for shown in kinds.values()),
            "clearly redundant",
            "clearly synergetic",
        ],
        [
            [
                text(wording.named(group), f"{place:05d}"),
                num(len(of), wording.count),
                *(num(_mean(of, kind)) for kind in kinds),
                num(sum(_sign(row) < 0 for row in of), wording.count),
                num(sum(_sign(row) > 0 for row in of), wording.count),
            ]
            for place, (group, of) in enumerate(by_group.items())
        ],
    )


def _mean(rows: list[Row], kind: str) -> float | None:
    found = [row["interaction"] for row in rows if row["kind"] == kind]
    return float(np.mean(found)) if found else None
