import numpy as np
import pytest
from scipy.stats import spearmanr

from shapray.explain.correlations import OTHERS, SCORES, correlations


def test_units_that_nothing_is_known_of_are_left_out() -> None:
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 12))
    columns = dict.fromkeys((*SCORES, *OTHERS), a) | {
        "taylor": np.where(np.arange(12) < 3, np.nan, b)
    }
    rows = {(row["score"], row["other"]): row for row in correlations("g", columns).to_pylist()}
    assert len(rows) == len(SCORES) * len(OTHERS)
    assert rows["mean", "taylor"]["n_units"] == 9
    assert rows["mean", "taylor"]["correlation"] == pytest.approx(spearmanr(a[3:], b[3:]).statistic)
    assert rows["mean_abs", "l1_norm"]["correlation"] == 1.0
