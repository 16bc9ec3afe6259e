"""Whether another number tells what the Shapley values tell: rank correlations within a group."""

import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from scipy.stats import norm, spearmanr

from shapray.storage.explained import CORRELATIONS

OTHERS = ("activation", "active_fraction", "l1_norm", "taylor", "leave_one_out", "unrepaired")
SCORES = ("mean", "mean_abs")
FEWEST = 4  # units; of fewer an interval says nothing


def correlations(group: str, columns: Mapping[str, np.ndarray]) -> pa.Table:
    """The rows of a group: both scores against every other number.

    Args:
        group: name.
        columns: `SCORES` and `OTHERS` by name, (n_units,) each; NaN where not known.
    """
    rows = []
    for score in SCORES:
        for other in OTHERS:
            a, b = columns[score], columns[other]
            known = np.isfinite(a) & np.isfinite(b)
            found, low, high = rank_correlation(a[known], b[known])
            rows.append(
                {
                    "group": group,
                    "score": score,
                    "other": other,
                    "correlation": found,
                    "low": low,
                    "high": high,
                    "n_units": int(known.sum()),
                }
            )
    return pa.Table.from_pylist(rows, CORRELATIONS)


def rank_correlation(
    a: np.ndarray, b: np.ndarray
) -> tuple[float | None, float | None, float | None]:
    """Spearman's rank correlation and its 95 % interval.

    The interval is Fisher's, of arctanh r, with the variance (1 + r^2 / 2) / (n - 3), which holds
    for ranks; it is within what resampling gives from ten pairs on.

    Args:
        a, b: (n,) finite numbers.
    Returns:
        correlation, low, high; None where there are too few pairs, or no two that differ.
    Source: Bonett and Wright 2000, "Sample size requirements for estimating Pearson, Kendall and
        Spearman correlations".
    """
    n = len(a)
    if n < FEWEST or len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return None, None, None
    r = float(spearmanr(a, b).statistic)
    if abs(r) >= 1:
        return r, r, r
    half = float(norm.ppf(0.975)) * math.sqrt((1 + r * r / 2) / (n - 3))
    middle = math.atanh(r)
    return r, math.tanh(middle - half), math.tanh(middle + half)
