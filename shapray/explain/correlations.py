"""Whether another number tells what the Shapley values tell: rank correlations within a group."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from shapray.rank_correlation import spearman
from shapray.storage.explained import CORRELATIONS

OTHERS = ("activation", "active_fraction", "l1_norm", "taylor", "leave_one_out", "unrepaired")
SCORES = ("mean", "mean_abs")


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
            found, low, high = spearman(a[known], b[known])
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
