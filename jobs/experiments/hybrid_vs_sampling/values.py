"""Shapley values of a group on images by each method that is compared.

*Hybrid*: exact where few enough units are active, sampled elsewhere. *Sampling only* draws the same
coalitions as the hybrid on the images that both sample, so that two scores differ by nothing but
the images that the hybrid enumerates. Twice: for the same price per image, and for so many
permutations, alike for all images of the group, that the group takes no fewer evaluations than the
hybrid's.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from jobs.benchmarks.networks import VALUE
from jobs.benchmarks.plain import PlainGame
from shapray.config import Score
from shapray.engine.network_game import NetworkSplit
from shapray.inputs.images import ImageSet
from shapray.network.consumers import active_units
from shapray.network.group import Group
from shapray.shapley.coalitions import image_seed
from shapray.shapley.estimators import estimate

IMAGES_AT_ONCE = 64  # of a forward pass of the whole network
MOST_PERMUTATIONS = 256
"""That are drawn to match a hybrid's evaluations. An image of few active units has no more
coalitions than that to draw, so that a match may be out of reach."""


@dataclass(frozen=True)
class Values:
    """Of a group on some images.

    Attributes:
        phi: (n_images, n_units) float64.
        evaluations: (n_images,) int64, coalitions whose value was computed.
        exact: (n_images,) bool.
    """

    phi: np.ndarray
    evaluations: np.ndarray
    exact: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Values":
        return Values(self.phi[rows], self.evaluations[rows], self.exact[rows])

    def replaced(self, rows: np.ndarray, others: "Values") -> "Values":
        """The same with other values in some rows."""
        found = Values(self.phi.copy(), self.evaluations.copy(), self.exact.copy())
        found.phi[rows], found.evaluations[rows] = others.phi, others.evaluations
        found.exact[rows] = others.exact
        return found


class GroupOnImages:
    """A group on a set of images, to be estimated in one way or another.

    Args:
        folded: the network, from `engine.trace.fold`.
        exact_max_players: an image with no more active units can be enumerated.
    """

    def __init__(
        self,
        folded: nn.Module,
        group: Group,
        images: ImageSet,
        pixels: Tensor,
        exact_max_players: int,
    ) -> None:
        assert images.labels is not None
        self.split = NetworkSplit(folded, group, pixels[:1])
        self.group, self.ids, self.pixels, self.labels = group, images.ids, pixels, images.labels
        parts = pixels.split(IMAGES_AT_ONCE)
        active = [active_units(folded, [group], part)[group.name] for part in parts]
        self.n_active = torch.cat(active).sum(1).numpy()  # (n_images,)
        self.enumerable = np.flatnonzero(self.n_active <= exact_max_players)

    @functools.cached_property
    def exact(self) -> Values:
        """Of the enumerable images."""
        return self.enumerated(self.enumerable)

    def enumerated(self, rows: np.ndarray) -> Values:
        """Exact, of the images in some rows."""
        return self._estimates(Score(estimator="exact", permutations=2), rows, "plain")

    def sampled(self, sampler: str, permutations: int, seed: int, rows: np.ndarray) -> Values:
        """Of the images in some rows; no value depends on which others are among them."""
        score = Score(estimator="permutation", permutations=permutations, seed=seed)
        return self._estimates(score, rows, sampler)

    def _estimates(self, score: Score, rows: np.ndarray, sampler: str) -> Values:
        found = []
        assert isinstance(score.permutations, int)
        at_once = self.split.images_at_once(score.permutations)
        for first in range(0, len(rows), at_once):
            part = rows[first : first + at_once]
            game = self.split.game(self.pixels[part], self.labels[part], VALUE)
            seeds = [image_seed(score.seed, self.group.name, self.ids[i]) for i in part]
            found += estimate(PlainGame(game) if sampler == "plain" else game, score, seeds)
        return Values(
            np.array([e.shapley_value for e in found]).reshape(len(rows), self.group.n_units),
            np.array([e.n_evaluations for e in found], np.int64),
            np.array([e.estimator == "exact" for e in found], bool),
        )

    def by_method(
        self, sampler: str, permutations: int, seed: int, subsets: Sequence[np.ndarray]
    ) -> dict[str, list[Values]]:
        """Every method's values for each of some subsets of the images' rows.

        Returns:
            method -> values for each subset; evaluations are matched for the plain sampler only.
        """
        sampled = self.sampled(sampler, permutations, seed, np.arange(len(self.ids)))
        hybrid = sampled.replaced(self.enumerable, self.exact)
        found = {
            "hybrid": [hybrid[rows] for rows in subsets],
            "sampling": [sampled[rows] for rows in subsets],
        }
        if sampler == "plain":
            found["sampling_equal_evaluations"] = [
                self._matched(permutations, seed, rows, sampled[rows], hybrid[rows])
                for rows in subsets
            ]
        return found

    def _matched(
        self, permutations: int, seed: int, rows: np.ndarray, first: Values, hybrid: Values
    ) -> Values:
        """Plain sampling that takes no fewer evaluations than the hybrid, if it can."""
        n, found, budget = permutations, first, int(hybrid.evaluations.sum())
        while (paid := int(found.evaluations.sum())) < budget and n < MOST_PERMUTATIONS:
            # what comes again is free: where few coalitions are left, many draws bring few new ones
            factor = max(budget / paid, 1.1 if n == permutations else 1.5)
            n = min(MOST_PERMUTATIONS, 2 * math.ceil(n * factor / 2))
            found = self.sampled("plain", n, seed, rows)
        return found
