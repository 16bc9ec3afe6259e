"""Whether a unit serves one class or all."""

import numpy as np


def selectivity(means: np.ndarray) -> np.ndarray:
    """Class selectivity index: (a - b) / (a + b), where a is a unit's largest mean over the images
    of a class, and b the mean of its means over the other classes.

    0: all classes alike; 1: one class alone. NaN where all means are 0, and for a single class.

    Args:
        means: (n_classes, n_units), not negative.
    Returns:
        (n_units,).
    Source: Morcos et al. 2018, "On the importance of single directions for generalization".
    """
    assert not (means < 0).any()
    n_classes, n_units = means.shape
    if n_classes < 2:
        return np.full(n_units, np.nan)
    largest = means.max(axis=0)
    others = (means.sum(axis=0) - largest) / (n_classes - 1)
    with np.errstate(invalid="ignore"):
        return (largest - others) / (largest + others)
