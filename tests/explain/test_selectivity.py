"""The index, class by class and unit by unit."""

import numpy as np
import pytest

from shapray.explain.selectivity import selectivity


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_selectivity_is_that_of_a_loop_over_units(n_classes):
    means = np.random.default_rng(n_classes).exponential(size=(n_classes, 20))
    found = selectivity(means)
    for unit in range(20):
        column = means[:, unit].tolist()
        best = column.index(max(column))
        others = sum(column[:best] + column[best + 1 :]) / (n_classes - 1)
        assert found[unit] == pytest.approx((column[best] - others) / (column[best] + others))
    assert ((found > 0) & (found < 1)).all()


def test_its_ends_and_where_there_is_none():
    means = np.array([[3.0, 2.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
    assert selectivity(means)[:2].tolist() == [1.0, 0.0]
    assert np.isnan(selectivity(means)[2])
    assert np.isnan(selectivity(means[:1])).all()
