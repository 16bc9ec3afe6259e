"""How the criterion comes to its scores, in numbers, of runs that are there.

python -m jobs.experiments.mechanism.findings RUN_DIR [RUN_DIR ...]

A column per run, a row per finding; medians are over groups. Everything is from ``explain/``.
"""

import argparse
from collections.abc import Callable

import numpy as np
import pandas as pd

import shapray
from shapray.analysis.tables import Tables

SURE = 1.96  # standard errors


def main() -> None:
    parser = argparse.ArgumentParser(description="Findings of runs, as a table in Markdown.")
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR")
    options = parser.parse_args()
    found = {run: findings(shapray.tables(run)) for run in options.runs}
    print("| | " + " | ".join(options.runs) + " |")
    print("| --- |" + " --- |" * len(found))
    for name in next(iter(found.values())):
        print(f"| {name} | " + " | ".join(of_run[name] for of_run in found.values()) + " |")


def findings(run: Tables) -> dict[str, str]:
    """What there is to say, by what it is of."""
    parts: tuple[Callable[[Tables], dict[str, str]], ...] = (
        _correlations,
        _sizes,
        _additivity,
        _interactions,
        _negatives,
        _classes,
        _class_removal,
        _flips,
        _misplaced,
    )
    return {name: text for part in parts for name, text in part(run).items()}


def _correlations(run: Tables) -> dict[str, str]:
    table = run.pandas("correlations").dropna(subset=["correlation"])
    found = {}
    for (score, other), rows in table.groupby(["score", "other"], sort=False):
        low, middle, high = np.percentile(rows["correlation"], [0, 50, 100])
        sure = int((rows["low"] > 0).sum())
        found[
            f"rank correlation of `{score}` with {other}: median (range); groups surely above 0"
        ] = f"{middle:.2f} ({low:.2f} to {high:.2f}); {sure} of {len(rows)}"
    return found


def _sizes(run: Tables) -> dict[str, str]:
    """Of what all units of a group earn, the part at coalitions of less than half of the others."""
    table = run.pandas("sizes")
    shares = []
    for _, rows in table[table["unit"].isna()].groupby("group"):
        width = rows["size_to"] - rows["size_from"]
        earned = rows["marginal"] * width
        shares.append(earned[rows["size_to"] <= 0.5 + 1e-9].sum() / earned.sum())
    return {
        "of a group's values, earned while less than half of the others are there": _spread(shares)
    }


def _additivity(run: Tables) -> dict[str, str]:
    table = run.pandas("additivity")
    gap = table["value_all"] - table["value_none"]
    return {
        "units alone, summed up, over value(all) − value(none)": _spread(table["alone"] / gap),
        "units last, summed up, over value(all) − value(none)": _spread(table["last"] / gap),
    }


def _interactions(run: Tables) -> dict[str, str]:
    table = run.pandas("interactions")
    found = {}
    for kind in ("top", "bottom", "across"):
        rows = table[table["kind"] == kind]
        sure = rows["interaction"].abs() > SURE * rows["total_error"]
        redundant, synergetic = sure & (rows["interaction"] < 0), sure & (rows["interaction"] > 0)
        found[f"pairs of units, {kind}: surely redundant, surely synergetic"] = (
            f"{redundant.mean():.0%}, {synergetic.mean():.0%} of {len(rows)}"
        )
    return found


def _negatives(run: Tables) -> dict[str, str]:
    table = run.pandas("negatives")
    sure = table["mean"] < -SURE * table["total_error"]
    helps, harms = table["loss_high"] < 0, table["loss_low"] > 0
    units = run.pandas("scores")
    return {
        "units of a negative score": f"{(units['mean'] < 0).mean():.0%} of {len(units)}",
        "of the most negative, removing one alone surely helps · surely harms": (
            f"{helps.sum()} · {harms.sum()} of {len(table)}"
        ),
        "the same of those surely below 0": (
            f"{(helps & sure).sum()} · {(harms & sure).sum()} of {sure.sum()}"
        ),
    }


def _classes(run: Tables) -> dict[str, str]:
    units = run.pandas("units")
    return {
        "class selectivity, of Shapley values · of activations: median over units": (
            f"{units['selectivity'].median():.2f} · {units['activation_selectivity'].median():.2f}"
        )
    }


def _class_removal(run: Tables) -> dict[str, str]:
    if "class_removal" not in run.names:
        return {}
    table = run.pandas("class_removal")
    found = {}
    for removed, rows in table.groupby("removed", sort=False):
        own = rows["top1_before"].mean(), rows["top1_after"].mean()
        others = rows["others_before"].mean(), rows["others_after"].mean()
        found[f"accuracy of a class · of the others, 5 % of all units gone: {removed}"] = (
            f"{own[0]:.0%} → {own[1]:.0%} · {others[0]:.0%} → {others[1]:.0%}"
        )
    return found


def _flips(run: Tables) -> dict[str, str]:
    table = run.pandas("flips")
    table = table[table["n_cut"] > 0]
    found = {}
    for permutations in (2, 4, 8, 16):
        rows = table[table["permutations"] == permutations]
        text = f"{rows['another_cut'].mean():.0%} ({len(rows)} groups)" if len(rows) else "no group"
        found[f"sampling would have cut other units, at {permutations} permutations"] = text
    return found


def _misplaced(run: Tables) -> dict[str, str]:
    units = run.pandas("units").dropna(subset=["misplaced"])
    removed = units[units["removed"]]
    return {
        "removed units expected to belong above the cut": (
            f"{removed['misplaced'].sum():.1f} of {len(removed)}"
        )
    }


def _spread(numbers: pd.Series | list[float]) -> str:
    low, middle, high = np.percentile(numbers, [0, 50, 100])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
