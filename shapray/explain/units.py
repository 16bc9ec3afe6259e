"""All that is known of each unit beside its scores, in one row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shapray.explain.activations import Activations
from shapray.explain.extremes import Extremes
from shapray.explain.selectivity import selectivity
from shapray.storage.explained import UNITS

CRITERIA = ("l1_norm", "taylor", "leave_one_out", "unrepaired")


@dataclass(frozen=True)
class ClassMeans:
    """A group's scores class by class.

    Attributes:
        labels: (n_classes,) int64.
        mean, mean_abs: (n_classes, n_units).
    """

    labels: np.ndarray
    mean: np.ndarray
    mean_abs: np.ndarray

    @staticmethod
    def of(class_scores: pa.Table, n_units: int) -> "ClassMeans":
        """class_scores: the group's rows of ``class_scores.parquet``."""
        rows = class_scores.sort_by([("label", "ascending"), ("unit", "ascending")])
        mean, mean_abs = (
            rows[name].to_numpy().reshape(-1, n_units) for name in ("mean", "mean_abs")
        )
        return ClassMeans(rows["label"].to_numpy().reshape(-1, n_units)[:, 0], mean, mean_abs)


def unit_rows(
    group: str,
    extremes: Extremes,
    activations: Activations,
    criteria: Mapping[str, np.ndarray],
    classes: ClassMeans | None,
    removed: Sequence[int],
    misplaced: np.ndarray,
) -> pa.Table:
    """The rows of a group.

    Args:
        group: name.
        criteria: of `CRITERIA` those that could be computed, (n_units,) each.
        classes: None where the images have no labels.
        removed: units that the job's own cut removes.
        misplaced: (n_units,), see `pruning.doubt`.
    """
    n_units = len(misplaced)
    unknown = np.full(n_units, np.nan)
    is_removed = np.zeros(n_units, bool)
    is_removed[list(removed)] = True
    numbers = {
        "positive": extremes.positive,
        "negative": extremes.negative,
        "negative_share": extremes.negative_share,
        "activation": activations.overall,
        **{name: criteria.get(name, unknown) for name in CRITERIA},
        "selectivity": unknown if classes is None else selectivity(classes.mean_abs),
        "activation_selectivity": selectivity(activations.by_label)
        if len(activations.labels)
        else unknown,
        "misplaced": misplaced,
    }
    serves = pa.nulls(n_units, pa.int64())
    if classes is not None:
        useless = classes.mean.max(axis=0) <= 0
        serves = pa.array(classes.labels[classes.mean.argmax(axis=0)], pa.int64(), mask=useless)
    columns = {
        "group": pa.array([group] * n_units, pa.string()),
        "unit": pa.array(np.arange(n_units)),
        "serves": serves,
        "removed": pa.array(is_removed),
        **{
            name: pa.array(column, pa.float64(), mask=np.isnan(column))
            for name, column in numbers.items()
        },
    }
    return pa.table(columns).select(UNITS.names).cast(UNITS)
