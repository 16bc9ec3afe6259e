"""What stays of every group, and how sure that is."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from markupsafe import Markup

from shapray.report import wording
from shapray.report.parts import Cell, Grid, Missing, Section, not_explained, num, text
from shapray.report.plots import SERIES, bar
from shapray.report.read import Run, array
from shapray.storage import certainty, names
from shapray.storage.certainty import UNSURE, Certainty

# Kept and removed, sure and not: a colour, a hatch over it, and what is below the hatch.
_LOOKS = {
    "kept": (SERIES[0], "", SERIES[0]),
    "kept, unsure": (SERIES[0], "||||", "none"),
    "removed, unsure": (SERIES[1], "xxxx", "none"),
    "removed": (SERIES[1], "///", "none"),
}


def section(run: Run) -> Section:
    groups = [] if run.groups is None else run.groups.to_pylist()
    certainties = {name: Certainty.of(scores) for name, scores in run.scores_of.items()}
    middle = certainty.median(list(certainties.values()))
    counted = {name: _counts(run, name) for name in run.scored}
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
    for place, (name, counts) in enumerate(counted.items()):
        n_units = _n_units(run, name)
        kept = counts.get("kept", 0) + counts.get("kept, unsure", 0) if counts else None
        unsure = sum(n for look, n in counts.items() if "unsure" in look)
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
                num(unsure if counts and name in run.units_of else None, wording.count),
                num(_expected_in(run, name), wording.number),
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
            "unsure",
            "expected on the wrong side",
            "error of a score",
            "from the images",
            "from the sampling",
            "multiply-adds behind it",
        ],
        rows,
        texts=2,
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
    return {"n": wording.count(len(chances)), "expected": wording.number(sum(chances), 2)}


def _excluded(groups: list[dict[str, Any]]) -> Grid | None:
    rows = [
        [
            text(wording.named(row["group"]), row["group"]),
            text(wording.named(row["reason"] or "no reason given")),
            num(row["n_units"], wording.count),
        ]
        for row in groups
        if row["status"] != "scored"
    ]
    return Grid("Groups not scored", ["group", "why", "units"], rows, 2) if rows else None
