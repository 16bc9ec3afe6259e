"""Shapley values of any game: exact, by sampling, or whichever is right for an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shapray.shapley.coalitions import all_subsets, shapley_weights
from shapray.shapley.game import Game, check_finite
from shapray.shapley.pairs import Pairs, in_pairs
from shapray.shapley.permutations import Permutations

SAMPLING_VERSION = 3  # raised when the same job would give other scores
MAX_EXACT_PLAYERS = 24  # 2**24 coalitions of one image; more is never meant


class Sampling(Protocol):
    """How values are to be estimated; the job file's `score` section is one.

    Attributes:
        estimator: "exact", "permutation" (sampled), or "hybrid".
        permutations: the price of sampling an image, even (see `n_sampled`); a number, once "auto"
            has become one (see `pilot`).
        exact_max_players: an image with no more active units is exact.
    """

    @property
    def estimator(self) -> str: ...
    @property
    def permutations(self) -> int | str: ...
    @property
    def exact_max_players(self) -> int: ...


@dataclass(frozen=True)
class Settings:
    """A `Sampling` apart from any job: without changes, every image is sampled."""

    estimator: str = "permutation"
    permutations: int = 8
    exact_max_players: int = 0


@dataclass(frozen=True)
class Estimate:
    """Shapley values of one image.

    Attributes:
        shapley_value: (n_players,) float64; sums to value_all - value_none.
        standard_error: (n_players,) float64, from the sampling: 0 if exact or a null player, NaN
            where a single pair of permutations leaves it unknown.
        active: (n_players,) bool, False for null players.
        estimator: "exact" or, if sampled, "permutation".
        sampling: what was drawn, "pairs" (of coalitions) or "permutations"; None if exact.
        n_evaluations: coalitions whose value was computed.
        n_permutations: the price of the sampling, in permutations (see `n_sampled`); 0 if exact.
    """

    shapley_value: np.ndarray
    standard_error: np.ndarray
    active: np.ndarray
    estimator: str
    sampling: str | None
    n_evaluations: int
    n_permutations: int
    value_all: float
    value_none: float


def n_sampled(n_players: int, n_permutations: int) -> int:
    """Most coalitions that are evaluated for the price of permutations, the empty and the full one
    included."""
    return n_permutations * max(n_players - 1, 0) + 2


def is_exact(n_active: int, sampling: Sampling) -> bool:
    """Whether an image with so many active units is enumerated.

    Raises:
        ValueError: `exact` was asked for and is out of reach.
    """
    if sampling.estimator == "permutation":
        return False
    if sampling.estimator == "exact":
        if n_active > MAX_EXACT_PLAYERS:
            raise ValueError(
                f"exact values of {n_active} active units take 2^{n_active} = {2**n_active:,} "
                f"coalitions; at most {MAX_EXACT_PLAYERS} units are possible "
                f"({2**MAX_EXACT_PLAYERS:,} coalitions)"
            )
        return True
    if n_active <= sampling.exact_max_players:
        return True
    assert isinstance(sampling.permutations, int)
    return 2**n_active <= n_sampled(n_active, sampling.permutations)


def check_enumerable(n_active: np.ndarray, ids: Sequence[str], groups: Sequence[str]) -> None:
    """Exact values of all images and groups are within reach.

    Args:
        n_active: (n_images, n_groups), numbers of active units.
    Raises:
        ValueError: names the image with the most active units.
    """
    most = int(n_active.max(initial=0))
    if most > MAX_EXACT_PLAYERS:
        image, group = map(int, np.unravel_index(n_active.argmax(), n_active.shape))
        raise ValueError(
            f"exact, but group {groups[group]} has {most} active units on image {ids[image]}: "
            f"2^{most} = {2**most:,} coalitions; at most {MAX_EXACT_PLAYERS} units "
            f"({2**MAX_EXACT_PLAYERS:,} coalitions) are possible. Use hybrid, or choose smaller "
            "groups with score.groups"
        )


def exact_values(subset_values: Tensor) -> Tensor:
    """Shapley values from the values of all coalitions.

    Args:
        subset_values: (2**k,) float64; entry i holds player j if bit j of i is set.
    Returns:
        (k,) float64; sums to the last value minus the first.
    Source: Shapley 1953, A Value for n-Person Games.
    """
    n_players = len(subset_values).bit_length() - 1
    weights = shapley_weights(n_players).to(subset_values.device)
    size = torch.zeros(1, dtype=torch.int64, device=subset_values.device)
    for _ in range(n_players):
        size = torch.cat([size, size + 1])  # bits set in 0 .. 2**k - 1
    values = []
    for player in range(n_players):
        pair = subset_values.view(-1, 2, 2**player)  # without and with the player
        joined = size.view(-1, 2, 2**player)[:, 0]
        values.append((weights[joined] * (pair[:, 1] - pair[:, 0])).sum())
    return torch.stack(values) if values else subset_values.new_empty(0)


def estimate(
    game: Game,
    sampling: Sampling,
    seeds: Sequence[int],
    numbers: Sequence[int] | None = None,
    by: str | None = None,
) -> list[Estimate]:
    """Shapley values of every image of a game.

    Args:
        game: of `len(seeds)` images.
        sampling: how.
        seeds: one per image, of its random stream.
        numbers: permutations of each image that is sampled; `sampling.permutations` by default.
        by: what is drawn, "permutations" or "pairs" (of coalitions, where they can be; see
            `pairs.in_pairs`). Default: the latter.
    Raises:
        NonFiniteValue: a coalition's value is NaN or infinite.
        ValueError: `exact` was asked for with too many active units.
    """
    every = range(len(seeds))
    both = torch.arange(len(seeds)).repeat_interleave(2)
    ends = game.value(both, game.reference.flatten(0, 1).double()).view(len(seeds), 2).cpu()
    check_finite(ends, lambda i: (i // 2, list(range(game.n_players)) if i % 2 else []))

    n_active = game.active.sum(1).tolist()
    found: dict[int, Estimate] = {}
    drawn: dict[tuple[bool, int], list[int]] = {}  # in pairs, permutations -> images
    may_pair = by != "permutations" and game.surrogate() is not None
    for image, k in enumerate(n_active):
        if is_exact(k, sampling):
            found[image] = _enumerate(game, image)
        else:
            number = sampling.permutations if numbers is None else numbers[image]
            assert isinstance(number, int)
            paired = may_pair and in_pairs(k, number)
            drawn.setdefault((paired, number), []).append(image)
    for (paired, number), images in drawn.items():
        kind = Pairs if paired else Permutations
        sample = kind(game, images, number, seeds, ends)
        sample.evaluate()
        found |= _sampled(game, sample, ends)
    return [found[image] for image in every]


def _enumerate(game: Game, image: int) -> Estimate:
    players = game.active[image].nonzero()[:, 0]
    values = game.subset_values(image, players).cpu()
    check_finite(
        values, lambda i: (image, players[all_subsets(len(players), i, i + 1)[0]].tolist())
    )
    shapley_value = np.zeros(game.n_players)
    shapley_value[players.numpy()] = exact_values(values).numpy()
    return Estimate(
        shapley_value=shapley_value,
        standard_error=np.zeros(game.n_players),
        active=game.active[image].numpy(),
        estimator="exact",
        sampling=None,
        n_evaluations=len(values),
        n_permutations=0,
        value_all=values[-1].item(),
        value_none=values[0].item(),
    )


def _sampled(game: Game, sample: Pairs | Permutations, ends: Tensor) -> dict[int, Estimate]:
    found = {}
    rows = zip(sample.images, sample.players, sample.estimates(), strict=True)
    for row, (image, players, of_players) in enumerate(rows):
        both = np.zeros((2, game.n_players))  # of a null player both are 0
        both[:, players] = of_players
        found[image] = Estimate(
            shapley_value=both[0],
            standard_error=both[1],
            active=game.active[image].numpy(),
            estimator="permutation",
            sampling=sample.sampling,
            n_evaluations=sample.n_evaluations(row),
            n_permutations=sample.n_permutations,
            value_all=ends[image, 1].item(),
            value_none=ends[image, 0].item(),
        )
    return found
