"""A surrogate of the network as control variate: the same coalitions, a smaller sampling error.

A Shapley value is a weighted sum over all coalitions; with `d = 1[u in S] - |S| / k` it is

    (value(all) - value(none)) / k + sum_s mean_{|S| = s} value(S) d_u(S) k / (s (k - s)),

so every coalition says something about every player. What it says of a player is drowned in what
the others do, unless that is known roughly. The value is a known function of unknown outputs; per
image the outputs are fitted, by ridge regression on the coalitions evaluated anyway, as

    outputs(S) ~ polynomial(t) + sum_u (a_u + b_u t + c_u t^2) d_u(S),    t = 2 |S| / k - 1,

and the value function of the fit is a game whose coalitions cost next to nothing. The estimate is

    Shapley values of the fit, by many permutations + the sum above for value - value of the fit.

Sizes are drawn with probability ~ 1 / sqrt(s (k - s)): then all coalitions weigh the same in the
variance, and the plain sum of squared residuals is what a good fit makes small. Each coalition is
paired with its complement, which leaves only the odd half of the residual.

A pair is corrected by the fit to the *other* folds of pairs (cross-fitting), so the expectation
stays the Shapley value however bad the fit is; and all terms sum to value(all) - value(none) over
the players, so efficiency is kept exactly.

Sources: Covert and Lee 2021, Improving KernelSHAP (pairs, the sum over coalitions); Glynn and
Szechtman 2002, Some New Perspectives on the Method of Control Variates; Chernozhukov et al. 2018,
Double/debiased Machine Learning (cross-fitting).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shapray.coalitions import antithetic_permutations, size_weights

MIN_PLAYERS = 6  # fewer have too few coalitions to fit anything to
MAX_PLAYERS = 512  # beyond, a fit of as many numbers takes more than it gives
FOLDS, FOLDS_OF_MANY = 16, 8  # of pairs; the fits to many players are dear
MANY_PLAYERS = 128
OWN_COALITIONS = 32  # of the fit, along its own permutations, for each one of the network
BLOCK_NUMBERS = 2**21  # of the fit's own permutations at once
DEGREE = 5  # of the polynomial in the size
SIZE_RIDGE = 1e-4  # penalty of its coefficients
# Penalties of a player's effects a, b, c for eight permutations' worth of pairs; the better choice
# is found image by image.
RIDGES = ((0.01, 0.25, 0.25), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class ImagePairs:
    """Coalitions of one image's active players and their complements, evaluated.

    Attributes:
        members: (n_pairs, k) bool, from `coalitions.paired_coalitions`.
        values: (n_pairs, 2) float64, of each coalition and of its complement.
        outputs: (n_pairs, 2, n_outputs) float64, what `value` takes.
        end_values: (2,) float64, with nobody and with everybody.
        end_outputs: (2, n_outputs) float64.
        value: outputs (n_rows, n_outputs) -> (n_rows,).
        seed: of the fit's own permutations.
    """

    members: Tensor
    values: Tensor
    outputs: Tensor
    end_values: Tensor
    end_outputs: Tensor
    value: Callable[[Tensor], Tensor]
    seed: int


def corrected(pairs: ImagePairs) -> tuple[Tensor, Tensor]:
    """Shapley values of an image from its pairs.

    Returns:
        mean and standard error, (k,) float64 each.
    """
    n_pairs, k = pairs.members.shape
    equations = _Equations(pairs)
    fits = [_Fit(equations, ridge) for ridge in RIDGES]
    of_folds = torch.stack([equations.per_fold(fit.residual**2).sum(1) for fit in fits])
    others = of_folds.sum(1, keepdim=True) - of_folds  # a pair has no say in its own choice
    chosen = others.argmin(0)  # (n_folds,)
    residual = equations.padded.new_zeros(n_pairs, dtype=torch.float64)
    expected = residual.new_zeros(equations.n_folds, k)
    noise = torch.zeros_like(expected)
    for number, fit in enumerate(fits):
        folds = (chosen == number).nonzero()[:, 0]
        if len(folds):
            residual = torch.where(chosen[equations.folds] == number, fit.residual, residual)
            expected[folds], noise[folds] = fit.expectation(folds)
    size = equations.size
    weight = k / (size * (k - size) * size_weights(k).to(size.device)[size.long() - 1])
    deviation = pairs.members.double() - (size / k)[:, None]
    estimates = expected[equations.folds] + (residual * weight)[:, None] * deviation
    share = torch.bincount(equations.folds, minlength=equations.n_folds) / n_pairs
    variance = estimates.var(0) / n_pairs + (share[:, None] ** 2 * noise).sum(0)
    return estimates.mean(0), variance.sqrt()


class _Equations:
    """What all fits to an image's pairs have in common.

    Half the difference of the outputs of a coalition and its complement is *odd* in the coalition,
    half the sum is *even*, and so are the features: odd powers of the size, and the memberships
    with even ones, are odd. The two regressions do not mix.
    """

    def __init__(self, pairs: ImagePairs) -> None:
        self.pairs = pairs
        n_pairs, self.k = pairs.members.shape
        most = FOLDS if self.k <= MANY_PLAYERS else FOLDS_OF_MANY
        in_fold = -(-n_pairs // most)
        self.n_folds = -(-n_pairs // in_fold)
        device = pairs.values.device
        self.folds = torch.arange(n_pairs, device=device) // in_fold
        self.permutations = 2 * n_pairs / (self.k - 1)
        self.size = pairs.members.sum(1).double()
        tilt = (2 * self.size / self.k - 1).float()[:, None]
        powers = _powers(tilt)
        members = pairs.members.float() - (self.size / self.k).float()[:, None]
        self.odd = torch.cat([powers[:, 1::2], members, tilt**2 * members], 1)
        self.even = torch.cat([powers[:, 0::2], tilt * members], 1)
        self.n_powers = powers.shape[1] // 2  # odd ones, and even ones
        # Rows of zeros fill up the last fold.
        self.padded = torch.zeros(self.n_folds * in_fold, 1, device=device)
        first, second = pairs.outputs.unbind(1)
        nobody, everybody = pairs.end_outputs
        self.normal_odd = self._normal(self.odd, (first - second) / 2, (everybody - nobody) / 2)
        self.normal_even = self._normal(self.even, (first + second) / 2, (everybody + nobody) / 2)

    def per_fold(self, rows: Tensor) -> Tensor:
        """(n_pairs, ...) -> (n_folds, pairs of a fold, ...), filled up with zeros."""
        filled = rows.new_zeros(len(self.padded), *rows.shape[1:])
        filled[: len(rows)] = rows
        return filled.unflatten(0, (self.n_folds, -1))

    def _normal(self, features: Tensor, outputs: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Gram matrices (n_folds, n, n) and moments (n_folds, n, n_outputs) of all pairs but the
        fold's own; nobody and everybody are one more pair of every fold."""
        x, y = self.per_fold(features), self.per_fold(outputs.float())
        gram, moment = x.mT @ x, x.mT @ y
        gram, moment = gram.sum(0) - gram, moment.sum(0) - moment
        gram[:, : self.n_powers, : self.n_powers] += 1  # all polynomials are 1 at the end
        moment[:, : self.n_powers] += end.float()
        return gram, moment

    def solve(self, normal: tuple[Tensor, Tensor], ridges: tuple[float, ...]) -> Tensor:
        """(n_folds, n, n_outputs) coefficients.

        Args:
            ridges: of the players' effects, one number for each k of them.
        """
        gram, moment = normal
        scale = self.permutations / 8
        penalty = gram.new_full((gram.shape[1],), SIZE_RIDGE)
        for number, ridge in enumerate(ridges):
            start = self.n_powers + number * self.k
            penalty[start : start + self.k] = scale * ridge
        factor, failed = torch.linalg.cholesky_ex(gram + penalty.diag())
        found = torch.cholesky_solve(moment, factor)
        return torch.where((failed > 0)[:, None, None], 0.0, found)  # 0 is a fit, if a bad one


class _Fit:
    """Ridge regressions, one per fold, each on the pairs of the other folds; games of their own.

    Args:
        equations: of the image's pairs.
        ridges: penalties of a, b and c.

    Attributes:
        residual: (n_pairs,) float64, odd half of value - value of the fold's fit, which is
            shifted, linearly in the size, to be right with nobody and with everybody.
    """

    def __init__(self, equations: _Equations, ridges: tuple[float, float, float]) -> None:
        self.equations, self.pairs, k = equations, equations.pairs, equations.k
        odd = equations.solve(equations.normal_odd, (ridges[0], ridges[2]))
        even = equations.solve(equations.normal_even, (ridges[1],))
        n = equations.n_powers
        self.effects = torch.cat([odd[:, n : n + k], odd[:, n + k :], even[:, n:]], 2)
        self.odd_levels, self.even_levels = odd[:, :n], even[:, :n]
        ends = self.even_levels.sum(1), self.odd_levels.sum(1)
        self.nobody = self.pairs.value((ends[0] - ends[1]).double())  # (n_folds,)
        self.everybody = self.pairs.value((ends[0] + ends[1]).double())
        nobody, everybody = self.pairs.end_values
        self.tilt = (self.everybody - everybody) - (self.nobody - nobody)
        n_pairs = len(self.pairs.members)
        of_odd = (equations.per_fold(equations.odd) @ odd).flatten(0, 1)[:n_pairs]
        of_even = (equations.per_fold(equations.even) @ even).flatten(0, 1)[:n_pairs]
        fitted = self.pairs.value(torch.cat([of_even + of_odd, of_even - of_odd]).double())
        found = self.pairs.values[:, 0] - self.pairs.values[:, 1]
        apart = found - fitted[:n_pairs] + fitted[n_pairs:]
        tilt = self.tilt[equations.folds] * (2 * equations.size / k - 1)
        self.residual = (apart + tilt) / 2

    def expectation(self, folds: Tensor) -> tuple[Tensor, Tensor]:
        """Shapley values of some folds' fits, by permutations of their own.

        Returns:
            (len(folds), k) float64 twice: values, and the sampling variance of each.
        """
        k, n_folds = self.equations.k, self.equations.n_folds
        n_pairs = OWN_COALITIONS * self.equations.permutations / 2
        per_fold = max(2, round(n_pairs / n_folds))
        orders = antithetic_permutations(k, 2 * per_fold * n_folds, self.pairs.seed)
        forward = torch.from_numpy(orders[0::2].copy()).to(folds.device)
        forward = forward.unflatten(0, (n_folds, per_fold))[folds].flatten(0, 1)
        of_pair = folds.repeat_interleave(per_fold)
        block = max(1, BLOCK_NUMBERS // (k * self.effects.shape[2]))
        parts = zip(forward.split(block), of_pair.split(block), strict=True)
        found = torch.cat([self._contributions(*part) for part in parts])
        found = found.unflatten(0, (len(folds), per_fold)) - self.tilt[folds][:, None, None] / k
        return found.mean(1), found.var(1) / per_fold

    def _contributions(self, orders: Tensor, folds: Tensor) -> Tensor:
        """Marginal contributions in the fitted games, means of a permutation and its reverse.

        Args:
            orders: (n, k), the forward permutations.
            folds: (n,) whose fit each of them takes.
        Returns:
            (n, k) float64.
        """
        k = orders.shape[1]
        index = folds[:, None] * k + orders
        size = torch.arange(k + 1, device=orders.device)[:, None] / k
        tilt = 2 * size - 1
        sums = self.effects.flatten(0, 1)[index].cumsum(1)
        sums = torch.cat([torch.zeros_like(sums[:, :1]), sums], 1)
        sums -= size * self.effects.sum(1)[folds][:, None]
        constant, square, linear = sums.chunk(3, dim=2)
        powers = _powers(tilt)
        odd = (powers[:, 1::2] @ self.odd_levels)[folds] + constant + tilt**2 * square
        even = (powers[:, 0::2] @ self.even_levels)[folds] + tilt * linear
        both = torch.stack([even + odd, even - odd])  # (2, n, k + 1, n_outputs)
        values = self.pairs.value(both.flatten(0, 2)).view(both.shape[:3]).double()
        # the ends are computed once, so that all permutations have the same
        values[0, :, 0] = values[1, :, -1] = self.nobody[folds]
        values[0, :, -1] = values[1, :, 0] = self.everybody[folds]
        # The complement at step t joins the player that the prefix at t + 1 holds and the one at t
        # does not, from the other side.
        steps = (values[0].diff(dim=1) - values[1].diff(dim=1)) / 2
        return torch.zeros_like(steps).scatter_(1, orders, steps)


def _powers(tilt: Tensor) -> Tensor:
    """Chebyshev polynomials of the size, (n, 1) -> (n, DEGREE + 1), odd ones odd and 1 at 1;
    nearly orthogonal under the sizes' distribution."""
    angle = tilt.clamp(-1, 1).arccos()
    return torch.cos(torch.arange(DEGREE + 1, device=tilt.device) * angle)
