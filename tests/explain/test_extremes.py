"""A group's shards image by image, against the plainest way to say the same."""

import math
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from shapray.explain.extremes import find_extremes
from shapray.storage.explained import EXTREMES
from shapray.storage.schemas import SHARD

N_UNITS = 6


def shard(ids, labels, values, errors) -> pa.Table:
    """Rows of a shard; what is not looked at is made up."""
    n = len(ids)
    return pa.Table.from_pydict(
        {
            "group": ["conv"] * n,
            "image_id": ids,
            "label": labels,
            "n_active": [N_UNITS] * n,
            "estimator": ["permutation"] * n,
            "sampling": ["pairs"] * n,
            "n_evaluations": [10] * n,
            "n_permutations": [2] * n,
            "value_all": [0.0] * n,
            "value_none": [-1.0] * n,
            "shapley_value": values,
            "standard_error": errors,
            "active": [[True] * len(row) for row in values],
        },
        schema=SHARD,
    )


def images(n: int, seed: int = 0, with_nulls: bool = True):
    """Ids, labels, values and errors; values repeat, so that there are ties, and some are null."""
    random = np.random.default_rng(seed)
    values = (random.integers(-4, 5, (n, N_UNITS)) / 4).tolist()
    errors = random.uniform(0, 1, (n, N_UNITS)).astype(np.float32).tolist()
    for row, column in zip(random.integers(0, n, n), random.integers(0, N_UNITS, n), strict=True):
        if with_nulls and column != 1:
            values[row][column] = errors[row][column] = None
    for row in values:
        row[2] = abs(row[2]) if row[2] is not None else None  # never negative
        row[3] = None if with_nulls else 0.0  # not known at all
    labels = [None if i % 7 == 6 else int(random.integers(0, 4)) for i in range(n)]
    return [f"img{i}" for i in range(n)], labels, values, errors


def split(columns, *cuts: int) -> list[pa.Table]:
    edges = [0, *cuts, len(columns[0])]
    return [shard(*(column[first:last] for column in columns)) for first, last in pairwise(edges)]


def plain(columns, n: int) -> list[dict]:
    """Sorting all images, unit by unit."""
    ids, labels, values, errors = columns
    rows = []
    for unit in range(N_UNITS):
        known = [i for i in range(len(ids)) if values[i][unit] is not None]
        up = sorted((i for i in known if values[i][unit] > 0), key=lambda i: -values[i][unit])
        down = sorted((i for i in known if values[i][unit] < 0), key=lambda i: values[i][unit])
        for direction, found in (("up", up), ("down", down)):
            rows += [
                {
                    "group": "conv",
                    "unit": unit,
                    "direction": direction,
                    "rank": rank,
                    "image_id": ids[i],
                    "label": labels[i],
                    "value": values[i][unit],
                    "standard_error": errors[i][unit],
                }
                for rank, i in enumerate(found[:n], start=1)
            ]
    return rows


@pytest.mark.parametrize("cuts", [(), (1, 2, 30, 33)], ids=["one shard", "five shards"])
@pytest.mark.parametrize("n", [1, 5, 1000])
def test_the_extremes_are_those_of_a_sort_of_all_images(n, cuts):
    columns = images(60)
    found = find_extremes("conv", N_UNITS, split(columns, *cuts), n)
    assert found.table.schema.equals(EXTREMES)
    assert found.table.to_pylist() == plain(columns, n)


def test_parts_by_sign_and_class_are_those_of_a_loop():
    columns = images(60, seed=3)
    _, labels, values, _ = columns
    found = find_extremes("conv", N_UNITS, split(columns, 10, 25))
    for unit in range(N_UNITS):
        known = [row[unit] for row in values if row[unit] is not None]
        if not known:
            assert math.isnan(found.positive[unit])
            assert math.isnan(found.negative_share[unit])
            continue
        assert found.positive[unit] == pytest.approx(np.mean([max(v, 0) for v in known]))
        assert found.negative[unit] == pytest.approx(np.mean([min(v, 0) for v in known]))
        assert found.negative_share[unit] == pytest.approx(np.mean([v < 0 for v in known]))
        negative = [min(row[unit] or 0.0, 0.0) for row in values]
        sums = {c: sum(v for v, label in zip(negative, labels) if label == c) for c in range(4)}
        if sum(negative) == 0:
            assert found.label[unit] == -1
            assert math.isnan(found.label_share[unit])
            continue
        assert sums[found.label[unit]] == min(sums.values())
        assert found.label_share[unit] == pytest.approx(min(sums.values()) / sum(negative))
    assert found.label[2] == -1
    assert found.label[3] == -1


def test_images_without_labels_have_no_worst_class():
    ids, labels, values, errors = images(20)
    columns = ids, [None] * len(labels), values, errors
    found = find_extremes("conv", N_UNITS, split(columns))
    assert (found.label == -1).all()
    assert np.isnan(found.label_share).all()
    assert set(found.table["label"].to_pylist()) == {None}


def test_a_unit_that_never_counts_has_no_extremes():
    columns = images(20, with_nulls=False)
    found = find_extremes("conv", N_UNITS, split(columns))
    assert 3 not in found.table["unit"].to_pylist()
    assert (found.positive[3], found.negative[3], found.negative_share[3]) == (0, 0, 0)
