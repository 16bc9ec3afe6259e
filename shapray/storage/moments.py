"""Sums over images from which a score and its errors follow, for every unit of a group.

An image's Shapley value phi_i is known up to its sampling error s_i, and the images are a few of
those that the network will meet. The spread of the values over the images holds both; what of it
is the sampling's, the s_i say, and the rest is the images'.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Errors:
    """What a mean over images may be off by, (n_units,) each, NaN where it is not known.

    Attributes:
        sampling: standard error from the sampling.
        images: from the choice of the images, without the sampling's part.
        total: both together, against the mean over all images that these were drawn from.
    """

    sampling: np.ndarray
    images: np.ndarray
    total: np.ndarray


class Spread:
    """Mean and spread of a number per unit over images that come bit by bit.

    Deviations are merged, not recomputed from raw sums, which would cancel.
    Source: Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm".
    """

    def __init__(self, n_units: int) -> None:
        self.n = 0
        self.mean = np.zeros(n_units)
        self._squares = np.zeros(n_units)  # sum of squared deviations from the mean

    def add(self, values: np.ndarray) -> None:
        """values: (n_images, n_units)."""
        n_new, total = len(values), self.n + len(values)
        mean = values.mean(axis=0)
        shift = mean - self.mean
        self._squares += ((values - mean) ** 2).sum(axis=0)
        self._squares += shift**2 * (self.n * n_new / total)
        self.mean += shift * (n_new / total)
        self.n = total

    @property
    def variance(self) -> np.ndarray:
        """Over the images; NaN of a single one."""
        if self.n < 2:
            return np.full_like(self._squares, np.nan)
        return self._squares / (self.n - 1)


class Noise:
    """What the sampling does to a mean of values and to a mean of their absolutes.

    An image sampled by a single pair of permutations knows nothing of its error: then that of the
    images with several pairs, which are the same draws more often, stands for it.
    """

    def __init__(self, n_units: int) -> None:
        # variance of the value, variance and lift of its absolute
        self._own = np.zeros((3, n_units))
        self._of_single_pairs = np.zeros((3, n_units))
        self._n_unknown = np.zeros(n_units)
        self._n_telling = np.zeros(n_units)

    def add(self, value: np.ndarray, error: np.ndarray, n_pairs: np.ndarray) -> None:
        """Take in some more images.

        Args:
            value, error: (n_images, n_units); an error that is not known is NaN.
            n_pairs: (n_images,) of permutations, 0 for images that were not sampled by them.
        """
        unknown = np.isnan(error)
        self._n_unknown += unknown.sum(axis=0)
        self._own += _effects(value, np.where(unknown, 0.0, error))
        telling = (error > 0) & (n_pairs > 1)[:, None]
        self._n_telling += telling.sum(axis=0)
        single = np.where(telling, error, 0.0) * np.sqrt(n_pairs)[:, None]
        self._of_single_pairs += _effects(value, single)

    def totals(self, like: "Noise | None" = None) -> np.ndarray:
        """(3, n_units), sums over the images: variance of the value, variance of its absolute, and
        how much the noise lifts the absolute; NaN where nothing is known of some image.

        Args:
            like: of more images, which stand for these where none of these tells.
        """
        if like is not None and not self._n_telling.any():
            return self._own + like._unknown(self._n_unknown)
        return self._own + self._unknown(self._n_unknown)

    def _unknown(self, n_images: np.ndarray) -> np.ndarray:
        """The same of so many images of each unit that do not know their error."""
        with np.errstate(invalid="ignore", divide="ignore"):
            of_all = self._of_single_pairs.sum(axis=1, keepdims=True) / self._n_telling.sum()
            each = self._of_single_pairs / self._n_telling
        each = np.where(self._n_telling > 0, each, of_all)  # a unit that no telling image activates
        return np.where(n_images > 0, n_images * each, 0.0)


def errors(variance: np.ndarray, sampling: np.ndarray) -> Errors:
    """Errors of a mean over images.

    Args:
        variance: (n_units,) of the mean, by the spread over the images; both errors are in it.
        sampling: (n_units,) the sampling's standard error.
    """
    images = np.sqrt(np.maximum(variance - sampling**2, 0.0))
    total = np.where(np.isnan(sampling), np.sqrt(variance), np.hypot(images, sampling))
    return Errors(sampling, images, total)


def _effects(value: np.ndarray, error: np.ndarray) -> np.ndarray:
    """What normal noise does: (3, n_units), summed over the images; see `Noise.totals`.

    The lift of the absolute is extrapolated: what noise once more, and twice more, would add to it
    tells what the noise that is there has added. It finds about half where the value itself is 0.
    Source: Cook and Stefanski 1994, simulation-extrapolation.
    """
    once, twice = _mean_absolute(value, error), _mean_absolute(value, math.sqrt(2) * error)
    absolute = np.abs(value)
    lift = 3 * once - twice - 2 * absolute
    variance = np.maximum(value**2 + error**2 - once**2, 0.0)
    return np.stack([(error**2).sum(0), variance.sum(0), lift.sum(0)])


def _mean_absolute(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """E |N(mean, std^2)|, the mean of a folded normal variable."""
    with np.errstate(invalid="ignore", divide="ignore"):
        away = mean / (math.sqrt(2) * std)
    erf = torch.erf(torch.from_numpy(away)).numpy()
    folded = std * math.sqrt(2 / math.pi) * np.exp(-(away**2)) + mean * erf
    return np.where(std > 0, folded, np.abs(mean))
