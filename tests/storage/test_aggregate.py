"""Score tables from shards, against plain numpy over all images at once."""

import numpy as np
import pyarrow as pa
import pytest

from shapray.storage.aggregate import aggregate_group
from shapray.storage.schemas import CLASS_SCORES, SCORES, SHARD

N_IMAGES, N_UNITS = 10, 5


def rows(rng, labels):
    n = len(labels)
    exact = rng.random(n) < 0.5
    value = rng.normal(size=(n, N_UNITS)).astype(np.float32)
    error = np.where(exact[:, None], 0, rng.random((n, N_UNITS))).astype(np.float32)
    active = rng.random((n, N_UNITS)) < 0.7
    table = pa.table(
        {
            "group": ["conv"] * n,
            "image_id": [str(i) for i in range(n)],
            "label": labels,
            "n_active": active.sum(axis=1),
            "estimator": np.where(exact, "exact", "permutation"),
            "sampling": [None if is_exact else "pairs" for is_exact in exact],
            "n_evaluations": [8] * n,
            "n_permutations": [2] * n,
            "value_all": [0.0] * n,
            "value_none": [0.0] * n,
            "shapley_value": value.tolist(),
            "standard_error": error.tolist(),
            "active": active.tolist(),
        }
    ).cast(SHARD)
    return table, value.astype(float), error.astype(float), active, exact


def test_scores_are_the_statistics_over_all_images():
    labels = [0, 2, 0, 2, 2, 0, 7, 2, 0, 2]
    table, value, error, active, exact = rows(np.random.default_rng(0), labels)
    scores, classes = aggregate_group("conv", N_UNITS, [table[:4], table[4:7], table[7:]])

    assert scores.schema == SCORES
    assert scores["unit"].to_pylist() == list(range(N_UNITS))
    assert scores["n_images"].to_pylist() == [N_IMAGES] * N_UNITS
    assert scores["n_exact"].to_pylist() == [exact.sum()] * N_UNITS
    np.testing.assert_allclose(scores["mean"], value.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scores["mean_abs"], np.abs(value).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scores["std"], value.std(axis=0, ddof=1), rtol=1e-12)
    expected = np.sqrt((error**2).sum(axis=0)) / N_IMAGES
    np.testing.assert_allclose(scores["standard_error"], expected, rtol=1e-12)
    np.testing.assert_allclose(scores["active_fraction"], active.mean(axis=0), rtol=1e-12)

    assert classes.schema == CLASS_SCORES
    assert classes["label"].to_pylist() == [0] * N_UNITS + [2] * N_UNITS + [7] * N_UNITS
    twos = np.array(labels) == 2
    found = classes.filter(pa.compute.equal(classes["label"], 2))
    np.testing.assert_allclose(found["mean"], value[twos].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["std"], value[twos].std(axis=0, ddof=1), rtol=1e-12)
    assert found["n_exact"].to_pylist() == [exact[twos].sum()] * N_UNITS
    single = classes.filter(pa.compute.equal(classes["label"], 7))
    assert single["std"].null_count == N_UNITS  # one image has no spread


def test_the_standard_error_is_null_where_it_was_not_measured():
    table, _, error, _, _ = rows(np.random.default_rng(1), [0, 1, 1])
    unmeasured = error.tolist()
    unmeasured[1][3] = None
    column = pa.array(unmeasured, pa.list_(pa.float32()))
    position = SHARD.get_field_index("standard_error")
    table = table.set_column(position, SHARD.field(position), column)
    scores, classes = aggregate_group("conv", N_UNITS, [table])
    assert [v is None for v in scores["standard_error"].to_pylist()] == [0, 0, 0, 1, 0]
    assert classes["standard_error"].null_count == 1
    assert scores["mean"].null_count == 0


def test_without_labels_there_are_no_class_scores():
    table, *_ = rows(np.random.default_rng(2), [None] * 4)
    scores, classes = aggregate_group("conv", N_UNITS, [table])
    assert scores.num_rows == N_UNITS
    assert classes.num_rows == 0


@pytest.mark.parametrize("cut", [1, 3, 9])
def test_large_values_with_a_small_spread_do_not_cancel(cut):
    table, *_ = rows(np.random.default_rng(3), [0] * N_IMAGES)
    value = np.float32(2**20) + np.arange(N_IMAGES * N_UNITS, dtype=np.float32).reshape(-1, N_UNITS)
    position = SHARD.get_field_index("shapley_value")
    column = pa.array(value.tolist(), pa.list_(pa.float32()))
    table = table.set_column(position, SHARD.field(position), column)
    scores, _ = aggregate_group("conv", N_UNITS, [table[:cut], table[cut:]])
    np.testing.assert_allclose(scores["std"], value.astype(float).std(axis=0, ddof=1), rtol=1e-9)
