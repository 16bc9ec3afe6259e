"""Two runs held against each other: whether they rank the units alike and cut the same ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shapray.analysis.catalogue import REMOVED
from shapray.analysis.tables import Tables, tables
from shapray.errors import JobError
from shapray.rank_correlation import kendall, spearman
from shapray.storage import names
from shapray.storage.column import column
from shapray.storage.run_directory import RunDirectory
from shapray.text import some

_DOUBLE, _INT, _UNITS = pa.float64(), pa.int64(), pa.list_(pa.int64())
AGREEMENT = pa.schema(
    [
        column("group", pa.string(), "name of a group that both runs scored", nullable=False),
        column("n_units", _INT, "units in the group", "units", nullable=False),
        column("spearman", _DOUBLE, "rank correlation of the scores; null where all are equal"),
        column("spearman_low", _DOUBLE, "lower end of its 95 % interval; null of few units"),
        column("spearman_high", _DOUBLE, "upper end of its 95 % interval; null of few units"),
        column("kendall", _DOUBLE, "Kendall's tau-b of the scores; null where all are equal"),
        column("kendall_low", _DOUBLE, "lower end of its 95 % interval; null of few units"),
        column("kendall_high", _DOUBLE, "upper end of its 95 % interval; null of few units"),
        column("removed_in_both", _INT, "units; null where one of the runs has no cut", "units"),
        column("only_in_a", _UNITS, "units that only the first run's cut removes"),
        column("only_in_b", _UNITS, "units that only the second run's cut removes"),
    ]
)


@dataclass(frozen=True)
class Comparison:
    """What `comparison` found.

    Attributes:
        agreement: a row per group, see `AGREEMENT`.
        notes: sentences on what the two runs are: one network or two, what was set otherwise.
    """

    agreement: pa.Table
    notes: tuple[str, ...]


def compare(run_a: str, run_b: str, by: str = "mean_abs") -> pa.Table:
    """Rank agreement of two runs and the units that change sides of the cut, a row per group.

    Args:
        run_a, run_b: output folders of runs of one architecture, any fsspec URL.
        by: the column of the scores that is compared.
    Returns:
        group, n_units; spearman and kendall with their 95 % intervals (`..._low`, `..._high`);
        removed_in_both, only_in_a, only_in_b: the units that the runs' own cuts remove.
    Raises:
        ValueError: a run is not there, has no such column, or is of a network with other groups.
    Source: Bonett and Wright 2000, "Sample Size Requirements for Estimating Pearson, Kendall and
        Spearman Correlations" (intervals on Fisher's scale).
    """
    return comparison(run_a, run_b, by).agreement


def comparison(run_a: str, run_b: str, by: str) -> Comparison:
    """As `compare`."""
    opened = tables(run_a), tables(run_b)
    first, second = (_scores(run, of, by) for run, of in zip((run_a, run_b), opened))
    common = [group for group in first if group in second]
    for group in common:
        if len(first[group]) != len(second[group]):
            raise JobError(
                f"not the same network: group '{group}' has {len(first[group])} units in {run_a} "
                f"and {len(second[group])} in {run_b}"
            )
    if not common:
        raise JobError(
            f"not the same network: no group of {run_a} ({some(list(first))}) is one of {run_b} "
            f"({some(list(second))})"
        )
    removed = [_removed(of) for of in opened]
    rows = [
        {"group": group, "n_units": len(first[group])}
        | _correlations(first[group], second[group])
        | _sides(removed[0], removed[1], group)
        for group in common
    ]
    notes = (
        *_on_settings(*(_parts(run) for run in (run_a, run_b))),
        *(
            f"only {name} has the groups {some(sorted(missing))}"
            for name, missing in (("A", set(first) - set(second)), ("B", set(second) - set(first)))
            if missing
        ),
        *(f"{name} has no cut" for name, of in zip("AB", removed) if of is None),
    )
    return Comparison(pa.Table.from_pylist(rows, AGREEMENT), notes)


def _scores(run: str, of: Tables, by: str) -> dict[str, np.ndarray]:
    """Group -> (n_units,) of a column of the scores, NaN where it is null."""
    table = of.arrow("scores").to_table()
    known = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    if by not in known:
        raise JobError(f"by: '{by}'; the scores of {run} have {', '.join(known)}")
    groups = np.array(table["group"].to_pylist(), dtype=object)
    values = table[by].to_numpy()
    return {group: values[groups == group] for group in dict.fromkeys(groups)}


def _correlations(first: np.ndarray, second: np.ndarray) -> dict[str, float | None]:
    known = np.isfinite(first) & np.isfinite(second)
    found: dict[str, float | None] = {}
    for name, correlation in (("spearman", spearman), ("kendall", kendall)):
        found[name], found[f"{name}_low"], found[f"{name}_high"] = correlation(
            first[known], second[known]
        )
    return found


def _removed(of: Tables) -> dict[str, set[int]] | None:
    """Group -> the units that the run's own cut removes; None without a cut."""
    if REMOVED not in of.names:
        return None
    found: dict[str, set[int]] = {}
    for row in of.arrow(REMOVED).to_table().to_pylist():
        found.setdefault(row["group"], set()).add(row["unit"])
    return found


def _sides(
    first: Mapping[str, set[int]] | None, second: Mapping[str, set[int]] | None, group: str
) -> dict[str, Any]:
    if first is None or second is None:
        return {}
    a, b = first.get(group, set()), second.get(group, set())
    return {
        "removed_in_both": len(a & b),
        "only_in_a": sorted(a - b),
        "only_in_b": sorted(b - a),
    }


def _parts(run: str) -> dict[str, Any]:
    """What the run's scores were made of."""
    return (RunDirectory(run).read_json(names.RUN) or {}).get("fingerprint_parts") or {}


def _on_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    weights = "model.weights"
    if not first or not second:
        return ["whether it is the same network is not known: run.json does not say"]
    differing = [
        key for key in {**first, **second} if first.get(key) != second.get(key) and key != weights
    ]
    same = first.get(weights) == second.get(weights)
    return [
        "the same network, to the last weight" if same else "the same groups, but other weights",
        *(f"{key}: {_short(first, key)} in A, {_short(second, key)} in B" for key in differing),
    ]


def _short(parts: Mapping[str, Any], key: str) -> str:
    text = str(parts.get(key, "not set"))
    return f"digest {text[:12]}" if len(text) == 64 else text
