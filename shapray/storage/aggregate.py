"""Shards to score tables: a unit's Shapley values, summarised over the calibration images.

All sums run in float64 and in image order, shard after shard, so the tables do not depend on who
wrote which shard, or when; one shard is in memory at a time.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from shapray.storage.schemas import CLASS_SCORES, SCORES


class _Moments:
    """Sums over images, for each of the `n_units` units of a group."""

    def __init__(self, n_units: int) -> None:
        self.n_images = self.n_exact = 0
        self.mean = np.zeros(n_units)
        self.squares = np.zeros(n_units)  # sum of squared deviations from the mean
        self.absolute = np.zeros(n_units)  # sum of |value|
        self.variance = np.zeros(n_units)  # sum of squared standard errors
        self.n_active = np.zeros(n_units)

    def add(self, value: np.ndarray, error: np.ndarray, active: np.ndarray, n_exact: int) -> None:
        """Take in some more images; the arrays are (n_images, n_units).

        Means and squared deviations are merged, not recomputed from raw sums, which would cancel.
        Source: Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm".
        """
        n_new, total = len(value), self.n_images + len(value)
        mean = value.mean(axis=0)
        shift = mean - self.mean
        self.squares += ((value - mean) ** 2).sum(axis=0)
        self.squares += shift**2 * (self.n_images * n_new / total)
        self.mean += shift * (n_new / total)
        self.absolute += np.abs(value).sum(axis=0)
        self.variance += (error**2).sum(axis=0)
        self.n_active += active.sum(axis=0)
        self.n_images, self.n_exact = total, self.n_exact + n_exact

    def columns(self, group: str) -> dict[str, pa.Array | np.ndarray]:
        n_units, n = len(self.mean), self.n_images
        std = np.sqrt(self.squares / (n - 1)) if n > 1 else np.full(n_units, np.nan)
        return {
            "group": np.full(n_units, group, dtype=object),
            "unit": np.arange(n_units),
            "mean": self.mean,
            "mean_abs": self.absolute / n,
            "std": _null_for_nan(std),
            "standard_error": _null_for_nan(np.sqrt(self.variance) / n),
            "n_images": np.full(n_units, n),
            "n_exact": np.full(n_units, self.n_exact),
            "active_fraction": self.n_active / n,
        }


def aggregate_group(
    group: str, n_units: int, shards: Iterable[pa.Table]
) -> tuple[pa.Table, pa.Table]:
    """The rows of ``scores.parquet`` and ``class_scores.parquet`` that belong to one group.

    Per unit, over its Shapley values phi_i on the images i = 1..n with standard errors s_i:
    `mean` and `mean_abs` of phi_i; `std`, their sample standard deviation (null for one image);
    `standard_error` of the mean that comes from the sampling, sqrt(sum s_i^2) / n (0 if
    all are exact, null if some s_i was not measured); `active_fraction`, the share of images on
    which the unit is active. Class tables hold the same over each label's images; images without
    label are in the first table only.

    Args:
        group: name.
        n_units: units of the group.
        shards: tables of the group, in image order.
    """
    overall = _Moments(n_units)
    by_label: dict[int, _Moments] = {}
    for shard in shards:
        value, error, active = (
            _matrix(shard[name], n_units) for name in ("shapley_value", "standard_error", "active")
        )
        exact = np.array([name == "exact" for name in shard["estimator"].to_pylist()])
        labels = shard["label"].to_pylist()
        overall.add(value, error, active, int(exact.sum()))
        for label in sorted({label for label in labels if label is not None}):
            rows = np.array([found == label for found in labels])
            moments = by_label.setdefault(label, _Moments(n_units))
            moments.add(value[rows], error[rows], active[rows], int(exact[rows].sum()))
    assert overall.n_images, group
    classes = [
        pa.table({**by_label[label].columns(group), "label": np.full(n_units, label)}).select(
            CLASS_SCORES.names
        )
        for label in sorted(by_label)
    ]
    return (
        pa.table(overall.columns(group)).cast(SCORES),
        pa.concat_tables(classes).cast(CLASS_SCORES) if classes else CLASS_SCORES.empty_table(),
    )


def _matrix(column: pa.ChunkedArray, n_units: int) -> np.ndarray:
    """List column -> (n_images, n_units) float64; null becomes NaN."""
    flat = column.combine_chunks().flatten().cast(pa.float64())
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), n_units)


def _null_for_nan(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))
