"""Pairwise Shapley interactions of some units: do two do each other's work, or need each other?

The interaction index of players i and j of n is the mean of

    D(S) = v(S + i + j) - v(S + i) - v(S + j) + v(S)

over coalitions S of the n - 2 others, all sizes 0 .. n - 2 alike and all of a size alike (Grabisch
and Roubens 1999; of order 2, where the index of order 1 is the Shapley value). It is 0 if i is
worth the same with and without j, and so of a null player and of any additive game.

An image with few active units is enumerated: one table of its coalitions serves all pairs.

Of the others, coalitions T of all active units are drawn: a chance p uniform in [0, 1], and each
unit is in with that chance, independently. Then T without i and j is distributed as S is above,
since

    integral of p^s (1 - p)^(n - 2 - s) dp = s! (n - s - 2)! / (n - 1)!,

whatever i and j are: one T serves all pairs. Evaluated are T, T with one of the paired units
changed over, and T with both of a pair changed over; each D comes from four of these. For m units
and all their pairs that is 1 + m + m (m - 1) / 2 coalitions instead of 2 m (m - 1). Every T is
followed by its complement, and the mean of both is one draw: what is odd in the coalition does not
show in it. The chances p are one in each of as many equal parts of [0, 1/2] as there are draws (the
complement has 1 - p); the standard error is that of independent draws, so if anything too large.

Single coalitions weighted by size and by membership of i and j (SHAP-IQ, Fumagalli et al. 2023)
serve all pairs of all units, too; but their noise is that of the value, not of D. For as many
coalitions, 28 pairs of 32 and of 57 units had 16 to 300 times the variance that way, after a
cross-fitted model additive in the units at each size was taken off; and 2 to 4 times with
four coalitions for each pair by itself.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from shapray.explain.evaluated import coalition_values
from shapray.shapley.coalitions import all_subsets
from shapray.shapley.game import Game, check_finite
from shapray.storage.explained import INTERACTIONS

MIN_DRAWS = 2  # fewer say nothing of their error


@dataclass(frozen=True)
class Interactions:
    """Interaction indices of pairs on images.

    Attributes:
        index: (n_images, n_pairs) float64.
        standard_error: (n_images, n_pairs) float64, from the sampling; 0 if exact, or if one of
            the pair is a null player.
        exact: (n_images,) bool.
        n_evaluations: (n_images,) int64, coalitions whose value was computed.
    """

    index: np.ndarray
    standard_error: np.ndarray
    exact: np.ndarray
    n_evaluations: np.ndarray


@dataclass(frozen=True)
class Pair:
    """Two units and the ends of the group they are from: "top", "bottom" or "across"."""

    unit: int
    other: int
    kind: str


def pairs_at_ends(order: list[int], m: int = 4) -> list[Pair]:
    """All pairs among the units at both ends of a group.

    Args:
        order: the group's units, the least important first.
        m: units at each end; fewer if the group has not twice as many.
    """
    m = min(m, len(order) // 2)
    bottom = set(order[:m])
    ends = sorted([*order[:m], *order[len(order) - m :]])

    def kind(unit: int, other: int) -> str:
        if (unit in bottom) != (other in bottom):
            return "across"
        return "bottom" if unit in bottom else "top"

    return [
        Pair(unit, other, kind(unit, other))
        for place, unit in enumerate(ends)
        for other in ends[place + 1 :]
    ]


def n_evaluations(n_active: int, n_pairs: int, exact_max_players: int, n_draws: int) -> int:
    """Most coalitions that an image takes, if no unit of the pairs is a null player and these are
    all pairs of some units."""
    if is_exact(n_active, n_pairs, exact_max_players, n_draws):
        return 2**n_active
    return n_draws * _per_draw(n_pairs)


def is_exact(n_active: int, n_pairs: int, exact_max_players: int, n_draws: int) -> bool:
    """Whether an image is enumerated: few units, or no more coalitions than are drawn otherwise."""
    return n_active <= exact_max_players or 2**n_active <= n_draws * _per_draw(n_pairs)


def _per_draw(n_pairs: int) -> int:
    n_units = round((1 + (1 + 8 * n_pairs) ** 0.5) / 2)
    return 2 * (1 + n_units + n_pairs)


def interactions(
    game: Game,
    pairs: np.ndarray,
    seeds: list[int],
    exact_max_players: int,
    n_draws: int,
) -> Interactions:
    """Interaction indices of some pairs on every image of a game.

    Args:
        game: of `len(seeds)` images.
        pairs: (n_pairs, 2) int64, two different players each.
        seeds: of the images' random streams.
        exact_max_players: an image with no more active units is exact.
        n_draws: coalitions of each of the others, to be taken with their complements; 2 at least.
    Raises:
        NonFiniteValue: a coalition's value is NaN or infinite.
    """
    assert n_draws >= MIN_DRAWS
    shape = (len(seeds), len(pairs))
    index, error = np.zeros(shape), np.zeros(shape)
    exact = np.zeros(len(seeds), bool)
    spent = np.zeros(len(seeds), np.int64)
    active = game.active.numpy()
    for image, seed in enumerate(seeds):
        alive = active[image][pairs].all(1)
        players = active[image].nonzero()[0]
        exact[image] = is_exact(len(players), len(pairs), exact_max_players, n_draws)
        if not alive.any():  # null players interact with nobody, and the rest is not asked for
            exact[image] = True
            continue
        if exact[image]:
            index[image, alive], spent[image] = _enumerated(game, image, players, pairs[alive])
            continue
        draws, spent[image] = _drawn(game, image, players, pairs[alive], seed, n_draws)
        index[image, alive] = draws.mean(0)
        error[image, alive] = np.sqrt(draws.var(0, ddof=1) / n_draws)
    return Interactions(index, error, exact, spent)


def _enumerated(
    game: Game, image: int, players: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, int]:
    """Indices of pairs of active players, and the number of coalitions."""
    values = game.subset_values(image, torch.from_numpy(players)).cpu()
    check_finite(
        values, lambda i: (image, players[all_subsets(len(players), i, i + 1)[0].numpy()].tolist())
    )
    return exact_indices(values.numpy(), players.searchsorted(pairs)), len(values)


def exact_indices(subset_values: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Interaction indices from the values of all coalitions.

    Args:
        subset_values: (2**k,) float64; entry i holds player j if bit j of i is set.
        pairs: (n_pairs, 2) int64 < k.
    Returns:
        (n_pairs,) float64.
    """
    number = np.arange(len(subset_values))
    k = len(subset_values).bit_length() - 1
    n_of_size = np.array([_choose(k - 2, s) for s in range(k - 1)])
    found = []
    for i, j in pairs:
        bit_i, bit_j = 1 << i, 1 << j
        without = number[number & (bit_i | bit_j) == 0]
        size = sum((without >> player) & 1 for player in range(k))
        v = subset_values
        differences = (v[without + bit_i + bit_j] - v[without + bit_i]) - (
            v[without + bit_j] - v[without]
        )
        found.append((differences / n_of_size[size]).sum() / (k - 1))
    return np.array(found)


def _choose(n: int, s: int) -> float:
    return float(np.prod([(n - i) / (i + 1) for i in range(s)]))


def _drawn(
    game: Game, image: int, players: np.ndarray, pairs: np.ndarray, seed: int, n_draws: int
) -> tuple[np.ndarray, int]:
    """Differences D of pairs of active players, one of each draw, and the number of coalitions.

    Returns:
        (n_draws, n_pairs) float64, independent with the index as their mean.
    """
    bases = base_coalitions(len(players), n_draws, seed)
    both_ways = np.stack([bases, ~bases], 1).reshape(2 * n_draws, len(players))
    units = np.unique(pairs)
    changed = np.zeros((1 + len(units) + len(pairs), game.n_players), bool)  # over against T
    single = 1 + units.searchsorted(pairs)  # (n_pairs, 2) rows
    changed[1 + np.arange(len(units)), units] = True
    double = 1 + len(units) + np.arange(len(pairs))
    changed[double[:, None], pairs] = True
    members = np.zeros((2 * n_draws, 1, game.n_players), bool)
    members[:, 0, players] = both_ways
    coalitions = (members ^ changed).reshape(-1, game.n_players)
    values = coalition_values(game, np.full(len(coalitions), image), coalitions)
    v = values.reshape(len(members), -1)
    # which of the four is S + i + j, T itself tells: the sign is that of an even number of changes
    sign = np.where(members[:, 0, pairs].sum(2) == 1, -1.0, 1.0)  # (2 n_draws, n_pairs)
    differences = sign * (v[:, :1] - v[:, single[:, 0]] - v[:, single[:, 1]] + v[:, double])
    return differences.reshape(n_draws, 2, -1).mean(1), len(coalitions)


def base_coalitions(n_players: int, n: int, seed: int) -> np.ndarray:
    """Coalitions to be taken with their complements: of n parts of [0, 1/2], each gives one chance
    that a player is in.

    Returns:
        (n, n_players) bool.
    """
    random = np.random.Generator(np.random.Philox(key=seed))
    chance = (random.permutation(n) + random.random(n)) / (2 * n)
    return random.random((n, n_players)) < chance[:, None]


def interaction_rows(group: str, pairs: list[Pair], found: Interactions) -> pa.Table:
    """The rows of `INTERACTIONS`: means over images, a row per pair.

    The total error is the spread over images by the square root of their number, in which that of
    the sampling shows; null for a single image.
    """
    n = len(found.index)
    total = found.index.std(0, ddof=1) / n**0.5 if n > 1 else [None] * len(pairs)
    return pa.table(
        {
            "group": [group] * len(pairs),
            "unit": [pair.unit for pair in pairs],
            "other": [pair.other for pair in pairs],
            "kind": [pair.kind for pair in pairs],
            "interaction": found.index.mean(0),
            "standard_error": np.sqrt((found.standard_error**2).sum(0)) / n,
            "total_error": total,
            "n_images": [n] * len(pairs),
            "n_exact": [int(found.exact.sum())] * len(pairs),
        },
        schema=INTERACTIONS,
    )
