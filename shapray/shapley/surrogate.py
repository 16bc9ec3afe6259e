"""A surrogate of the network as control variate: the same coalitions, a smaller sampling error.

A Shapley value is a weighted sum over all coalitions; with `d = 1[u in S] - |S| / k` it is

    (value(all) - value(none)) / k + sum_s mean_{|S| = s} value(S) d_u(S) k / (s (k - s)),

so every coalition says something about every player. What it says of a player is drowned in what
the others do, unless that is known roughly. It is, by two games that are ever cheaper, each a
control variate of the one before:

- The value is a known function of unknown outputs. Per image the outputs are fitted, by ridge
  regression on the coalitions evaluated anyway, as

    outputs(S) ~ polynomial(t) + sum_u (a_u + b_u t + c_u t^2) d_u(S),    t = 2 |S| / k - 1,

  and the value of the fit is a game whose coalitions cost next to nothing. Where the outputs say
  less of the values than these do themselves, the values are fitted instead.
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

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shapray.shapley.coalitions import mean_weights, orders, size_weights, stratified_coalitions
from shapray.shapley.fits import OutputFits, Value
from shapray.shapley.ridge import FILLED, Design

MIN_PLAYERS = 9  # of fewer there are too few pairs to fit anything to
MAX_PLAYERS = 512  # beyond, a fit of as many numbers takes more than it gives
BLOCK_NUMBERS = 2**21  # of features, or of the fit's own coalitions, at once
# Images are filled up to multiples of what a processor loads at once: an image's numbers must not
# depend on what stands beside it in memory.
PLAYERS_MULTIPLE, PAIRS_MULTIPLE = 8, 32
# Coalitions of its own that a fit takes for each one of the network: few where the noise of these
# stays below a small share of the variance; many where that of some is above a large share, and
# above a share of the squared values.
FEW, SOME, MANY = 4, 16, 64
SMALL, LARGE, NEGLIGIBLE = 0.05, 1 / 3, 0.001
MOST_TIMES = 16  # that the same are taken


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
    """

    n_rows: int
    n_columns: int
    n_outputs: int

    @classmethod
    def of(cls, pairs: ImagePairs, n_outputs: int) -> "_Shape":
        n_pairs, k = pairs.members.shape
        n_rows = _up_to_multiple(n_pairs + 1, PAIRS_MULTIPLE)
        return cls(n_rows, _up_to_multiple(k, PLAYERS_MULTIPLE), n_outputs)

    def rows_at_once(self, n_own: int = 1) -> int:
        """Rows whose features are there, and outputs of so many coalitions of the fits for each."""
        numbers = 4 * self.n_columns + 6 * n_own * self.n_outputs
        return max(1, BLOCK_NUMBERS // (numbers * PAIRS_MULTIPLE)) * PAIRS_MULTIPLE

    def images_at_once(self, n_own: int = 1) -> int:
        return max(1, self.rows_at_once(n_own) // self.n_rows)

    def blocks(self, n_own: int = 1) -> list[slice]:
        """An image's rows, some at once."""
        n = self.rows_at_once(n_own)
        return [slice(i, min(i + n, self.n_rows)) for i in range(0, self.n_rows, n)]


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
        for here in _split(places, shape.images_at_once()):
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
        members = [p.members for p in pairs]
        self.design = self._design(members, self.every, shape.blocks())
        inside = self.design.inside
        first, second = evaluated.values[index]
        odd_values = (first - second) / 2 * inside  # (n_images, n_rows)
        self.change = 2 * odd_values[:, 0]  # value(all) - value(none)
        first, second = (evaluated.outputs[index] * inside[..., None]).mT
        targets = (first - second) / 2, (first + second) / 2
        self.fits = OutputFits(self.design, targets, odd_values, numbers, value)

    def _uploaded(self, *arrays: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(array).to(self.device) for array in arrays]

    def _design(
        self, members: Sequence[np.ndarray], which: Tensor, blocks: Sequence[slice]
    ) -> Design:
        """Features of coalitions of some of the images, behind the full one."""
        n_rows = blocks[-1].stop
        filled = np.zeros((len(members), n_rows, self.shape.n_columns), bool)
        counts = np.array([len(of_image) for of_image in members])
        for row, of_image in enumerate(members):
            n, k = of_image.shape
            filled[row, 0, :k] = True
            filled[row, 1 : n + 1, :k] = of_image
        tensor, n = self._uploaded(filled, counts)
        return Design(tensor, n + 1, self.k[which], blocks)

    def estimates(self) -> Tensor:
        """(2, n_images, n_columns) float64."""
        mean = self._linear_values()
        more, variance = self._residuals()
        n_own = self._n_own(variance.sum(1), mean.square().sum(1)).tolist()
        mean += more
        for n in (FEW, SOME, MANY):
            chosen = [row for row, of_image in enumerate(n_own) if of_image == n]
            for which in _split(chosen, self.shape.images_at_once(n)):
                more, its_variance = self._own(torch.tensor(which, device=self.device), n)
                mean[which] += more
                variance[which] += its_variance
        rounded = (self.change - mean.sum(1)) / self.k
        return torch.stack([mean + rounded[:, None] * self.design.is_player, variance.sqrt()])

    def _linear_values(self) -> Tensor:
        """The linear game's Shapley values, (n_images, n_columns), if it changed as the value."""
        k, effects = self.k[:, None], self.fits.linear[:, 0, :-FILLED].double()
        constant, square = effects.unflatten(1, (2, -1)).unbind(1)
        # the mean of t^2 over the sizes 1 .. k - 1 is (k - 2) / 3 k
        effect = (constant + square * (k - 2) / (3 * k)) * self.design.is_player
        alike = (self.change - effect.sum(1)) / self.k
        return effect + alike[:, None] * self.design.is_player

    def _n_own(self, variance: Tensor, squares: Tensor) -> Tensor:
        """How many coalitions of its own a fit takes for each one of the network, (n_images,).

        Args:
            variance: of the values as the network's coalitions have it, (n_images,).
            squares: of the values, (n_images,), about.
        """
        of_fits, of_network = (x.square().sum(1) for x in (self.fits.beyond, self.fits.residual))
        noise = variance * of_fits / of_network  # with one
        too_large = torch.maximum(LARGE * variance, NEGLIGIBLE * squares)
        n_own = torch.where(noise > SOME * too_large, MANY, SOME)
        return torch.where(noise > FEW * SMALL * variance, n_own, FEW)

    def _residuals(self) -> tuple[Tensor, Tensor]:
        """The network's value beside the fits', and its variance: (n_images, n_columns) each."""
        of_size = np.zeros((len(self.pairs), self.shape.n_columns + 1), np.float32)
        for row, p in enumerate(self.pairs):
            n, k = p.members.shape
            of_size[row, 1:k] = mean_weights(k) / size_weights(k) / n
        (weights,) = self._uploaded(of_size)
        numbers = (self.fits.residual * weights.gather(1, self.design.size.long()))[:, None]
        total, squares = torch.zeros(2, *self.design.is_player.shape, device=self.device).double()
        for rows in self.design.blocks:
            here, deviations = numbers[..., rows], self.design.deviations(rows)
            total += (here @ deviations)[:, 0]
            squares += (here.square() @ deviations.square())[:, 0]
        n = self.n[:, None]
        return total, (squares - total**2 / n).clamp(min=0) * n / (n - 1)

    def _own(self, which: Tensor, n_own: int) -> tuple[Tensor, Tensor]:
        """The fits' value beside the linear game's, and its variance.

        The coalitions are the same for all images of as many players and about as many pairs. They
        are taken some times, each time with players that change their names, and by another fit.
        """
        n_times = min(n_own, MOST_TIMES)
        shape = dataclasses.replace(self.shape, n_rows=self.shape.n_rows * n_own // n_times)
        names = np.tile(np.arange(shape.n_columns), (len(which), n_times, 1))
        weights = np.zeros((len(which), 1, shape.n_rows), np.float32)
        lacking = np.zeros((len(which), n_times), np.int64)
        n, members = shape.n_rows - 1, []
        for row, image in enumerate(which.tolist()):
            p = self.pairs[image]
            n_pairs, k = p.members.shape
            members.append(stratified_coalitions(k, n))
            size = members[-1].sum(1)
            weights[row, 0, 1:] = (mean_weights(k) / np.bincount(size)[1:])[size - 1]
            names[row, :, :k] = orders(k, n_times, p.seed)
            lacking[row] = 1 + np.arange(n_times) * n_pairs // n_times
        design = self._design(members, which, shape.blocks(n_times))
        weight, name, lacks = self._uploaded(weights, names, lacking)
        coefficients = self.fits.without(which, lacks, name)
        of_fit = which[:, None].expand(-1, n_times)
        is_by_values = self.fits.by_values[of_fit, lacks][..., None]
        columns = torch.zeros_like(name).float()
        for rows in design.blocks:
            odd, even = (
                (b.flatten(1, 2) @ x.mT).unflatten(1, (n_times, -1))
                for b, x in zip(coefficients, design.features(rows), strict=True)
            )
            by_outputs = self.fits.odd_value(odd[:, :, :-2], even, of_fit)
            by_values, linear = odd[:, :, -2:].unbind(2)
            beyond = torch.where(is_by_values, by_values, by_outputs) - linear
            columns += (beyond * weight[..., rows]) @ design.deviations(rows)
        times = torch.zeros_like(columns).scatter_(2, name, columns).double()
        return times.mean(1), times.var(1) / n_times


def _split(places: list[int], n: int) -> list[list[int]]:
    return [places[start : start + n] for start in range(0, len(places), n)]


def _up_to_multiple(number: int, of: int) -> int:
    return -(-number // of) * of
