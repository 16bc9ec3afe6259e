"""What is said of a score's errors, against what they are, over many draws from a population."""

import numpy as np
import pyarrow as pa
import pytest

from shapray.storage.aggregate import aggregate_group
from shapray.storage.schemas import SHARD

N_DRAWS, N_UNITS = 150, 4
KNOWN = [3.0, 0.0, -1.0, 0.3]  # means of the units' values over the population


def draw(random, n, labels=None, sampling=1.0, told_every=None):
    """A shard of images drawn at random, each value sampled by pairs of permutations: one each, two
    of every `told_every`-th image."""
    spread = np.array([1.0, 2.0, 0.2, 1.0])
    value = KNOWN + spread * random.normal(size=(n, N_UNITS))
    if labels is not None:
        value = value + np.where(np.array(labels)[:, None] == 0, 3.0, -3.0)
    told = np.zeros(n, bool) if told_every is None else np.arange(n) % told_every == 0
    n_pairs = np.where(told, 2, 1)
    drawn = sampling * random.normal(size=(2, n, N_UNITS))
    found = value + np.where(told[:, None], drawn.mean(0), drawn[0])
    error = np.where(told[:, None], np.abs(drawn[0] - drawn[1]) / 2, np.nan)
    rows = {
        "group": ["conv"] * n,
        "image_id": [str(i) for i in range(n)],
        "label": labels or [None] * n,
        "n_active": [N_UNITS] * n,
        "estimator": ["permutation"] * n,
        "sampling": ["permutations"] * n,
        "n_evaluations": [8] * n,
        "n_permutations": 2 * n_pairs,
        "value_all": [0.0] * n,
        "value_none": [0.0] * n,
        "shapley_value": found.tolist(),
        "standard_error": [[None if np.isnan(e) else e for e in row] for row in error.tolist()],
        "active": [[True] * N_UNITS] * n,
    }
    return pa.table(rows).cast(SHARD)


def drawn(n=64, balanced=False, **how):
    random = np.random.default_rng(0)
    tables = [
        aggregate_group("conv", N_UNITS, [draw(random, n, **how)], balanced)[0]
        for _ in range(N_DRAWS)
    ]
    return {
        name: np.array([table[name].to_numpy(zero_copy_only=False) for table in tables], float)
        for name in tables[0].column_names[2:]
    }


def covered(found, mean, error, known):
    """Share of all draws and units within two errors of what is right."""
    return (np.abs(found[mean] - known) <= 2 * found[error]).mean()


def within_four_sigma(share, expected=0.954):
    return abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / (N_DRAWS * N_UNITS))


def test_the_total_error_covers_the_population():
    found = drawn(told_every=4)
    assert within_four_sigma(covered(found, "mean", "total_error", KNOWN))
    assert covered(found, "mean", "standard_error", KNOWN) < 0.9  # the images are not in it


def test_both_parts_are_told_apart():
    found = drawn(n=256, told_every=4)
    sampling = np.square(found["standard_error"]).mean(0)
    images = np.square(found["image_error"]).mean(0)
    # an image sampled once has variance 1, one that was sampled twice a half
    np.testing.assert_allclose(sampling, (0.75 + 0.25 / 2) / 256, rtol=0.1)
    np.testing.assert_allclose(images, np.square([1.0, 2.0, 0.2, 1.0]) / 256, rtol=0.1, atol=2e-4)
    total = np.square(found["total_error"])
    np.testing.assert_allclose(
        total, np.square(found["standard_error"]) + np.square(found["image_error"]), rtol=1e-9
    )


def test_an_error_that_no_image_tells_is_null_and_the_total_is_known():
    random = np.random.default_rng(0)
    scores, _ = aggregate_group("conv", N_UNITS, [draw(random, 64)])
    for name in ("standard_error", "image_error", "mean_abs_standard_error"):
        assert scores[name].null_count == N_UNITS
    value = np.array(draw(np.random.default_rng(0), 64)["shapley_value"].to_pylist())
    np.testing.assert_allclose(scores["total_error"], value.std(0, ddof=1) / 8, rtol=1e-6)


def test_one_image_tells_nothing_of_the_images():
    scores, _ = aggregate_group("conv", N_UNITS, [draw(np.random.default_rng(0), 1)])
    assert scores["total_error"].null_count == scores["image_error"].null_count == N_UNITS


@pytest.mark.parametrize("balanced", [False, True])
def test_labels_whose_numbers_are_fixed_are_no_chance(balanced):
    """Half of the images have either label, in every draw: only their spread within it is left."""
    found = drawn(labels=[0, 1] * 32, balanced=balanced, told_every=4)
    share = covered(found, "mean", "total_error", KNOWN)
    assert within_four_sigma(share) == balanced
    assert share > 0.93


def test_the_lift_of_an_absolute_is_in_its_total_error():
    """Noise alone: the absolute of what is always 0 is above 0."""
    random = np.random.default_rng(0)
    rows = [draw(random, 256, sampling=1.0, told_every=2) for _ in range(50)]
    # units whose values are the noise and nothing else
    rows = [
        table.set_column(
            SHARD.get_field_index("shapley_value"),
            SHARD.field("shapley_value"),
            pa.array(random.normal(size=(256, N_UNITS)).tolist(), pa.list_(pa.float32())),
        )
        for table in rows
    ]
    tables = [aggregate_group("conv", N_UNITS, [table])[0] for table in rows]
    mean_abs = np.array([table["mean_abs"] for table in tables]).mean()
    total = np.array([table["mean_abs_total_error"] for table in tables]).mean()
    alone = np.array([table["mean_abs_standard_error"] for table in tables]).mean()
    assert total > 0.25 * mean_abs  # a part of the lift is found
    assert alone < 0.1 * mean_abs
