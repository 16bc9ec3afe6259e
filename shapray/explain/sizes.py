"""Marginal contributions by size: is a unit worth most where few others are, or nearly all?

A Shapley value is the mean over the sizes s = 0 .. k - 1 of the mean marginal contribution to
coalitions of s of the k - 1 other active units (Shapley 1953). Here these means are told apart, by
the share s / (k - 1) of the others that is there, in `BINS` bins: sizes of the same share are alike
on images with different numbers of active units.

Of a permutation, each player's marginal contribution is one to a uniform coalition of the size that
is its place (Castro et al. 2009), and all players' places are different: so one permutation tells
one size of each unit, and every size of some unit. Each comes with its reverse (Mitchell et al.
2022), in which a unit has the size k - 1 - s.

Most of what marginal contributions differ by is that units and images do. So what is averaged is
how far they are from the unit's Shapley value on the image, as scoring found it: a control variate
with draws of its own, whose mean is added again and which need not be exact. A unit's mean in a bin
is the sum of what fell into it by the number of these, over all images: a ratio of two sums over
images, whose error is that of Cochran 1977, Sampling Techniques, section 2.11. A null player is
worth 0 at every size, and tells that for sure.

All units together, summed up: the change of value from size s to s + 1, by the mean over
permutations, times k, as any of k units may be the one that joins; corrected alike. Each
permutation tells it at every size. Over the sizes 0 .. k - 1 its mean is value(all) - value(none).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from shapray.explain.evaluated import end_values, values_of
from shapray.shapley.coalitions import antithetic_permutations
from shapray.shapley.game import OUTPUT_BYTES, Game, check_finite
from shapray.storage.explained import SIZES

BINS = 10


@dataclass(frozen=True)
class Marginals:
    """Marginal contributions by bin of size, on images.

    Attributes:
        value: (n_images, n_units) float64, what they are compared with.
        beyond: (n_images, n_units, BINS) float64, sum of a unit's marginal contributions less its
            value each.
        n: (n_images, n_units, BINS) float64, how many these are.
        of_all: (n_images, BINS) float64, mean of the sum over units; NaN where no size of the image
            falls into the bin.
        n_evaluations: (n_images,) int64, coalitions whose value was computed.
    """

    value: np.ndarray
    beyond: np.ndarray
    n: np.ndarray
    of_all: np.ndarray
    n_evaluations: np.ndarray


def bins_of(n_players: int) -> np.ndarray:
    """Bin of each size 0 .. n_players - 1 of the coalition joined; a player without others joins in
    the first."""
    size = np.arange(n_players)
    return np.minimum(BINS * size // max(1, n_players - 1), BINS - 1)


def marginals_by_size(
    game: Game, seeds: list[int], n_permutations: int, value: np.ndarray
) -> Marginals:
    """Marginal contributions along permutations, by size.

    Args:
        game: of `len(seeds)` images.
        seeds: of the images' random streams.
        n_permutations: of each image, even.
        value: (n_images, n_units) float64, about the Shapley values, 0 of null players. Whatever it
            is, the means are right; the closer, the smaller are the errors.
    Raises:
        NonFiniteValue: a coalition's value is NaN or infinite.
    """
    n_images, active = len(seeds), game.active.numpy()
    shape = (n_images, game.n_players, BINS)
    beyond, n = np.zeros(shape), np.zeros(shape)
    of_all = np.full((n_images, BINS), np.nan)
    prefixes = _prefix_values(game, seeds, n_permutations)
    for image, (orders, values) in enumerate(prefixes):
        k = orders.shape[1]
        bins = bins_of(k)
        gains = np.diff(values, axis=1) - value[image][orders]  # (n_permutations, k)
        np.add.at(beyond[image], (orders, bins), gains)
        np.add.at(n[image], (orders, bins), 1.0)
        per_bin = np.bincount(bins, minlength=BINS)
        here = per_bin > 0 if k else np.ones(BINS, bool)
        sums = np.bincount(bins, k * gains.mean(0), minlength=BINS)
        of_all[image, here] = value[image].sum() + sums[here] / np.maximum(per_bin[here], 1)
        # as often as an active unit's, on average, so that a ratio of sums weighs all images alike
        expected = n_permutations * per_bin / k if k else np.full(BINS, n_permutations / BINS)
        n[image, ~active[image]] = expected
    inner = np.maximum(active.sum(1) - 1, 0)
    return Marginals(value, beyond, n, of_all, n_permutations * inner + 2)


def _prefix_values(
    game: Game, seeds: list[int], n_permutations: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each image, its permutations of the active players, (n_permutations, k), and the values of
    their prefixes, (n_permutations, k + 1)."""
    active = game.active.numpy()
    ks = active.sum(1)
    longest = int(ks.max(initial=0))
    units = np.full((len(seeds), n_permutations, longest), -1)
    for image, (seed, k) in enumerate(zip(seeds, ks, strict=True)):
        drawn = antithetic_permutations(int(k), n_permutations, seed)
        units[image, :, :k] = active[image].nonzero()[0][drawn]
    step = np.arange(longest + 1)
    inner = (step > 0) & (step < ks[:, None])  # both ends are known
    wanted = np.repeat(inner[:, None], n_permutations, 1)
    ends = end_values(game)
    values = np.where(step < 1, ends[:, :1], ends[:, 1:])[:, None].repeat(n_permutations, 1)
    index = torch.arange(len(seeds)).repeat_interleave(n_permutations)
    chains = index, torch.from_numpy(units).flatten(0, 1), torch.from_numpy(wanted).flatten(0, 1)
    at_once = max(1, OUTPUT_BYTES // (4 * game.reference.shape[2] * (longest + 1)))
    parts = zip(*(of_chains.split(at_once) for of_chains in chains), strict=True)
    found = torch.cat(
        [
            values_of(game, images.repeat_interleave(met.sum(1)), game.along(images, orders, met))
            for images, orders, met in parts
        ]
    )
    place = np.argwhere(wanted)

    def of(i: int) -> tuple[int, list[int]]:
        image, chain, end = map(int, place[i])
        return image, sorted(units[image, chain, :end].tolist())

    check_finite(found, of)
    values[wanted] = found.cpu().numpy()
    return [(units[image, :, :k], values[image, :, : k + 1]) for image, k in enumerate(ks.tolist())]


def means(found: Marginals) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over images, of every unit and, as one more, of their sum.

    Returns:
        mean (NaN if there is nothing), its standard error over images (NaN if one image alone tells
        something), and the number of images that tell something, (n_units + 1, BINS) each.
    """
    is_there = ~np.isnan(found.of_all)[:, None]  # (n_images, 1, BINS)
    of_units = _ratio(found.value[:, :, None], found.beyond, found.n)
    of_all = _ratio(
        np.zeros((1, 1, 1)), np.nan_to_num(found.of_all)[:, None], is_there.astype(float)
    )
    mean, error, telling = (np.concatenate(both) for both in zip(of_units, of_all, strict=True))
    return mean, error, telling


def _ratio(
    value: np.ndarray, beyond: np.ndarray, n: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of values plus sum of what is beyond by sum of numbers; see `means`."""
    telling = (n > 0).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        more = beyond.sum(0) / n.sum(0)
        left = (value - value.mean(0)) / len(value) + (beyond - more * n) / n.sum(0)
        error = np.sqrt((left**2).sum(0) * np.where(telling > 1, telling / (telling - 1), np.nan))
    return value.mean(0) + more, error, telling


def size_rows(group: str, found: Marginals) -> pa.Table:
    """The rows of `SIZES`: of every unit and of their sum (unit null), a row for each bin that
    something fell into."""
    mean, error, telling = means(found)
    row, bin_ = np.nonzero(telling)
    n_units = found.n.shape[1]
    error = error[row, bin_]
    return pa.table(
        {
            "group": [group] * len(row),
            "unit": pa.array(row, mask=row == n_units),
            "size_from": bin_ / BINS,
            "size_to": (bin_ + 1) / BINS,
            "marginal": mean[row, bin_],
            "standard_error": pa.array(error, mask=np.isnan(error)),
            "n_images": telling[row, bin_],
        },
        schema=SIZES,
    )
