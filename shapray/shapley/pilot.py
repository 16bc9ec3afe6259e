"""What sampling the images of a group is worth: a price chosen from what a few of them tell.

The mean of a unit's Shapley values over n images is off by (B + V) / n in square: B is the variance
of the values over the images, V that of the sampling of one image, both means over the units. A
pilot estimates them. Permutations halve V when they double; pairs of coalitions do better, and by
how much has to be tried.

Costs are multiply-adds, not seconds: the same job chooses the same prices.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shapray.shapley.estimators import Estimate, Sampling, Settings, is_exact, n_sampled

FEWEST_IMAGES = 16  # in all; of fewer each one matters, and they are sampled at the usual price
ADDED_ERROR = 0.1  # that sampling may add to the error that the images make
LEAST_SHARE = 0.02  # of the images' variance: less of the sampling's is worth nothing
MOST_PERMUTATIONS = 64
TOLD_EVERY = 16  # one image of so many is sampled twice as often where one draw tells no error
# In multiply-adds of a convolution that take as long on a processor:
IMAGE_COST = 1.5e7  # to read an image and to write its row
COALITION_COST = 3e4  # around the network
FIT_COST, FIT_COST_PER_CUBE = 3e7, 100.0  # of an image's fits, and for the cube of its players


@dataclass(frozen=True)
class Price:
    """How the images of a group are sampled.

    Attributes:
        permutations: of an image, see `estimators.n_sampled`.
        by: "permutations", or "pairs" of coalitions where they can be.
        told_every: of so many images one has twice as many permutations, where these are a single
            pair, from which no error can be told; None: no image has.
    """

    permutations: int
    by: str = "pairs"
    told_every: int | None = None

    def __str__(self) -> str:
        twice = f", twice as many on one image of {self.told_every}" if self.told_every else ""
        return f"{self.permutations} permutations' worth of {self.by}{twice}"

    def of(self, image: int) -> int:
        """Permutations of an image, by its place among all."""
        if self.permutations != 2 or self.told_every is None:
            return self.permutations
        # one of every so many, in a place that a hash chooses: labels may take turns
        block, place = divmod(image, self.told_every)
        digest = hashlib.sha256(str(block).encode()).digest()
        return 4 if place == int.from_bytes(digest) % self.told_every else 2


USUAL = Price(8)


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of a group's network.

    Attributes:
        image: once per image.
        coalition: of each coalition of it.
    """

    image: int
    coalition: int


@dataclass(frozen=True)
class Option:
    """A price, and what it takes and leaves.

    Attributes:
        cost: in multiply-adds per image.
        variance: of the sampling of an image, mean over images and units.
    """

    price: Price
    cost: float
    variance: float


@dataclass(frozen=True)
class Pilot:
    """What a few images tell of a group.

    Attributes:
        variance: of Shapley values over images, mean over units, without the sampling's.
        spread: variance of the scores over the units, without what the pilot's own error adds.
        options: prices that were tried, or of which is known what they leave.
        drawn: prices at which the images were sampled to find out.
    """

    variance: float
    spread: float
    options: tuple[Option, ...]
    drawn: tuple[Price, ...]

    def sampling_at(self, price: Price) -> float:
        """Variance of the sampling at any price, at most: it falls at least as fast as the price
        rises, and pairs are no worse than permutations."""
        return min(
            option.variance * option.price.permutations / price.permutations
            for option in self.options
            if option.price.by in ("permutations", price.by)
            and (
                option.price.by == "permutations" or option.price.permutations <= price.permutations
            )
        )

    def least(self, n_images: int, target: float | None) -> Option:
        """The cheapest price for images that are all taken.

        Sampling adds at most `ADDED_ERROR` to the error that the images make; more where the target
        of the total error is met so, and less where it is met only so.
        """
        allowed = self._allowed
        if target is not None:
            left = n_images * target**2 * self.spread - self.variance
            if left > 0:  # else nothing that sampling could do meets it
                allowed = max(left, LEAST_SHARE * self.variance)
        enough = [option for option in self.options if option.variance <= allowed]
        if not enough:
            return min(self.options, key=lambda option: option.variance)
        return min(enough, key=lambda option: option.cost)

    def suffices(self) -> bool:
        """Whether some option adds no more than it may to the error of images that are given."""
        return min(option.variance for option in self.options) <= self._allowed

    @property
    def _allowed(self) -> float:
        """Variance of the sampling that adds as much as it may."""
        return ((1 + ADDED_ERROR) ** 2 - 1) * self.variance

    def best(self) -> Option:
        """The price of the least total error for what it costs, with images to spare."""
        return min(self.options, key=lambda o: o.cost * (self.variance + o.variance))


def pilot(
    draw: Callable[[Price], list[Estimate]], sampling: Sampling, cost: Cost, *, to_spare: bool
) -> Pilot:
    """Sample some images as cheaply as their own error can be told, then at higher prices while the
    sampling's error is not small beside the images'.

    Args:
        draw: estimates of images that are spread over all there are, all of them sampled.
        sampling: of the job: which images would be exact.
        cost: of the network.
        to_spare: there are more images than will be taken; then pairs are tried only while they
            could be the best way to spend on more images.
    """
    drawn = [Price(4, "permutations")]
    found = draw(drawn[0])
    n_active = np.array([int(one.active.sum()) for one in found])
    of_a_pair = 2 * _own_variances(found)
    variance, spread = _over_images(found)

    def option(price: Price, variances: np.ndarray) -> Option:
        asked = Settings(sampling.estimator, price.permutations, sampling.exact_max_players)
        exact = np.array([is_exact(k, asked) for k in n_active.tolist()])
        evaluated = np.array(
            [
                2**k if is_one else n_sampled(k, price.permutations)
                for k, is_one in zip(n_active.tolist(), exact, strict=True)
            ]
        )
        fitted = ~exact if price.by == "pairs" else np.zeros_like(exact)
        each = (
            IMAGE_COST
            + cost.image
            + evaluated * (cost.coalition + COALITION_COST)
            + fitted * (FIT_COST + FIT_COST_PER_CUBE * n_active**3.0)
        )
        return Option(price, float(each.mean()), float((variances * ~exact).mean()))

    numbers = [2**i for i in range(1, MOST_PERMUTATIONS.bit_length())]
    options = [
        option(Price(n, "permutations", TOLD_EVERY if n == 2 else None), of_a_pair / (n // 2))
        for n in numbers
    ]
    for n in numbers[1:]:
        untried = option(Price(n), np.zeros(len(n_active)))  # it leaves more than nothing
        so_far = Pilot(variance, spread, tuple(options), ())
        with_it = Pilot(variance, spread, (*options, untried), ())
        if to_spare and with_it.best() is not untried:
            break
        if not to_spare and so_far.suffices() and with_it.least(1, None) is not untried:
            break
        found = draw(untried.price)
        drawn.append(untried.price)
        if all(one.sampling != "pairs" for one in found):
            break
        options.append(option(untried.price, _own_variances(found)))
        variance, spread = _over_images(found)
    return Pilot(variance, spread, tuple(options), tuple(drawn))


def _own_variances(found: Sequence[Estimate]) -> np.ndarray:
    """Of the sampling of each image, means over the units: (n_images,)."""
    return np.array([np.square(one.standard_error).mean() for one in found])


def _over_images(found: Sequence[Estimate]) -> tuple[float, float]:
    """See `Pilot`: variance over the images, and that of the scores over the units."""
    values = np.stack([one.shapley_value for one in found])  # (n_images, n_units)
    with_noise = values.var(axis=0, ddof=1).mean()
    variance = max(0.0, float(with_noise - _own_variances(found).mean()))
    spread = max(0.0, float(values.mean(axis=0).var() - with_noise / len(found)))
    return variance, spread
