"""What the shards of a group say image by image: where its units count most, and which way.

One pass, one shard in memory at a time; beside it there are ids, and `n` images a unit.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shapray.storage.aggregate import matrix
from shapray.storage.explained import EXTREMES

N_EXTREMES = 5
UP, DOWN = "up", "down"
_SIGNS = {UP: 1.0, DOWN: -1.0}


@dataclass(frozen=True)
class Extremes:
    """A group's units on its images; a Shapley value that is null is unknown, and none of them.

    Attributes:
        table: EXTREMES, by unit, direction (up first) and rank. Up are values above 0 only, down
            values below 0; of equal values the first image's comes first.
        positive, negative: (n_units,) means over images of max(value, 0) and min(value, 0).
        negative_share: (n_units,), of the images, those with a value below 0. All three are NaN for
            a unit of which no value is known.
        label: (n_units,) int64, the class whose images make most of the sum of negative values, the
            smallest of several; -1 where no labelled image has one.
        label_share: (n_units,), that class's part of the sum over all images; NaN where there is no
            class.
    """

    table: pa.Table
    positive: np.ndarray
    negative: np.ndarray
    negative_share: np.ndarray
    label: np.ndarray
    label_share: np.ndarray


def find_extremes(
    group: str, n_units: int, shards: Iterable[pa.Table], n: int = N_EXTREMES
) -> Extremes:
    """The images that drive each unit's score up and down most, and its parts by sign and class.

    Args:
        group: name.
        shards: tables of the group (SHARD), in image order.
        n: images each way.
    """
    ids: list[str] = []
    labels: list[int | None] = []
    ends = {direction: _End(n_units, n, sign) for direction, sign in _SIGNS.items()}
    parts = {direction: np.zeros(n_units) for direction in _SIGNS}
    n_known, n_negative = np.zeros(n_units), np.zeros(n_units)
    by_label: dict[int, np.ndarray] = {}
    for shard in shards:
        value = matrix(shard["shapley_value"], n_units)
        error = matrix(shard["standard_error"], n_units)
        known = np.where(np.isnan(value), 0.0, value)  # an unknown value is at neither end
        for direction, sign in _SIGNS.items():
            ends[direction].add(known, error, first=len(ids))
            parts[direction] += sign * np.maximum(sign * known, 0.0).sum(axis=0)
        n_known += (~np.isnan(value)).sum(axis=0)
        n_negative += (known < 0).sum(axis=0)
        here = shard["label"].to_pylist()
        _add_by_label(by_label, np.minimum(known, 0.0), here)
        ids += shard["image_id"].to_pylist()
        labels += here

    tables = [end.table(direction, ids, labels) for direction, end in ends.items()]
    table = pa.concat_tables(tables).sort_by(
        [("unit", "ascending"), ("direction", "descending"), ("rank", "ascending")]
    )
    names = pa.array([group] * len(table), pa.string())
    label, label_share = _worst_label(by_label, parts[DOWN])
    with np.errstate(invalid="ignore"):
        return Extremes(
            table.append_column("group", names).select(EXTREMES.names).cast(EXTREMES),
            parts[UP] / n_known,
            parts[DOWN] / n_known,
            n_negative / n_known,
            label,
            label_share,
        )


class _End:
    """The `n` largest of each unit's values times a sign, if they are above 0."""

    def __init__(self, n_units: int, n: int, sign: float) -> None:
        self.sign = sign
        self.height = np.zeros((n_units, n))  # value times sign, descending, then 0
        self.error = np.zeros((n_units, n))
        self.image = np.zeros((n_units, n), dtype=np.int64)

    def add(self, value: np.ndarray, error: np.ndarray, first: int) -> None:
        """value, error: (n_images, n_units); `first`: number of the first of these images."""
        image = np.broadcast_to(np.arange(first, first + len(value)), value.T.shape)
        height = np.hstack([self.height, self.sign * value.T])  # (n_units, n + n_images)
        error, image = np.hstack([self.error, error.T]), np.hstack([self.image, image])
        units = np.arange(len(height))
        # A few maxima take less time than a sort; of equal ones the first is found.
        for rank in range(self.height.shape[1]):
            best = height.argmax(axis=1)
            self.height[:, rank] = height[units, best]
            self.error[:, rank], self.image[:, rank] = error[units, best], image[units, best]
            height[units, best] = -np.inf

    def table(self, direction: str, ids: list[str], labels: list[int | None]) -> pa.Table:
        unit, place = np.nonzero(self.height > 0)
        image, error = self.image[unit, place], self.error[unit, place]
        return pa.table(
            {
                "unit": unit,
                "direction": pa.array([direction] * len(unit), pa.string()),
                "rank": place + 1,
                "image_id": pa.array([ids[i] for i in image], pa.string()),
                "label": pa.array([labels[i] for i in image], pa.int64()),
                "value": self.sign * self.height[unit, place],
                "standard_error": pa.array(error, mask=np.isnan(error)),
            }
        )


def _add_by_label(
    sums: dict[int, np.ndarray], values: np.ndarray, labels: list[int | None]
) -> None:
    """Add (n_images, n_units) values to their labels' sums; images without one to none."""
    there = np.array([label is not None for label in labels], dtype=bool)
    found = np.array([label for label in labels if label is not None], dtype=np.int64)
    names, place = np.unique(found, return_inverse=True)
    added = np.zeros((len(names), values.shape[1]))
    np.add.at(added, place, values[there])
    for name, of_units in zip(names.tolist(), added, strict=True):
        sums[name] = sums.get(name, 0.0) + of_units


def _worst_label(sums: dict[int, np.ndarray], total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per unit the label of the smallest sum, and its share of the total; see `Extremes`."""
    label, share = np.full(len(total), -1), np.full(len(total), np.nan)
    if not sums:
        return label, share
    names = np.array(sorted(sums))
    of_labels = np.stack([sums[name] for name in names.tolist()])  # (n_labels, n_units)
    worst, least = of_labels.argmin(axis=0), of_labels.min(axis=0)
    there = least < 0
    label[there], share[there] = names[worst[there]], least[there] / total[there]
    return label, share
