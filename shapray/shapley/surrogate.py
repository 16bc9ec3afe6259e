"""A surrogate of the network as control variate: the same coalitions, a smaller sampling error.

A Shapley value is a weighted sum over all coalitions; with `d = 1[u in S] - |S| / k` it is

    (value(all) - value(none)) / k + sum_s mean_{|S| = s} value(S) d_u(S) k / (s (k - s)),

so every coalition says something about every player. What it says of a player is drowned in what
the others do, unless that is known roughly. It is, by two games that are ever cheaper, each a
control variate of the one before:

- The value is a known function of unknown outputs. Per image the outputs are fitted, by ridge
  regression on the coalitions evaluated anyway, as

    outputs(S) ~ polynomial(t) + sum_u (a_u + b_u t + c_u t^2) d_u(S),    t = 2 |S| / k - 1,

  and the value of the fit is a game whose coalitions cost next to nothing.
- The values of the fit are fitted in the same way. This *linear* game's Shapley values are known:
  of sizes 1 .. k - 1 the mean of a_u + c_u t^2, beside what all players have alike.

The estimate is the linear game's Shapley values, plus the sum above for the value of the fit
beside the linear game, over many coalitions of their own, plus the sum above for value beside the
value of the fit, over the coalitions of the network. Each coalition is paired with its complement,
which leaves only the odd half of all that.

Sizes are drawn with probability ~ 1 / sqrt(s (k - s)): then all coalitions weigh the same in the
variance, and the plain sum of squared residuals is what a good fit makes small.

A pair is corrected by the fit to the *others* (cross-fitting), so that a bad fit costs precision
and does not shift the expectation. What such fits are worth is the same on average whichever pair
they lack, so a few of them stand for all. All terms but the first sum to 0 over the players, so
efficiency is kept exactly.

Sources: Covert and Lee 2021, Improving KernelSHAP (pairs, the sum over coalitions); Glynn and
Szechtman 2002, Some New Perspectives on the Method of Control Variates; Chernozhukov et al. 2018,
Double/debiased Machine Learning (cross-fitting).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shapray.shapley.coalitions import orders, size_weights, stratified_coalitions
from shapray.shapley.fits import OutputFits, Value
from shapray.shapley.ridge import FILLED, Design
from shapray.shapley.terms import Terms, mean_weights

MIN_PLAYERS = 9  # of fewer there are too few pairs to fit anything to
MAX_PLAYERS = 512  # beyond, a fit of as many numbers takes more than it gives
BLOCK_NUMBERS = 2**21  # of features, or of the fit's own coalitions, at once
# Images are filled up to multiples of what a processor loads at once: an image's numbers must not
# depend on what stands beside it in memory.
PLAYERS_MULTIPLE, PAIRS_MULTIPLE = 8, 32
# Coalitions of the fit for each one of the network: as few as keep their noise below a share of
# the variance.
OWN_COALITIONS = (4, 16)
NOISE = 0.02


@dataclass(frozen=True)
class ImagePairs:
    """Coalitions of one image's active players and their complements.

    Attributes:
        image: its number, as a `Value` takes it.
        members: (n_pairs, k) bool, from `coalitions.paired_coalitions`.
        place: (n_pairs, 2) int64, rows of what was evaluated, of each coalition and its complement.
        ends: rows of the full and of the empty coalition.
        seed: of the fit's own coalitions.
    """

    image: int
    members: np.ndarray
    place: np.ndarray
    ends: tuple[int, int]
    seed: int


@dataclass(frozen=True)
class Evaluated:
    """Coalitions of any images, evaluated.

    Attributes:
        values: (n_rows,) float64.
        outputs: (n_rows, n_outputs), what the value function takes.
    """

    values: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class _Shape:
    """What an image is filled up to; it depends on the image alone.

    Attributes:
        n_rows: for the pairs and the two ends.
        n_columns: for the players.
        at_once: rows whose features, and own coalitions, are there at once.
    """

    n_rows: int
    n_columns: int
    at_once: int

    @classmethod
    def of(cls, pairs: ImagePairs, n_outputs: int) -> "_Shape":
        n_pairs, k = pairs.members.shape
        n_columns = _up_to_multiple(k, PLAYERS_MULTIPLE)
        numbers = 4 * n_columns + 6 * OWN_COALITIONS[-1] * n_outputs
        at_once = max(1, BLOCK_NUMBERS // (numbers * PAIRS_MULTIPLE)) * PAIRS_MULTIPLE
        return cls(_up_to_multiple(n_pairs + 1, PAIRS_MULTIPLE), n_columns, at_once)

    @property
    def n_images(self) -> int:
        return max(1, self.at_once // self.n_rows)

    @property
    def blocks(self) -> list[slice]:
        starts = range(0, self.n_rows, self.at_once)
        return [slice(i, min(i + self.at_once, self.n_rows)) for i in starts]


def corrected(pairs: Sequence[ImagePairs], evaluated: Evaluated, value: Value) -> list[np.ndarray]:
    """Shapley values of images from their pairs.

    Returns:
        (2, k) float64 for each image: means and standard errors.
    """
    n_outputs = evaluated.outputs.shape[1]
    # An output may be infinite where the value is not; then the fit is one to something else.
    outputs = evaluated.outputs.float()
    evaluated = Evaluated(evaluated.values, outputs.where(outputs.isfinite(), 0.0))
    alike: dict[_Shape, list[int]] = {}
    for place, of_image in enumerate(pairs):
        alike.setdefault(_Shape.of(of_image, n_outputs), []).append(place)
    found: dict[int, np.ndarray] = {}
    for shape, places in alike.items():
        for start in range(0, len(places), shape.n_images):
            here = places[start : start + shape.n_images]
            images = _Images([pairs[place] for place in here], evaluated, value, shape)
            both = images.estimates().cpu().numpy()
            for row, place in enumerate(here):
                found[place] = both[:, row, : pairs[place].members.shape[1]]
    return [found[place] for place in range(len(pairs))]


class _Images:
    """Images of one shape, their fits, and what these say of the players.

    The full coalition is the first of an image's rows, the empty one its complement; its pairs
    follow.
    """

    def __init__(
        self, pairs: Sequence[ImagePairs], evaluated: Evaluated, value: Value, shape: _Shape
    ) -> None:
        self.pairs, self.shape, self.device = pairs, shape, evaluated.values.device
        sizes = np.array([p.members.shape for p in pairs])
        place = np.zeros((2, len(pairs), shape.n_rows), np.int64)
        for row, p in enumerate(pairs):
            place[:, row, 0] = p.ends
            place[:, row, 1 : len(p.members) + 1] = p.place.T
        number = np.array([p.image for p in pairs])
        both, numbers, index = self._uploaded(sizes, number, place)
        self.n, self.k = both.unbind(1)
        self.every = torch.arange(len(pairs), device=self.device)
        self.design = self._design([p.members for p in pairs], self.every)
        inside = self.design.inside
        first, second = evaluated.values[index]
        odd_values = (first - second) / 2 * inside  # (n_images, n_rows)
        self.change = 2 * odd_values[:, 0]  # value(all) - value(none)
        first, second = (evaluated.outputs[index] * inside[..., None]).mT
        targets = (first - second) / 2, (first + second) / 2
        self.fits = OutputFits(self.design, targets, odd_values, numbers, value)

    def _uploaded(self, *arrays: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(array).to(self.device) for array in arrays]

    def _design(self, members: Sequence[np.ndarray], which: Tensor) -> Design:
        """Features of coalitions of some of the images, behind the full one."""
        filled = np.zeros((len(members), self.shape.n_rows, self.shape.n_columns), bool)
        for row, of_image in enumerate(members):
            n, k = of_image.shape
            filled[row, 0, :k] = True
            filled[row, 1 : n + 1, :k] = of_image
        (tensor,) = self._uploaded(filled)
        return Design(tensor, self.n[which] + 1, self.k[which], self.shape.blocks)

    def estimates(self) -> Tensor:
        """(2, n_images, n_columns) float64."""
        mean, variance = self._residuals()
        of_fits, of_network = (x.square().sum(1) for x in (self.fits.beyond, self.fits.residual))
        limits = NOISE * torch.tensor(OWN_COALITIONS[:-1], device=self.device)
        level = (of_fits[:, None] > limits * of_network[:, None]).sum(1)
        for number, n_own in enumerate(OWN_COALITIONS):
            which = (level == number).nonzero()[:, 0]
            if len(which):
                more = self._own(which, n_own)
                mean[which] += more[0]
                variance[which] += more[1]
        # the mean of t^2 over the sizes 1 .. k - 1 is (k - 2) / 3 k
        k, effects = self.k[:, None], self.fits.linear[:, 0, :-FILLED].double()
        constant, square = effects.unflatten(1, (2, -1)).unbind(1)
        mean = (mean + constant + square * (k - 2) / (3 * k)) * self.design.is_player
        # What all have alike: the change of the value, less their mean effect, and rounding.
        alike = (self.change - mean.sum(1)) / self.k
        mean += alike[:, None] * self.design.is_player
        return torch.stack([mean, variance.sqrt()])

    def _residuals(self) -> tuple[Tensor, Tensor]:
        """The network's value beside the fits', and its variance: (n_images, n_columns) each."""
        of_size = np.zeros((len(self.pairs), self.shape.n_columns + 1), np.float32)
        for row, p in enumerate(self.pairs):
            n, k = p.members.shape
            of_size[row, 1:k] = mean_weights(k) / size_weights(k) / n
        (weights,) = self._uploaded(of_size)
        numbers = (self.fits.residual * weights.gather(1, self.design.size.long()))[:, None]
        n_columns = self.shape.n_columns
        names = torch.arange(n_columns, device=self.device).expand(len(numbers), 1, n_columns)
        terms = Terms(len(numbers), n_columns, self.device)
        for rows in self.design.blocks:
            terms.add(numbers[..., rows], self.design.deviations(rows), names)
        return terms.moments(self.n)

    def _own(self, which: Tensor, n_own: int) -> tuple[Tensor, Tensor]:
        """The fits' value beside the linear game's, and its variance.

        The coalitions are the same for all images of as many players and pairs, as many as these;
        they are taken `n_own` times, with players that change their names and by another fit.
        """
        names = np.tile(np.arange(self.shape.n_columns), (len(which), n_own, 1))
        weights = np.zeros((len(which), 1, self.shape.n_rows), np.float32)
        lacking = np.zeros((len(which), n_own), np.int64)
        drawn: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        members = []
        for row, image in enumerate(which.tolist()):
            p = self.pairs[image]
            n, k = p.members.shape
            if (n, k) not in drawn:
                coalitions = stratified_coalitions(k, n, seed=0)
                size = coalitions.sum(1)
                of_size = mean_weights(k) / np.bincount(size, minlength=k)[1:] / n_own
                drawn[n, k] = coalitions, of_size[size - 1]
            coalitions, weights[row, 0, 1 : n + 1] = drawn[n, k]
            members.append(coalitions)
            names[row, :, :k] = orders(k, n_own, p.seed)
            lacking[row] = 1 + np.arange(n_own) * n // n_own
        design = self._design(members, which)
        weight, name, lacks = self._uploaded(weights, names, lacking)
        coefficients = self.fits.without(which, lacks, name)
        of_fit = which[:, None].expand(-1, n_own)
        terms = Terms(len(which), self.shape.n_columns, self.device)
        for rows in design.blocks:
            odd, even = (
                (b.flatten(1, 2) @ x.mT).unflatten(1, (n_own, -1))
                for b, x in zip(coefficients, design.features(rows), strict=True)
            )
            beyond = self.fits.odd_value(odd[:, :, :-1], even, of_fit) - odd[:, :, -1]
            terms.add(beyond * weight[..., rows], design.deviations(rows), name)
        return terms.moments(self.n[which] * n_own)


def _up_to_multiple(number: int, of: int) -> int:
    return -(-number // of) * of
