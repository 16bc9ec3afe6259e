import numpy as np
import pytest
from scipy.stats import bootstrap, kendalltau, spearmanr

from shapray.rank_correlation import kendall, spearman


def related(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    a = random.standard_normal(n)
    return a, a + noise * random.standard_normal(n)


def test_the_correlation_is_scipys_with_ties_too() -> None:
    a, b = related(50, 1.0)
    b = b.round(0)
    assert spearman(a, b)[0] == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_the_interval_is_near_that_of_resampling() -> None:
    a, b = related(64, 1.0)
    _, low, high = spearman(a, b)
    resampled = bootstrap(
        (a, b),
        lambda x, y: spearmanr(x, y).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1999,
        rng=1,
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
        _, low, high = spearman(a, b)
        assert low is not None
        assert high is not None
        inside += low <= truth <= high
    sigma = np.sqrt(0.95 * 0.05 * draws)
    assert abs(inside - 0.95 * draws) < 4 * sigma


def test_kendalls_is_scipys_and_its_interval_narrower() -> None:
    a, b = related(50, 1.0)
    found, low, high = kendall(a, b)
    assert found == pytest.approx(kendalltau(a, b).statistic, abs=1e-12)
    assert low is not None
    assert high is not None
    assert low < found < high


def test_few_pairs_have_no_interval_and_the_same_order_one_without_width() -> None:
    assert spearman(np.arange(3.0), np.arange(3.0)) == (1.0, None, None)
    assert spearman(np.arange(9.0), np.arange(9.0)) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("a", "b"), [([1.0] * 9, list(range(9))), ([], []), ([1.0], [2.0])])
def test_what_says_nothing_is_null(a: list[float], b: list[float]) -> None:
    assert spearman(np.array(a), np.array(b)) == (None, None, None)
