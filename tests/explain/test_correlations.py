import numpy as np
import pytest
from scipy.stats import bootstrap, spearmanr

from shapray.explain.correlations import OTHERS, SCORES, correlations, rank_correlation


def related(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    a = random.standard_normal(n)
    return a, a + noise * random.standard_normal(n)


def test_the_correlation_is_scipys_with_ties_too() -> None:
    a, b = related(50, 1.0)
    b = b.round(0)
    assert rank_correlation(a, b)[0] == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_the_interval_is_near_that_of_resampling() -> None:
    a, b = related(64, 1.0)
    _, low, high = rank_correlation(a, b)
    resampled = bootstrap(
        (a, b), lambda x, y: spearmanr(x, y).statistic, paired=True, vectorized=False, rng=1
    ).confidence_interval
    assert low == pytest.approx(resampled.low, abs=0.06)
    assert high == pytest.approx(resampled.high, abs=0.06)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    n, draws, rho = 20, 1000, 0.6
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of two normal variables
    random = np.random.default_rng(3)
    inside = 0
    for _ in range(draws):
        a = random.standard_normal(n)
        b = rho * a + np.sqrt(1 - rho**2) * random.standard_normal(n)
        _, low, high = rank_correlation(a, b)
        assert low is not None
        assert high is not None
        inside += low <= truth <= high
    sigma = np.sqrt(0.95 * 0.05 * draws)
    assert abs(inside - 0.95 * draws) < 4 * sigma


@pytest.mark.parametrize(
    ("a", "b"), [([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), ([1.0] * 9, list(range(9))), ([], [])]
)
def test_what_says_nothing_is_null(a: list[float], b: list[float]) -> None:
    assert rank_correlation(np.array(a), np.array(b)) == (None, None, None)


def test_units_that_nothing_is_known_of_are_left_out() -> None:
    a, b = related(12, 0.5)
    columns = dict.fromkeys((*SCORES, *OTHERS), a) | {
        "taylor": np.where(np.arange(12) < 3, np.nan, b)
    }
    rows = {(row["score"], row["other"]): row for row in correlations("g", columns).to_pylist()}
    assert len(rows) == len(SCORES) * len(OTHERS)
    assert rows["mean", "taylor"]["n_units"] == 9
    assert rows["mean", "taylor"]["correlation"] == pytest.approx(spearmanr(a[3:], b[3:]).statistic)
    assert rows["mean_abs", "l1_norm"]["correlation"] == 1.0
