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

A pair is corrected by the fit to the *other* folds of pairs (cross-fitting), so that a bad fit
costs precision and does not shift the expectation; and all terms sum to value(all) - value(none)
over the players, so efficiency is kept exactly.

Sources: Covert and Lee 2021, Improving KernelSHAP (pairs, the sum over coalitions); Glynn and
Szechtman 2002, Some New Perspectives on the Method of Control Variates; Chernozhukov et al. 2018,
Double/debiased Machine Learning (cross-fitting).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shapray.shapley.coalitions import antithetic_permutations, size_weights

MIN_PLAYERS = 9  # of fewer there are too few pairs to fit anything to
MAX_PLAYERS = 512  # beyond, a fit of as many numbers takes more than it gives
FOLDS, FOLDS_OF_MANY = 16, 8  # of pairs; the fits to many players are dear
MANY_PLAYERS = 128
OWN_COALITIONS = 32  # of the fit, along its own permutations, for each one of the network
BLOCK_NUMBERS = 2**21  # of features, or of the fit's own permutations, at once
DEGREE = 5  # of the polynomial in the size
N_POWERS = (DEGREE + 1) // 2  # odd ones, and even ones
SIZE_RIDGE = 1e-4  # penalty of its coefficients
# Penalties of a player's effects a, b, c for eight permutations' worth of pairs; the better choice
# is found fold by fold.
RIDGES = ((0.01, 0.25, 0.25), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class ImagePairs:
    """Coalitions of one image's active players and their complements, evaluated.

    Attributes:
        members: (n_pairs, k) bool, from `coalitions.paired_coalitions`.
        values: (n_pairs, 2) float64, of each coalition and of its complement.
        outputs: (n_pairs, 2, n_outputs) float64, what `value` takes.
        end_values: (2,) float64, of the empty and of the full coalition.
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
    equations = _Equations(pairs)
    fits = [_Fit(equations, ridges) for ridges in RIDGES]
    squares = torch.stack([equations.per_fold(fit.residual).square().sum(1) for fit in fits])
    others = squares.sum(1, keepdim=True) - squares  # a fold's own residuals take no part
    chosen = others.argmin(0)  # the fit of each fold
    of_fits = torch.stack([fit.residual for fit in fits])
    residual = of_fits.gather(0, chosen[equations.fold][None])[0]
    orders = equations.orders()
    expected = pairs.values.new_zeros(equations.n_folds, equations.k)
    noise = torch.zeros_like(expected)
    for number, fit in enumerate(fits):
        folds = (chosen == number).nonzero()[:, 0]
        if len(folds):
            expected[folds], noise[folds] = fit.expectation(folds, orders[folds])
    mean, variance = equations.moments(expected, residual)
    # What the folds' expectations err by shows in the spread of the pairs, but for what all pairs
    # of a fold have in common.
    share = equations.share_of_fold
    hidden = share**2 - share * (1 - share) / (len(residual) - 1)
    variance = variance + (hidden.clamp(min=0)[:, None] * noise).sum(0)
    return mean, variance.sqrt()


class _Equations:
    """What all fits to an image's pairs have in common.

    Half the difference of the outputs of a coalition and its complement is *odd* in the coalition,
    half the sum is *even*, and so are the features: odd powers of the size, and the memberships
    with even ones, are odd. The two regressions do not mix.

    Features are spelled out for some folds at a time, as they are many.
    """

    def __init__(self, pairs: ImagePairs) -> None:
        self.pairs = pairs
        n_pairs, self.k = pairs.members.shape
        most = FOLDS if self.k <= MANY_PLAYERS else FOLDS_OF_MANY
        self.in_fold = -(-n_pairs // most)
        self.n_folds = -(-n_pairs // self.in_fold)
        device = pairs.values.device
        self.fold = torch.arange(n_pairs, device=device) // self.in_fold
        self.share_of_fold = torch.bincount(self.fold, minlength=self.n_folds).double() / n_pairs
        self.permutations = 2 * n_pairs / (self.k - 1)
        self.size = pairs.members.sum(1).double()
        # An output may be infinite where the value is not; then the fit is one to something else.
        outputs, ends = (x.where(x.isfinite(), 0.0) for x in (pairs.outputs, pairs.end_outputs))
        (first, second), (empty, full) = outputs.unbind(1), ends
        targets = [(first - second) / 2, (first + second) / 2]
        at_end = [(full - empty) / 2, (full + empty) / 2]
        grams: list[list[Tensor]] = [[], []]
        moments: list[list[Tensor]] = [[], []]
        for folds in self.blocks():
            for half, x in enumerate(self.features(folds)):
                y = self.per_fold(targets[half].float(), folds)
                grams[half].append(x.mT @ x)
                moments[half].append(x.mT @ y)
        self.normal = [
            self._of_others(torch.cat(gram), torch.cat(moment), end.float())
            for gram, moment, end in zip(grams, moments, at_end, strict=True)
        ]

    def blocks(self) -> list[slice]:
        """Folds whose features are there at once."""
        numbers = self.in_fold * (3 * self.k + DEGREE + 1)
        at_once = max(1, BLOCK_NUMBERS // numbers)
        return [slice(i, i + at_once) for i in range(0, self.n_folds, at_once)]

    def per_fold(self, rows: Tensor, folds: slice = slice(None)) -> Tensor:
        """Rows of some folds, (n_pairs, ...) -> (n, in_fold, ...); zeros fill up the last one."""
        first, last, _ = folds.indices(self.n_folds)
        part = rows[first * self.in_fold : last * self.in_fold]
        filled = part.new_zeros((last - first) * self.in_fold, *part.shape[1:])
        filled[: len(part)] = part
        return filled.unflatten(0, (-1, self.in_fold))

    def features(self, folds: slice) -> tuple[Tensor, Tensor]:
        """Odd and even features of some folds' pairs, float32, (n, in_fold, n_features) each: of
        the size first, then a block of k for each effect."""
        inside = self.per_fold(torch.ones_like(self.size), folds)[..., None].float()
        fraction = self.per_fold(self.size / self.k, folds)[..., None].float()
        tilt = 2 * fraction - 1
        powers = _powers(tilt) * inside
        members = (self.per_fold(self.pairs.members, folds).float() - fraction) * inside
        odd = torch.cat([powers[..., 1::2], members, tilt**2 * members], 2)
        return odd, torch.cat([powers[..., 0::2], tilt * members], 2)

    def _of_others(self, gram: Tensor, moment: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over all folds but the own; the empty and the full coalition are one more pair.

        Args:
            gram, moment: (n_folds, n, n) and (n_folds, n, n_outputs) of each fold.
            end: (n_outputs,), half the difference and half the sum of what the outputs are at the
                empty and at the full coalition.
        """
        gram, moment = gram.sum(0) - gram, moment.sum(0) - moment
        gram[:, :N_POWERS, :N_POWERS] += 1  # all polynomials are 1 at the end
        moment[:, :N_POWERS] += end
        return gram, moment

    def solve(self, half: int, ridges: tuple[float, ...]) -> Tensor:
        """(n_folds, n, n_outputs) coefficients.

        Args:
            half: 0 odd, 1 even.
            ridges: of the players' effects, one number for each k of them.
        """
        gram, moment = self.normal[half]
        scale = self.permutations / 8
        penalty = gram.new_full((gram.shape[1],), SIZE_RIDGE)
        for number, ridge in enumerate(ridges):
            start = N_POWERS + number * self.k
            penalty[start : start + self.k] = scale * ridge
        factor, failed = torch.linalg.cholesky_ex(gram + penalty.diag())
        found = torch.cholesky_solve(moment, factor)
        return torch.where((failed > 0)[:, None, None], 0.0, found)  # 0 is a fit, if a bad one

    def orders(self) -> Tensor:
        """Forward permutations of the fits: (n_folds, n, k) int64."""
        n = max(2, round(OWN_COALITIONS * self.permutations / 2 / self.n_folds))
        drawn = antithetic_permutations(self.k, 2 * n * self.n_folds, self.pairs.seed)
        forward = torch.from_numpy(drawn[0::2].copy()).unflatten(0, (self.n_folds, n))
        return forward.to(self.fold.device)

    def moments(self, expected: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over the pairs of `expected` + what the residual adds, and its variance.

        Args:
            expected: (n_folds, k) float64.
            residual: (n_pairs,) float64, see `_Fit`.
        Returns:
            (k,) float64 each.
        """
        n, k, size = len(residual), self.k, self.size
        weight = k / (size * (k - size) * size_weights(k).to(size.device)[size.long() - 1])
        fraction, added = size / k, residual * weight
        # (1[u in S] - fraction) added, and its square, summed over the pairs of each fold
        each = torch.stack([added, added**2 * (1 - 2 * fraction)], 1)
        sums = torch.cat(
            [
                self.per_fold(each, folds).mT @ self.per_fold(self.pairs.members, folds).double()
                for folds in self.blocks()
            ]
        )
        sums[:, 0] -= self.per_fold(added * fraction).sum(1, keepdim=True)
        sums[:, 1] += self.per_fold((added * fraction) ** 2).sum(1, keepdim=True)
        count = n * self.share_of_fold[:, None]
        mean = (count * expected + sums[:, 0]).sum(0) / n
        apart = expected - mean
        squares = (count * apart**2 + 2 * apart * sums[:, 0] + sums[:, 1]).sum(0)
        return mean, squares.clamp(min=0) / (n - 1) / n


class _Fit:
    """Ridge regressions, one per fold, each on the pairs of the other folds; games of their own.

    Args:
        equations: of the image's pairs.
        ridges: penalties of a, b and c.

    Attributes:
        residual: (n_pairs,) float64, odd half of value - value of the fold's fit, which is
            shifted, linearly in the size, to be right at the empty and at the full coalition.
    """

    def __init__(self, equations: _Equations, ridges: tuple[float, float, float]) -> None:
        self.pairs, k = equations.pairs, equations.k
        odd = equations.solve(0, (ridges[0], ridges[2]))
        even = equations.solve(1, (ridges[1],))
        n = N_POWERS
        self.effects = torch.cat([odd[:, n : n + k], odd[:, n + k :], even[:, n:]], 2)
        self.odd_levels, self.even_levels = odd[:, :n], even[:, :n]
        ends = self.even_levels.sum(1), self.odd_levels.sum(1)
        self.empty = self.pairs.value((ends[0] - ends[1]).double())  # (n_folds,)
        self.full = self.pairs.value((ends[0] + ends[1]).double())
        empty, full = self.pairs.end_values
        self.too_much = (self.full - full) - (self.empty - empty)
        halves = []
        for folds in equations.blocks():
            of_odd, of_even = equations.features(folds)
            both = of_odd @ odd[folds], of_even @ even[folds]
            halves.append(torch.stack(both).flatten(1, 2))
        of_odd, of_even = torch.cat(halves, 1)[:, : len(equations.fold)].double()
        fitted = self.pairs.value(torch.cat([of_even + of_odd, of_even - of_odd]))
        first, second = fitted.chunk(2)
        apart = (self.pairs.values[:, 0] - first) - (self.pairs.values[:, 1] - second)
        shift = self.too_much[equations.fold] * (2 * equations.size / k - 1)
        self.residual = (apart + shift) / 2

    def expectation(self, folds: Tensor, orders: Tensor) -> tuple[Tensor, Tensor]:
        """Shapley values of some folds' fits, by permutations of their own.

        Args:
            folds: (n,) int64.
            orders: (n, n_orders, k), forward permutations for each.
        Returns:
            (n, k) float64 twice: values, and the sampling variance of each.
        """
        n, n_orders, k = orders.shape
        of_order = folds.repeat_interleave(n_orders)
        block = max(1, BLOCK_NUMBERS // (k * self.effects.shape[2]))
        parts = zip(orders.flatten(0, 1).split(block), of_order.split(block), strict=True)
        found = torch.cat([self._contributions(*part) for part in parts])
        found = found.unflatten(0, (n, n_orders)) - self.too_much[folds][:, None, None] / k
        return found.mean(1), found.var(1) / n_orders

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
        values[0, :, 0] = values[1, :, -1] = self.empty[folds]
        values[0, :, -1] = values[1, :, 0] = self.full[folds]
        # The complement at step t joins the player that the prefix at t + 1 holds and the one at t
        # does not, from the other side.
        steps = (values[0].diff(dim=1) - values[1].diff(dim=1)) / 2
        return torch.zeros_like(steps).scatter_(1, orders, steps)


def _powers(tilt: Tensor) -> Tensor:
    """Chebyshev polynomials of the size, (..., 1) -> (..., DEGREE + 1), odd ones odd and all 1 at
    1; nearly orthogonal under the sizes' distribution."""
    angle = tilt.clamp(-1, 1).arccos()
    return torch.cos(torch.arange(DEGREE + 1, device=tilt.device) * angle)
