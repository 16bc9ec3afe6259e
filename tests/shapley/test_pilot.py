"""What a pilot tells, and the prices that follow: on games whose two variances are known."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from shapray.config import Score
from shapray.shapley.estimators import Sampling, Settings, estimate
from shapray.shapley.game import FunctionGame
from shapray.shapley.pilot import Cost, Option, Pilot, Price, pilot

HYBRID = Score()
COST = Cost(image=10**6, coalition=10**7)


class Images(FunctionGame):
    """Games with effects of players alone, which differ from image to image and which sampling
    finds exactly, and one of all together, the same for every image, which it does not."""

    def __init__(self, n_players: int, n_images: int, between: float, within: float) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.own = between * self._normal(n_images, n_players)
        self.weights, self.within = self._normal(n_players), within
        super().__init__(self._of_first, n_players, n_images)
        every = torch.arange(n_images)
        ends = torch.tensor([False, True])[:, None].expand(2, n_players)
        self.reference = torch.stack(
            [self.outputs(every, end.expand(n_images, -1)) for end in ends], 1
        )

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.random)

    def _of_first(self, kept: torch.Tensor) -> torch.Tensor:
        return self.outputs(torch.zeros(len(kept), dtype=torch.int64), kept)[:, 0]

    def outputs(self, images: torch.Tensor, coalitions: torch.Tensor) -> torch.Tensor:
        kept = coalitions.double()
        alone = (kept * self.own[images]).sum(1)
        return (alone + self.within * torch.sin(3 * kept @ self.weights))[:, None]


def tried(
    game: FunctionGame, sampling: Sampling = HYBRID, seed: int = 0, to_spare: bool = False
) -> Pilot:
    n_images = len(game.active)
    seeds = [1000 * seed + image for image in range(n_images)]

    def draw(price: Price):
        return estimate(game, Settings(permutations=price.permutations), seeds, by=price.by)

    return pilot(draw, sampling, COST, to_spare=to_spare)


def test_both_variances_are_found_without_bias():
    game = Images(14, 16, between=1.0, within=0.3)
    own = game.own.var(0).mean().item()  # of these images; sampling adds nothing to it on average
    found = [tried(game, seed=seed) for seed in range(40)]
    variances = np.array([one.variance for one in found])
    assert abs(variances.mean() - own) < 4 * variances.std() / math.sqrt(40)
    # what a single pair of permutations differs by, from seed to seed
    one_pair = Settings(permutations=2)
    drawn = np.stack(
        [
            one.shapley_value
            for seed in range(40)
            for one in estimate(game, one_pair, [1000 * seed + i for i in range(16)])
        ]
    ).reshape(40, 16, 14)
    sampling = np.array([one.options[0].variance for one in found])
    expected = drawn.var(0, ddof=1).mean()
    assert abs(sampling.mean() - expected) < 4 * sampling.std() / math.sqrt(40) + 0.1 * expected


def test_where_sampling_is_noisier_than_the_images_more_is_drawn():
    def rough(kept: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(1.0, 15.0, dtype=torch.float64)
        return torch.sin(3 * (kept.double() @ weights)) + kept.double() @ weights / 20

    found = tried(FunctionGame(rough, 14, 16))
    option = found.least(200, None)
    assert option.price.permutations == 64
    assert found.options[0].variance > option.variance > 0


def test_an_image_that_is_enumerated_has_no_sampling_variance():
    found = tried(Images(8, 8, between=1.0, within=0.3))  # 8 active units are exact
    assert all(option.variance == 0 for option in found.options)


PRICES = (
    Option(Price(2, "permutations", 16), 1.0, 8.0),
    Option(Price(4, "permutations"), 2.0, 4.0),
    Option(Price(4), 2.5, 1.0),
    Option(Price(8), 5.0, 0.1),
)
KNOWN = Pilot(variance=10.0, spread=1.0, options=PRICES, drawn=())


def test_sampling_adds_at_most_a_tenth_to_the_error_of_the_images():
    assert KNOWN.least(100, None).price == Price(4)  # 1.0 <= 0.21 * 10; 4.0 is not
    option = dataclasses.replace(KNOWN, variance=20.0).least(100, None)
    assert option.price == Price(4, "permutations")
    noisy = dataclasses.replace(KNOWN, variance=0.1).least(100, None)
    assert noisy.price == Price(8)  # the best there is


@pytest.mark.parametrize(
    ("n_images", "target", "expected"),
    [
        (100, 0.5, 2),  # (10 + 8) / 100 is below 0.25: the cheapest does
        (100, 0.33, 8),  # 10.89 - 10 is what the sampling may have
        (100, 0.1, 4),  # out of reach: as without a target
    ],
)
def test_a_target_is_met_as_cheaply_as_can_be(n_images, target, expected):
    assert KNOWN.least(n_images, target).price.permutations == expected


def test_with_images_to_spare_cost_times_error_is_least():
    assert KNOWN.best().price == Price(2, "permutations", 16)  # 1 * 18 < 2 * 14, 2.5 * 11, 5 * 10.1
    dear = dataclasses.replace(KNOWN, variance=0.5)
    assert dear.best().price == Price(8)


@pytest.mark.parametrize("n_labels", [1, 2, 3, 10, 16, 32])
def test_some_images_of_every_label_tell_the_error_of_a_single_pair(n_labels):
    """Labels take turns where a job takes its images."""
    price = Price(2, "permutations", told_every=16)
    n = 64 * n_labels
    told = np.array([price.of(image) == 4 for image in range(n)])
    assert told.sum() == n / 16
    assert told[:16].sum() == 1  # of few images, too
    by_label = np.bincount(np.arange(n)[told] % n_labels, minlength=n_labels)
    assert (by_label > 0).mean() > 0.8
    assert {price.of(image) for image in range(n)} == {2, 4}
    assert {Price(2).of(image) for image in range(n)} == {2}
    assert Price(8, told_every=16).of(image=5) == 8


def test_with_images_to_spare_nothing_is_tried_that_could_not_be_best():
    game = Images(14, 16, between=1.0, within=1.0)
    assert tried(game, to_spare=True).drawn == (Price(4, "permutations"),)
    assert len(tried(game).drawn) > 1  # of images that are given sampling is to add little
