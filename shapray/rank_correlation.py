"""Rank correlations of two columns, with 95 % intervals."""

import math

import numpy as np
from scipy.stats import kendalltau, norm, spearmanr

FEWEST = 5  # pairs; of fewer an interval says nothing

Found = tuple[float | None, float | None, float | None]  # correlation, low, high


def spearman(a: np.ndarray, b: np.ndarray) -> Found:
    """Spearman's rank correlation.

    The interval is Fisher's, of arctanh r, with a variance that holds for ranks.

    Args:
        a, b: (n,) finite numbers.
    Returns:
        correlation, low, high: None where no two of `a` or of `b` differ; no interval of fewer than
        `FEWEST` pairs.
    Source: Bonett and Wright 2000, "Sample size requirements for estimating Pearson, Kendall and
        Spearman correlations", as the other's.
    """
    r = float(spearmanr(a, b).statistic) if _vary(a, b) else None
    return _with_interval(r, len(a), 0.0 if r is None else (1 + r * r / 2) / max(1, len(a) - 3))


def kendall(a: np.ndarray, b: np.ndarray) -> Found:
    """Kendall's tau-b; see `spearman`."""
    r = float(kendalltau(a, b).statistic) if _vary(a, b) else None
    return _with_interval(r, len(a), 0.437 / max(1, len(a) - 4))


def _vary(a: np.ndarray, b: np.ndarray) -> bool:
    return len(a) > 1 and bool(np.ptp(a) > 0) and bool(np.ptp(b) > 0)


def _with_interval(r: float | None, n: int, variance: float) -> Found:
    if r is None or n < FEWEST:
        return r, None, None
    if abs(r) >= 1:
        return r, r, r
    half = float(norm.ppf(0.975)) * math.sqrt(variance)
    return r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
