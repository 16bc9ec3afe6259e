"""Paired comparisons of two methods over seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped,import-not-found,unused-ignore]

from jobs.experiments.hybrid_vs_sampling.cuts import Row


@dataclass(frozen=True)
class Paired:
    """Differences of one method from another, seed by seed.

    Attributes:
        mean: of the differences.
        low, high: 95 % t interval of it; the mean itself where all differences are equal.
        p: of Wilcoxon's signed-rank test, two-sided; 1 where no seed differs.
        effect: the mean over the differences' standard deviation (Cohen's d of paired samples); 0
            where no seed differs.
        better, worse: seeds with a difference above and below 0.
    """

    mean: float
    low: float
    high: float
    p: float
    effect: float
    better: int
    worse: int
    n: int


def paired(differences: Sequence[float]) -> Paired:
    """Raises ValueError for fewer than two seeds."""
    found = np.asarray(differences, dtype=np.float64)
    if len(found) < 2:
        raise ValueError(f"{len(found)} seeds; a paired test needs two")
    # accuracies are counts over a number of images: what differs by rounding only does not differ
    found = np.where(np.abs(found) < 1e-12, 0.0, found)
    mean, spread = float(found.mean()), float(found.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(found) - 1)) * spread / np.sqrt(len(found))
    p = float(stats.wilcoxon(found).pvalue) if found.any() else 1.0
    return Paired(
        mean=mean,
        low=mean - half,
        high=mean + half,
        p=p,
        effect=mean / spread if spread else 0.0,
        better=int((found > 0).sum()),
        worse=int((found < 0).sum()),
        n=len(found),
    )


def comparable(rows: Sequence[Row]) -> list[Row]:
    """The rows of networks that have at least two seeds."""
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row["network"], set()).add(row["seed"])
    return [row for row in rows if len(seeds[row["network"]]) > 1]


def differences(rows: Iterable[Row], one: str, other: str, metric: str) -> dict[int, float]:
    """Seed -> a method's metric less another's, mean over the settings that both have.

    Random cuts know neither sampler, price nor ranking: they stand beside each.
    """
    settings = ("network", "seed", "n_images", "share", "repair")
    asked = ("sampler", "permutations", "ranking")
    by_setting: dict[tuple[object, ...], float] = {}
    mine: list[Row] = []
    for row in rows:
        if row["method"] == other:
            keys = settings if other == "random" else (*settings, *asked)
            by_setting[tuple(row[key] for key in keys)] = row[metric]
        if row["method"] == one:
            mine.append(row)
    keys = settings if other == "random" else (*settings, *asked)
    found: dict[int, list[float]] = {}
    for row in mine:
        right = by_setting[tuple(row[key] for key in keys)]
        found.setdefault(row["seed"], []).append(row[metric] - right)
    return {seed: float(np.mean(values)) for seed, values in sorted(found.items())}
