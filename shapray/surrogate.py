"""A surrogate of the network as control variate: the same permutations, a smaller sampling error.

The value is a known function of unknown outputs. Per image the outputs are fitted, by ridge
regression on the coalitions evaluated anyway, as

    outputs(S) ~ a + b t + c t^2 + sum_u (w_u + t v_u) (1[u in S] - |S| / k),    t = 2 |S| / k - 1,

and the value function of the fit is a game whose permutations cost next to nothing. The estimate is

    values along the real chains - values of the fit along them + values of the fit along many.

A chain is corrected by the fit to the *other* folds of pairs (cross-fitting), so the expectation
stays the Shapley value however bad the fit is; and every chain's contributions sum to
value(all) - value(none) in all three terms, so efficiency is kept exactly.

Sources: Glynn and Szechtman 2002, Some New Perspectives on the Method of Control Variates;
Chernozhukov et al. 2018, Double/debiased Machine Learning (cross-fitting).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shapray.coalitions import antithetic_permutations

MAX_FOLDS = 8
PAIRS_PER_PAIR = 32  # pairs of the fit's own chains for each pair of the network's
MAX_PLAYERS = 512  # beyond, a fit of as many numbers takes more than it gives
BLOCK_NUMBERS = 2**21  # of the fit's own chains at once
SIZE_RIDGE = 1e-6  # penalty of features that depend on the coalition's size only
# penalties of a player's effects, for eight pairs: (w, v), None for a fit without v
AFFINE = (0.02, None)
INTERACTION = (0.5, 0.5)


@dataclass(frozen=True)
class ImageChains:
    """Permutations of one image's active players, evaluated.

    Attributes:
        orders: (n_chains, k) int64, players 0 .. k-1; row 2i+1 is row 2i backwards.
        values: (n_chains, k + 1) float64, of each prefix.
        outputs: (n_chains, k + 1, n_outputs) float64, what `value` takes, or None.
        value: outputs (n_rows, n_outputs) -> (n_rows,), or None.
        seed: of the fit's own chains.
    """

    orders: Tensor
    values: Tensor
    outputs: Tensor | None
    value: Callable[[Tensor], Tensor] | None
    seed: int


def marginals(orders: Tensor, prefix_values: Tensor) -> Tensor:
    """Marginal contribution of each player along permutations.

    Args:
        orders: (n_chains, k) int64, the player that joins at each step.
        prefix_values: (n_chains, k + 1), value of each prefix, the empty one first.
    Returns:
        (n_chains, k) in player order; a row sums to value(all) - value(none).
    Source: Castro et al. 2009, ApproShapley.
    """
    return torch.zeros_like(prefix_values[:, 1:]).scatter_(1, orders, prefix_values.diff(dim=1))


def _pair_means(contributions: Tensor) -> Tensor:
    """(2 n, k) -> (n, k), the mean of a permutation and its reverse."""
    return contributions.unflatten(0, (-1, 2)).mean(1)


def corrected(images: Sequence[ImageChains]) -> list[tuple[Tensor, Tensor]]:
    """Shapley values of some images from their chains.

    Returns:
        per image, mean and standard error, (k,) float64 each; the error is NaN from a single pair.
    """
    corrections = [_Correction(chains) for chains in images]
    every = [correction.totals for correction in corrections if correction.totals is not None]
    together = torch.stack(every).sum(0) if len(every) > 1 else None
    return [correction.finish(together) for correction in corrections]


class _Correction:
    """The fits to one image's chains, and what they explain of them."""

    def __init__(self, chains: ImageChains) -> None:
        self.plain = _pair_means(marginals(chains.orders, chains.values))
        self.fits: list[_Fit] = []
        self.totals: Tensor | None = None  # see `_totals`
        n_pairs, k = self.plain.shape
        fits = chains.outputs is not None and chains.value is not None and k <= MAX_PLAYERS
        if n_pairs > 1 and fits:
            equations = _Equations(chains)
            self.fits = [_Fit(equations, ridge) for ridge in (AFFINE, INTERACTION)]
            self.explained = torch.stack([fit.along_own_chains() for fit in self.fits])
            self.totals = _totals(self.plain, self.explained)

    def finish(self, together: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and standard error.

        Args:
            together: the totals of all images, this one among them; where this image cannot say
                which fit to use, the others do. None if there are no others.
        """
        n_pairs = len(self.plain)
        if n_pairs == 1:
            return self.plain[0], torch.full_like(self.plain[0], torch.nan)
        pairs, variance = self.plain, torch.zeros_like(self.plain[0])
        for fit, own, share in zip(self.fits, *self._fits_and_shares(together), strict=True):
            if share.any():
                expected, noise = fit.expectation()
                pairs = pairs + share[:, None] * (expected - own)
                variance = variance + share.mean() ** 2 * noise
        return pairs.mean(0), (pairs.var(0) / n_pairs + variance).sqrt()

    def _fits_and_shares(self, together: Tensor | None) -> tuple[Tensor, Tensor]:
        if not self.fits:
            return self.plain.new_empty(0), self.plain.new_empty(0)
        if len(self.plain) > 2:
            return self.explained, _shares(*_left_out(self.plain, self.explained))
        # With two pairs, one says nothing about spread, and a choice that looks at both is biased.
        if together is None:
            return self.explained, self.plain.new_zeros(len(self.fits), 2)
        assert self.totals is not None
        spread, common, squares = together - self.totals
        share = _shares(spread[:1], common[:, None], squares[:, None])
        return self.explained, share.expand(-1, 2)


def _totals(plain: Tensor, explained: Tensor) -> Tensor:
    """Sums of squared deviations of the plain pairs, of products and of squared explained ones:
    (3, n_fits), the first the same in all columns."""
    plain, explained = plain - plain.mean(0), explained - explained.mean(1, keepdim=True)
    products = (plain * explained).sum((1, 2))
    squares = (explained**2).sum((1, 2))
    return torch.stack([(plain**2).sum().expand_as(squares), products, squares])


def _left_out(plain: Tensor, explained: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for each pair over all the others, about their own mean: a pair's own deviations
    are to take no part in its choice, they would bias it.

    Returns:
        (n_pairs,), (n_fits, n_pairs), (n_fits, n_pairs).
    """
    plain, explained = plain - plain.mean(0), explained - explained.mean(1, keepdim=True)

    def of_others(products: Tensor) -> Tensor:
        own = products.sum(-1)
        return own.sum(-1, keepdim=True) - own * len(plain) / (len(plain) - 1)

    return of_others(plain**2), of_others(plain * explained), of_others(explained**2)


def _shares(spread: Tensor, common: Tensor, squares: Tensor) -> Tensor:
    """How much of which fit to subtract from each pair.

    The share is the regression of the plain pairs on what the fit explains, over all players, and
    the fit is the one that then leaves least.

    Args:
        spread: (n,) squared deviations of the plain pairs.
        common: (n_fits, n) products of plain and explained ones.
        squares: (n_fits, n) squared explained ones.
    Returns:
        (n_fits, n), in each column at most one entry in (0, 1], the others 0.
    """
    share = (common / squares.clamp(min=torch.finfo(squares.dtype).tiny)).clamp(0, 1)
    left = spread - 2 * share * common + share**2 * squares
    chosen = (left == left.amin(0)) & (left < spread)
    chosen &= chosen.cumsum(0) == 1  # the first of equals
    return torch.where(chosen, share, 0.0)


@dataclass(frozen=True)
class _Normal:
    """Normal equations of one half of a fit, summed over the pairs of the other folds.

    Attributes:
        gram: (n_folds, n_features, n_features); features of the size first, then the players'.
        moment: (n_folds, n_features, n_outputs).
        by_size: (k + 1, n) features that depend on the size only.
        weight: (k + 1, 1) of the membership features.
    """

    gram: Tensor
    moment: Tensor
    by_size: Tensor
    weight: Tensor

    def solve(self, ridge: float | None) -> tuple[Tensor, Tensor | None]:
        """The fit, with a penalty on the membership features; None leaves these out.

        Returns:
            per fold, what the size explains, (n_folds, k + 1, n_outputs), and the effect of each
            player, (n_folds, k, n_outputs), or None.
        """
        n = self.by_size.shape[1]
        kept = self.gram.shape[1] if ridge is not None else n
        gram = self.gram[:, :kept, :kept].clone()
        gram.diagonal(dim1=1, dim2=2)[:, :n] += SIZE_RIDGE
        gram.diagonal(dim1=1, dim2=2)[:, n:] += ridge or 0.0
        factor = torch.linalg.cholesky_ex(gram).L
        found = torch.cholesky_solve(self.moment[:, :kept], factor)
        level = self.by_size @ found[:, :n]
        if ridge is None:
            return level, None
        effects = found[:, n:]
        size = torch.linspace(0, 1, len(self.by_size), dtype=level.dtype, device=level.device)
        return level - (self.weight * size[:, None]) * effects.sum(1, keepdim=True), effects


class _Equations:
    """What all fits to an image's chains have in common.

    Step t of a permutation and step k - t of its reverse hold complementary coalitions. Half the
    difference of their outputs is *odd* in the coalition, half the sum is *even*, and so are the
    features: size and membership are odd, the rest is even. The two regressions do not mix, and
    neither needs the reverse chains' features.

    A membership feature of player u is weight(t) (1[u has joined] - t / k) along a chain, so sums
    over its steps are sums from a position on: tables instead of matrix products.
    """

    def __init__(self, chains: ImageChains) -> None:
        assert chains.outputs is not None
        self.chains = chains
        self.n_pairs, self.k = len(chains.orders) // 2, chains.orders.shape[1]
        self.n_folds = min(self.n_pairs, MAX_FOLDS)
        device = chains.values.device
        self.folds = (torch.arange(self.n_pairs) * self.n_folds // self.n_pairs).to(device)
        self.size = torch.linspace(0, 1, self.k + 1, dtype=torch.float64, device=device)
        self.tilt = 2 * self.size - 1
        # the first prefix of each forward chain that holds each player
        self.joined = chains.orders[0::2].argsort(1) + 1
        forward, backward = chains.outputs[0::2], chains.outputs[1::2].flip(1)
        tilt = self.tilt[:, None]
        self.odd = self._normal((forward - backward) / 2, tilt, tilt**0)
        self.even = self._normal((forward + backward) / 2, torch.cat([tilt**0, tilt**2], 1), tilt)

    def _normal(self, outputs: Tensor, by_size: Tensor, weight: Tensor) -> _Normal:
        """Normal equations of a half; outputs: (n_pairs, k + 1, n_outputs), odd or even part."""
        n, size = by_size.shape[1], self.size[:, None]
        gram = outputs.new_empty(self.n_pairs, n + self.k, n + self.k)
        moment = outputs.new_empty(self.n_pairs, n + self.k, outputs.shape[2])
        gram[:, :n, :n] = by_size.T @ by_size
        moment[:, :n] = by_size.T @ outputs
        square = weight**2
        alone = _from(square * size)[self.joined, 0]  # (n_pairs, k)
        later = torch.maximum(self.joined[:, :, None], self.joined[:, None, :])
        both = _from(square)[:, 0][later]
        both -= alone[:, :, None]
        both -= alone[:, None, :]
        gram[:, n:, n:] = both.add_((square * size**2).sum())
        weighted = weight * by_size
        gram[:, n:, :n] = _from(weighted)[self.joined] - (size * weighted).sum(0)
        gram[:, :n, n:] = gram[:, n:, :n].transpose(1, 2)
        weighted = weight * outputs
        at = self.joined[:, :, None].expand(-1, -1, outputs.shape[2])
        moment[:, n:] = _from(weighted, 1).gather(1, at)
        moment[:, n:] -= (size * weighted).sum(1, keepdim=True)
        return _Normal(self._other_folds(gram), self._other_folds(moment), by_size, weight)

    def _other_folds(self, of_pairs: Tensor) -> Tensor:
        """(n_pairs, ...) -> (n_folds, ...), for each fold the sum over the pairs of the others."""
        own = of_pairs.new_zeros(self.n_folds, *of_pairs.shape[1:])
        own.index_add_(0, self.folds, of_pairs)
        return own.sum(0) - own


class _Fit:
    """Ridge regressions, one per fold, each on the pairs of the other folds; games of their own.

    Args:
        equations: of the image's chains.
        ridge: penalties of the odd and the even membership features for eight pairs; None leaves
            the latter out.
    """

    def __init__(self, equations: _Equations, ridge: tuple[float, float | None]) -> None:
        self.equations, self.chains = equations, equations.chains
        odd, even = ridge
        scale = equations.n_pairs / 8
        halves = [
            (equations.odd, *equations.odd.solve(odd * scale)),
            (equations.even, *equations.even.solve(None if even is None else even * scale)),
        ]
        (_, level, effects), (_, even_level, even_effects) = halves
        assert effects is not None
        nobody = level[:, 0] + even_level[:, 0]
        everybody = level[:, -1] + even_level[:, -1] + effects.sum(1)
        if even_effects is not None:
            everybody = everybody + even_effects.sum(1)
        # Sums run in float32; the ends are computed once, so that all chains have the same.
        self.nobody, self.everybody = self._value(nobody), self._value(everybody)
        self.halves = [
            (level.float(), None if effects is None else effects.float(), half.weight[1:].float())
            for half, level, effects in halves
        ]

    def _value(self, outputs: Tensor) -> Tensor:
        assert self.chains.value is not None
        return self.chains.value(outputs)

    def _contributions(self, orders: Tensor, folds: Tensor) -> Tensor:
        """Marginal contributions in the fitted games, a pair's mean: (n_pairs, k).

        Args:
            orders: (n_pairs, k), the forward permutation of each pair.
            folds: (n_pairs,) whose fit each pair takes.
        """
        index = folds[:, None] * orders.shape[1] + orders
        sums = []
        for level, effects, weight in self.halves:
            sums.append(level[folds])
            if effects is not None:
                sums[-1][:, 1:] += weight * effects.flatten(0, 1)[index].cumsum(1)
        odd, even = sums
        both = torch.stack([even + odd, even - odd])  # (2, n_pairs, k + 1, n_outputs)
        values = self._value(both.flatten(0, 2)).view(both.shape[:3]).double()
        values[0, :, 0] = values[1, :, -1] = self.nobody[folds]
        values[0, :, -1] = values[1, :, 0] = self.everybody[folds]
        # The complement at step t joins the player that the prefix at t + 1 holds and the one at t
        # does not, from the other side.
        steps = (values[0].diff(dim=1) - values[1].diff(dim=1)) / 2
        return torch.zeros_like(steps).scatter_(1, orders, steps)

    def along_own_chains(self) -> Tensor:
        """(n_pairs, k), each pair in the game fitted to the other folds."""
        return self._contributions(self.chains.orders[0::2], self.equations.folds)

    def expectation(self) -> tuple[Tensor, Tensor]:
        """Shapley values of the fitted games, by many chains of their own.

        Returns:
            (n_pairs, k) in the game that corrects each pair, and (k,) the part of the sampling
            variance of their mean that does not show in the spread of the corrected pairs: all
            pairs of a fold share one error.
        """
        n, n_folds = self.equations.n_pairs, self.equations.n_folds
        per_fold = -(-PAIRS_PER_PAIR * n // n_folds)
        orders = antithetic_permutations(self.equations.k, 2 * per_fold * n_folds, self.chains.seed)
        forward = torch.from_numpy(orders[0::2].copy()).to(self.nobody.device)
        folds = torch.arange(n_folds, device=forward.device).repeat_interleave(per_fold)
        block = max(1, BLOCK_NUMBERS // (self.equations.k * self.halves[0][0].shape[2]))
        parts = zip(forward.split(block), folds.split(block), strict=True)
        pairs = torch.cat([self._contributions(*part) for part in parts])
        pairs = pairs.view(n_folds, per_fold, -1)
        variance = pairs.var(1).mean(0) / (n_folds * per_fold)
        in_fold = n / n_folds
        hidden = max(0.0, 1 - (n - in_fold) / (in_fold * (n - 1)))
        return pairs.mean(1)[self.equations.folds], variance * hidden


def _from(terms: Tensor, dim: int = 0) -> Tensor:
    """Sums from each position on, along a dimension of n -> n + 1, the last one 0."""
    sums = terms.flip(dim).cumsum(dim).flip(dim)
    return torch.cat([sums, torch.zeros_like(sums.narrow(dim, 0, 1))], dim)
