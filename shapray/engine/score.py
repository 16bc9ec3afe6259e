"""Shapley values of a network's groups on images; whoever asks publishes them, or does not."""

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from shapray.engine.arithmetic import float32_products
from shapray.engine.network_game import NetworkSplit
from shapray.engine.precision import choose_precision
from shapray.engine.trace import fold
from shapray.network.group import Group
from shapray.shapley.coalitions import image_seed
from shapray.shapley.estimators import Estimate, Sampling, Settings, estimate
from shapray.shapley.game import NonFiniteValue
from shapray.shapley.pilot import Cost, Pilot, Price, pilot

N_SPLITS = 4  # groups whose prepared networks are kept
WEIGHTS_SHARE = 16  # of a GPU's memory, for the weights of more of them


class Scoring(Sampling, Protocol):
    """What values are asked for; the job file's `score` section is one.

    Attributes:
        value: name of the value function.
        seed: of the sampling.
    """

    @property
    def value(self) -> str: ...
    @property
    def seed(self) -> int: ...


class Scorer:
    """One network's groups, prepared when they are asked for and kept while they may be again.

    Args:
        model: in eval mode, float32, on the CPU.
        groups: those that may be asked for.
        example: (1, channels, height, width).
        device: where coalitions are evaluated.
        memory: bytes that bound batches and tables.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        example: Tensor,
        device: str | torch.device,
        memory: int,
    ) -> None:
        self.model, self.example, self.memory = model, example, memory
        self.device = torch.device(device)
        self.groups = {group.name: group for group in groups}
        self.n_splits = N_SPLITS
        if self.device.type == "cuda":  # preparing one takes as long as a task there
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            both_ways = 2 * max(1, weights)  # into the tail
            self.n_splits = max(N_SPLITS, memory // WEIGHTS_SHARE // both_ways)
        self._splits: OrderedDict[tuple[str, str], NetworkSplit] = OrderedDict()

    @functools.cached_property
    def folded(self) -> nn.Module:
        return fold(self.model, self.example)

    def choose_precision(self, sampling: Sampling) -> str:
        """One of `precision`, by measuring on this device; see there."""
        groups = list(self.groups.values())
        return choose_precision(
            self.folded, groups, self.example, self.device, self.memory, sampling=sampling
        )

    def split(self, group: str, precision: str) -> NetworkSplit:
        """The network prepared for a group."""
        key = (group, precision)
        if key not in self._splits:
            while len(self._splits) >= self.n_splits:
                self._splits.popitem(last=False)
            self._splits[key] = NetworkSplit(
                self.folded,
                self.groups[group],
                self.example,
                precision=precision,
                device=self.device,
                memory=self.memory,
            )
        self._splits.move_to_end(key)
        return self._splits[key]


@float32_products()  # of the fits; a tail that is to have others says so
def score_images(
    split: NetworkSplit,
    images: Tensor,
    labels: Tensor | None,
    ids: Sequence[str],
    scoring: Scoring,
    price: Price,
    places: Sequence[int],
) -> list[Estimate]:
    """Shapley values of a group's units on every image.

    Args:
        split: the network prepared for the group.
        images: (n, channels, height, width) float32, on any device.
        labels: (n,) int64, or None.
        ids: of the images; with the seed and the group they name an image's random stream.
        scoring: value function, estimator, seed; its permutations are not looked at.
        price: of the images that are sampled.
        places: of the images in the calibration set.
    Raises:
        ValueError: a value is not finite; names group, image and coalition.
    """
    found = list[Estimate]()
    asked = Settings(scoring.estimator, price.permutations, scoring.exact_max_players)
    numbers = [price.of(place) for place in places]
    at_once = split.images_at_once(max(numbers))
    for start in range(0, len(ids), at_once):
        here = slice(start, start + at_once)
        game = split.game(images[here], None if labels is None else labels[here], scoring.value)
        seeds = [image_seed(scoring.seed, split.group.name, image_id) for image_id in ids[here]]
        with naming(split.group.name, ids[here]):
            found += estimate(game, asked, seeds, numbers[here], price.by)
    return found


@contextlib.contextmanager
def naming(group: str, ids: Sequence[str]) -> Iterator[None]:
    """A value that is no number is one of a group and of an image with a name.

    Args:
        ids: of the game's images.
    Raises:
        ValueError: a value is not finite; names group, image and coalition.
    """
    try:
        yield
    except NonFiniteValue as error:
        raise ValueError(
            f"group {group}, image {ids[error.image]}: the value is "
            f"{error.value} with the {len(error.coalition)} units {error.coalition} kept"
        ) from error


def try_images(
    split: NetworkSplit,
    images: Tensor,
    labels: Tensor | None,
    ids: Sequence[str],
    scoring: Scoring,
    *,
    to_spare: bool,
) -> Pilot:
    """What some of a group's images, spread over all there are, tell of the price of sampling.

    Arguments and errors as of `score_images`.

    Args:
        to_spare: see `pilot`.
    """
    sampled = _OfPilot(value=scoring.value, seed=scoring.seed)

    def draw(price: Price) -> list[Estimate]:
        return score_images(split, images, labels, ids, sampled, price, range(len(ids)))

    return pilot(draw, scoring, Cost(split.head_macs, split.tail_macs), to_spare=to_spare)


@dataclass(frozen=True)
class _OfPilot(Settings):
    """A `Scoring` that samples every image."""

    value: str = ""
    seed: int = 0
