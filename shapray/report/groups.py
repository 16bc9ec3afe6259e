"""What stays of every group, and how sure that is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup

from shapray.report import order, wording
from shapray.report.parts import Cell, Grid, Missing, Section, not_explained, num, text
from shapray.report.plots import SERIES, bar
from shapray.report.read import Run, array
from shapray.storage import certainty, names
from shapray.storage.certainty import UNSURE, Certainty

N = TypeVar("N", int, float)

# Kept and removed, sure and not: a colour, a hatch over it, and what is below the hatch.
_LOOKS = {
    "kept": (SERIES[0], "", SERIES[0]),
    "kept, unsure": (SERIES[0], "||||", "none"),
    "removed, unsure": (SERIES[1], "xxxx", "none"),
    "removed": (SERIES[1], "///", "none"),
}


@dataclass
class Total:
    """Of all groups; what is not known of one is not known of all."""

    n_units: int = 0
    kept: int | None = 0
    unsure: int | None = 0
    expected: float | None = 0.0

    def add(
        self, n_units: int, kept: int | None, unsure: int | None, expected: float | None
    ) -> None:
        self.n_units += n_units
        self.kept = _sum(self.kept, kept)
        self.unsure = _sum(self.unsure, unsure)
        self.expected = _sum(self.expected, expected)

    def cells(self) -> list[Cell]:
        share = self.kept / self.n_units if self.kept is not None and self.n_units else None
        return [
            Cell("all groups"),
            Cell(""),
            num(self.n_units, wording.count),
            num(self.kept, wording.count),
            num(share, wording.percent),
            num(self.unsure, wording.count),
            num(self.expected, wording.tenths),
            *(Cell("") for _ in range(4)),
        ]


def _sum(one: N | None, other: N | None) -> N | None:
    return None if one is None or other is None else one + other


def section(run: Run) -> Section:
    groups = [] if run.groups is None else run.groups.to_pylist()
    certainties = {name: Certainty.of(scores) for name, scores in run.scores_of.items()}
    middle = certainty.median(list(certainties.values()))
    counted = {name: _counts(run, name) for name in run.scored}
    ranked_by = order.ranked_by(run)
    has_chances = run.explained.get("units") is not None
    return Section(
        "groups",
        "What stays, and how sure that is",
        {
            "missing": list(_missing(run)),
            "key": [
                {"name": name, "svg": bar(f"key-{place}", name, [(1, *_LOOKS[name])], 40)}
                for place, name in enumerate(_LOOKS)
                if has_chances or "unsure" not in name
            ],
            "grid": _grid(run, groups, counted, certainties) if run.scored else None,
            "excluded": _excluded(groups),
            "unsure_from": wording.percent(UNSURE, 0),
            "expected": _expected(run),
            "ranked_by": order.in_words(ranked_by) if ranked_by else None,
            "advice": certainty.in_words(middle, _n_images(run)) if certainties else None,
            "middle": {
                name: certainty.percent(getattr(middle, name))
                for name in ("total", "images", "sampling")
            },
            "cut": run.removed is not None,
        },
    )


def _n_images(run: Run) -> int:
    assert run.scores is not None
    return int(np.max(array(run.scores, "n_images"), initial=0))


def _missing(run: Run) -> Iterator[Missing]:
    if run.groups is None:
        yield Missing("The groups of the network", names.GROUPS)
    if run.scores is None:
        yield Missing("The scores", names.SCORES)
    if run.removed is None:
        yield Missing("Which units go", f"{names.CUTS}/{names.PLAN}")
    if "units" not in run.explained:
        yield not_explained("units", "The chance that a unit is on the wrong side of the cut")


def _counts(run: Run, group: str) -> dict[str, int]:
    """Units by what becomes of them; none where nothing is cut."""
    if run.removed is None:
        return {}
    found = run.units_of.get(group)
    n_units = _n_units(run, group)
    chances = dict(zip(found["unit"].to_pylist(), array(found, "misplaced"))) if found else {}
    counts = dict.fromkeys(_LOOKS, 0)
    for unit in range(n_units):
        name = "removed" if run.is_removed(group, unit) else "kept"
        unsure = chances.get(unit, 0.0) >= UNSURE
        counts[f"{name}, unsure" if unsure else name] += 1
    return counts


def _is_told(run: Run, group: str) -> bool:
    """Whether the chance to be on the wrong side is known of all its units."""
    found = run.units_of.get(group)
    return found is not None and not np.isnan(array(found, "misplaced")).any()


def _n_units(run: Run, group: str) -> int:
    if run.groups is not None:
        names_, sizes = (run.groups[column].to_pylist() for column in ("group", "n_units"))
        return dict(zip(names_, sizes)).get(group, 0)
    return run.scores_of[group].num_rows


def _bar(key: str, counts: dict[str, int], alternative: str) -> Markup:
    parts = [(counts.get(name, 0), *look) for name, look in _LOOKS.items()]
    return bar(key, alternative, parts)


def _grid(
    run: Run,
    groups: list[dict[str, Any]],
    counted: dict[str, dict[str, int]],
    certainties: dict[str, Certainty],
) -> Grid:
    macs = {row["group"]: row["tail_macs"] for row in groups}
    rows = []
    total = Total()
    for place, (name, counts) in enumerate(counted.items()):
        n_units = _n_units(run, name)
        kept = counts.get("kept", 0) + counts.get("kept, unsure", 0) if counts else None
        unsure = None
        if counts and _is_told(run, name):
            unsure = sum(n for look, n in counts.items() if "unsure" in look)
        expected = _expected_in(run, name)
        total.add(n_units, kept, unsure, expected)
        sure = certainties.get(name)
        rows.append(
            [
                text(wording.named(name), f"{place:05d}"),
                Cell(
                    _bar(
                        f"bar-{place}",
                        counts,
                        ", ".join(f"{n} {look}" for look, n in counts.items() if n),
                    )
                    if counts
                    else wording.NONE,
                    kept / n_units if kept is not None and n_units else None,
                ),
                num(n_units, wording.count),
                num(kept, wording.count),
                num(kept / n_units if kept is not None and n_units else None, wording.percent),
                num(unsure, wording.count),
                num(expected, wording.tenths),
                *(_error(sure, kind) for kind in ("total", "images", "sampling")),
                num(macs.get(name), wording.short),
            ]
        )
    return Grid(
        "Groups: what stays of each",
        [
            "group",
            "what stays",
            "units",
            "kept",
            "share kept",
            "unsure, kept and removed",
            "expected on the wrong side, kept and removed",
            "error of a score (of the spread of the group's scores)",
            "its part from the images (of that spread)",
            "its part from the sampling (of that spread)",
            "multiply-adds behind it",
        ],
        rows,
        texts=2,
        total=total.cells() if len(rows) > 1 else (),
    )


def _error(found: Certainty | None, kind: str) -> Cell:
    return Cell(wording.NONE) if found is None else num(getattr(found, kind), certainty.percent)


def _expected_in(run: Run, group: str) -> float | None:
    found = run.units_of.get(group)
    if found is None:
        return None
    chances = array(found, "misplaced")
    return None if np.isnan(chances).all() else float(np.nansum(chances))


def _expected(run: Run) -> dict[str, str] | None:
    """How many of the removed units belong above the cut, as far as the errors tell."""
    found = run.explained.get("units")
    if found is None or run.removed is None:
        return None
    chances = [
        row["misplaced"]
        for row in found.to_pylist()
        if run.is_removed(row["group"], row["unit"]) and row["misplaced"] is not None
    ]
    if not chances:
        return None
    expected = sum(chances)
    return {
        "n": wording.count(len(chances)),
        "expected": f"about {expected:,.0f}" if expected >= 0.5 else "fewer than one",
    }


def _excluded(groups: list[dict[str, Any]]) -> Grid | None:
    rows = [
        [
            text(wording.named(row["group"]), row["group"]),
            text(_why(row["reason"]), row["reason"] or ""),
            num(row["n_units"], wording.count),
        ]
        for row in groups
        if row["status"] != "scored"
    ]
    return Grid("Groups not scored", ["group", "why", "units"], rows, 2) if rows else None


def _why(reason: str | None) -> Markup:
    said = Markup("<small>{}</small>").format(wording.named(reason or "none"))
    return Markup("could not be cut by the method; the reason it gave: ") + said
