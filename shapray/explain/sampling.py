"""What sampling does to the values and to the cut, measured where the exact values can be had.

Of an image with k active units all 2^k coalitions are evaluated once. From these follow the exact
values (Shapley 1953) and, as every coalition that an estimator may ask for is among them, any
number of independent draws at any price, without asking the network again. What is drawn, and how
it is weighed, is what a job does: `estimators.estimate`.

An image's error is the squared distance of the sampled values from the exact ones by the squared
length of these, mean over draws: 0.01 means that a value is off by a tenth of what values are, at
root mean square. A cut removes the units of smallest score, the mean over images of the values or
of their absolutes, the lower number first among equals. One draw of all images makes one sampled
cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from shapray.explain.evaluated import values_of
from shapray.shapley.coalitions import all_subsets, image_seed
from shapray.shapley.estimators import Settings, estimate, exact_values
from shapray.shapley.game import OUTPUT_BYTES, ROWS, Game, check_finite
from shapray.storage.explained import FLIPS, SAMPLING

PRICES = (2, 4, 8, 16)  # permutations
N_SEEDS = 16


@dataclass(frozen=True)
class Sampled:
    """Exact values of images, and values drawn.

    Attributes:
        n_active: (n_images,) int64.
        exact: (n_images, n_units) float64.
        drawn: (n_images, n_prices, n_seeds, n_units) float64.
        n_evaluations: (n_images,) int64, coalitions whose value was computed.
    """

    n_active: np.ndarray
    exact: np.ndarray
    drawn: np.ndarray
    n_evaluations: np.ndarray


def most_players(n_outputs: int) -> int:
    """Most active units of an image whose coalitions' outputs have room."""
    return (OUTPUT_BYTES // (4 * n_outputs)).bit_length() - 1


class EnumeratedGame(Game):
    """One image's game among its active players, all coalitions evaluated; several copies of it.

    Args:
        game: the games.
        image: which one; it has at most `most_players` active.
        n_copies: images of this game, alike.
    Raises:
        NonFiniteValue: with the coalition.
    """

    def __init__(self, game: Game, image: int, n_copies: int) -> None:
        self.game, self.image = game, image
        players = game.active[image].nonzero()[:, 0]
        self.n_players = k = len(players)
        assert k <= most_players(game.reference.shape[2])
        parts = []
        for start in range(0, 2**k, ROWS):
            members = all_subsets(k, start, start + ROWS)
            coalitions = torch.zeros(len(members), game.n_players, dtype=torch.bool)
            coalitions[:, players] = members
            parts.append(game.outputs(torch.full((len(members),), image), coalitions))
        self.every = torch.cat(parts)  # (2**k, n_outputs)
        self.values = values_of(game, torch.full((2**k,), image), self.every)  # (2**k,)
        check_finite(self.values, lambda i: (image, players[all_subsets(k, i, i + 1)[0]].tolist()))
        self.bits = 2 ** torch.arange(k)
        self.active = torch.ones(n_copies, k, dtype=torch.bool)
        self.reference = self.every[[0, -1]].expand(n_copies, -1, -1)

    def outputs(self, images: Tensor, coalitions: Tensor) -> Tensor:
        number = (coalitions.cpu() * self.bits).sum(1)
        return self.every[number.to(self.every.device)]

    def value(self, images: Tensor, outputs: Tensor) -> Tensor:
        return self.game.value(self._own(images), outputs)

    def surrogate(
        self,
    ) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] | None:
        stand_in = self.game.surrogate()
        if stand_in is None:
            return None
        value, pool = stand_in
        return (
            lambda images, pooled: value(self._own(images), pooled),
            lambda images, outputs: pool(self._own(images), outputs),
        )

    def _own(self, images: Tensor) -> Tensor:
        return torch.full_like(images, self.image)


def sampled_and_exact(
    game: Game,
    seeds: Sequence[int],
    n_seeds: int = N_SEEDS,
    prices: tuple[int, ...] = PRICES,
) -> Sampled:
    """Exact and sampled values of every image of a game.

    Args:
        game: of `len(seeds)` images, none with more than `most_players` active.
        seeds: of the images' random streams; a draw's own follows from it.
        n_seeds: independent draws.
        prices: permutations, even.
    Raises:
        NonFiniteValue: a coalition's value is NaN or infinite.
    """
    n_images, active = len(seeds), game.active.numpy()
    exact = np.zeros((n_images, game.n_players))
    drawn = np.zeros((n_images, len(prices), n_seeds, game.n_players))
    for image, seed in enumerate(seeds):
        alone = EnumeratedGame(game, image, n_seeds)
        exact[image, active[image]] = exact_values(alone.values).cpu().numpy()
        of_draws = [image_seed(seed, "draw", str(draw)) for draw in range(n_seeds)]
        for row, price in enumerate(prices):
            found = estimate(alone, Settings("permutation", price), of_draws)
            drawn[image, row][:, active[image]] = [one.shapley_value for one in found]
    n_active = active.sum(1)
    return Sampled(n_active, exact, drawn, 2**n_active)


def squared_errors(found: Sampled) -> np.ndarray:
    """Of each image at each price, mean over draws: (n_images, n_prices); NaN where all exact
    values are 0."""
    off = ((found.drawn - found.exact[:, None, None]) ** 2).sum(3).mean(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        length = (found.exact**2).sum(1, keepdims=True)
        return np.where(length > 0, off / length, np.nan)


def units_cut(values: np.ndarray, n_cut: int, rank_by: str) -> np.ndarray:
    """Units that a cut removes.

    Args:
        values: (n_images, ..., n_units).
        n_cut: how many.
        rank_by: "mean" or "mean_abs".
    Returns:
        (..., n_units) bool.
    """
    scores = (np.abs(values) if rank_by == "mean_abs" else values).mean(0)
    order = scores.argsort(axis=-1, kind="stable")
    return order.argsort(axis=-1, kind="stable") < n_cut


def sampling_rows(
    group: str, ids: Sequence[str], found: Sampled, prices: tuple[int, ...] = PRICES
) -> pa.Table:
    """The rows of `SAMPLING`: one for each image and price."""
    errors = squared_errors(found)
    n_images, n_prices = errors.shape
    return pa.table(
        {
            "group": [group] * errors.size,
            "image_id": np.repeat(np.array(ids, dtype=object), n_prices),
            "n_active": found.n_active.repeat(n_prices),
            "permutations": np.tile(prices, n_images),
            "error": pa.array(errors.ravel(), mask=np.isnan(errors.ravel())),
            "n_seeds": [found.drawn.shape[2]] * errors.size,
        },
        schema=SAMPLING,
    )


def flip_rows(
    group: str, found: Sampled, n_cut: int, rank_by: str, prices: tuple[int, ...] = PRICES
) -> pa.Table:
    """The rows of `FLIPS`: one for each price; none where no unit goes."""
    if n_cut == 0:
        return FLIPS.empty_table()
    right = units_cut(found.exact, n_cut, rank_by)
    sampled = units_cut(found.drawn, n_cut, rank_by)  # (n_prices, n_seeds, n_units)
    n_other = (sampled & ~right).sum(2)
    rows = [
        {
            "group": group,
            "permutations": price,
            "n_images": len(found.exact),
            "n_cut": n_cut,
            "another_cut": float((others > 0).mean()),
            "n_other": float(others.mean()),
            "n_seeds": len(others),
        }
        for price, others in zip(prices, n_other, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=FLIPS)
