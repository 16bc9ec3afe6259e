"""Shards to score tables: a unit's Shapley values, summarised over the calibration images.

All sums run in float64 and in image order, shard after shard, so the tables do not depend on who
wrote which shard, or when; one shard is in memory at a time.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from shapray.storage.moments import Noise, Spread, errors
from shapray.storage.schemas import CLASS_SCORES, SCORES


class _Sums:
    """Of the images of a group, for each of its `n_units` units."""

    def __init__(self, n_units: int) -> None:
        self.n_exact = 0
        self.value, self.absolute = Spread(n_units), Spread(n_units)
        self.noise = Noise(n_units)
        self.n_active = np.zeros(n_units)

    @property
    def n(self) -> int:
        return self.value.n

    def add(self, shard: "_Shard", rows: np.ndarray) -> None:
        """Take in some images of a shard."""
        value, error = shard.value[rows], shard.error[rows]
        self.value.add(value)
        self.absolute.add(np.abs(value))
        self.noise.add(value, error, shard.n_pairs[rows])
        self.n_active += shard.active[rows].sum(axis=0)
        self.n_exact += int(shard.exact[rows].sum())

    def columns(
        self, group: str, strata: Iterable["_Sums"] = (), like: "_Sums | None" = None
    ) -> dict[str, pa.Array | np.ndarray]:
        """Of a score table.

        Args:
            strata: sums of the parts of the images whose numbers were fixed before the draw.
            like: of more images, see `Noise.totals`.
        """
        n_units, n = len(self.n_active), self.n
        parts = list(strata)
        if not parts or min(part.n for part in parts) < 2:
            parts = [self]
        variance, of_absolute = (
            sum((part.n / n) ** 2 * spread(part).variance / part.n for part in parts)
            for spread in (lambda sums: sums.value, lambda sums: sums.absolute)
        )
        noise, noise_of_absolute, lift = self.noise.totals(like.noise if like else None)
        of_mean = errors(variance, np.sqrt(noise) / n)
        of_mean_abs = errors(of_absolute, np.sqrt(noise_of_absolute) / n)
        found = {
            "mean": self.value.mean,
            "mean_abs": self.absolute.mean,
            "std": np.sqrt(self.value.variance),
            "standard_error": of_mean.sampling,
            "image_error": of_mean.images,
            "total_error": of_mean.total,
            "mean_abs_standard_error": of_mean_abs.sampling,
            "mean_abs_image_error": of_mean_abs.images,
            "mean_abs_total_error": np.hypot(of_mean_abs.total, lift / n),
        }
        return {
            "group": np.full(n_units, group, dtype=object),
            "unit": np.arange(n_units),
            **{name: pa.array(column, mask=np.isnan(column)) for name, column in found.items()},
            "n_images": np.full(n_units, n),
            "n_exact": np.full(n_units, self.n_exact),
            "active_fraction": self.n_active / n,
        }


class _Shard:
    """The columns of a shard as arrays, a row per image."""

    def __init__(self, table: pa.Table, n_units: int) -> None:
        self.value, self.error, self.active = (
            matrix(table[name], n_units) for name in ("shapley_value", "standard_error", "active")
        )
        self.exact = np.array([name == "exact" for name in table["estimator"].to_pylist()])
        by_permutations = [name == "permutations" for name in table["sampling"].to_pylist()]
        self.n_pairs = np.where(by_permutations, table["n_permutations"].to_numpy() / 2, 0.0)
        self.labels = table["label"].to_pylist()

    @property
    def n(self) -> int:
        return len(self.labels)


class GroupSums:
    """The shards of a group, summed up as they come, in image order.

    Per unit, over its Shapley values phi_i on the images i = 1..n with standard errors s_i:

    - `mean` and `mean_abs` of phi_i; `std`, their sample standard deviation;
    - errors of the mean: `standard_error` from the sampling, sqrt(sum s_i^2) / n (0 if all are
      exact); `total_error` against the mean over all images that these were drawn from,
      std / sqrt(n); `image_error`, what of it the choice of the images makes;
    - the same of `mean_abs`, whose total error holds what the noise lifts it by, too;
    - `active_fraction`, the share of images on which the unit is active.

    What is not known is null: every spread of a single image, and all that needs the s_i where too
    little is known of them (see `moments.Noise`). Class tables hold the same over each label's
    images; images without label are in the first table only.

    Args:
        group: name.
        n_units: units of the group.
    Source: Cochran 1977, Sampling Techniques, chapter 5 (stratified sampling).
    """

    def __init__(self, group: str, n_units: int) -> None:
        self.group, self.n_units = group, n_units
        self._overall = _Sums(n_units)
        self._by_label: dict[int, _Sums] = {}

    def add(self, table: pa.Table) -> None:
        """Take in the next shard."""
        shard = _Shard(table, self.n_units)
        self._overall.add(shard, np.ones(shard.n, bool))
        for label in sorted({label for label in shard.labels if label is not None}):
            rows = np.array([found == label for found in shard.labels])
            self._by_label.setdefault(label, _Sums(self.n_units)).add(shard, rows)

    def scores(self, balanced: bool) -> pa.Table:
        """The group's rows of ``scores.parquet``; there has been a shard.

        Args:
            balanced: how many images there are of each label was fixed before they were drawn:
                then only the spread within the labels is chance.
        """
        assert self._overall.n, self.group
        labelled = sum(sums.n for sums in self._by_label.values()) == self._overall.n
        strata = self._by_label.values() if balanced and labelled else ()
        return pa.table(self._overall.columns(self.group, strata)).cast(SCORES)

    def class_scores(self) -> pa.Table:
        """The group's rows of ``class_scores.parquet``."""
        classes = [
            pa.table(
                {
                    **self._by_label[label].columns(self.group, like=self._overall),
                    "label": np.full(self.n_units, label),
                }
            ).select(CLASS_SCORES.names)
            for label in sorted(self._by_label)
        ]
        return (
            pa.concat_tables(classes).cast(CLASS_SCORES) if classes else CLASS_SCORES.empty_table()
        )


def aggregate_group(
    group: str, n_units: int, shards: Iterable[pa.Table], balanced: bool = False
) -> tuple[pa.Table, pa.Table]:
    """The rows of ``scores.parquet`` and ``class_scores.parquet`` that belong to one group; see
    `GroupSums`.

    Args:
        shards: tables of the group, in image order.
    """
    sums = GroupSums(group, n_units)
    for table in shards:
        sums.add(table)
    return sums.scores(balanced), sums.class_scores()


def matrix(column: pa.ChunkedArray, n_units: int) -> np.ndarray:
    """A shard's list column -> (n_images, n_units) float64; null becomes NaN."""
    flat = column.combine_chunks().flatten().cast(pa.float64())
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), n_units)
