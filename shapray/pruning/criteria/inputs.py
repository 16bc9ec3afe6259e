"""What every criterion takes."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shapray.engine.score import Scorer, Scoring
from shapray.inputs.lazy import Pixels
from shapray.network.group import Group
from shapray.shapley.pilot import Price


@dataclass(frozen=True)
class AsScored:
    """How Shapley values of the images are computed; a job's own are.

    Attributes:
        scoring: value function, estimator, seed.
        prices: group -> what its images are sampled at.
        ids: of the images, in their order; with the seed they name the random streams.
        places: of the images in the calibration set.
    """

    scoring: Scoring
    prices: Mapping[str, Price]
    ids: Sequence[str]
    places: Sequence[int]


@dataclass(frozen=True)
class Inputs:
    """A network, its groups, and images to see it work; see `criterion`."""

    model: nn.Module
    groups: Sequence[Group]
    images: Pixels
    labels: Tensor | None
    seed: int
    batch: int
    memory: int
    as_scored: AsScored | None

    @functools.cached_property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    @functools.cached_property
    def scorer(self) -> Scorer:
        """The groups prepared for coalitions of their units."""
        example = self.images[:1].to(self.device)
        return Scorer(self.model, self.groups, example, self.device, self.memory)

    def batches(self) -> Iterator[Tensor]:
        """The images by `batch`, on the network's device; each is a copy, which may be changed."""
        for part in self.images.split(self.batch):
            yield part.to(self.device, copy=True)

    @functools.cached_property
    def targets(self) -> Tensor:
        """(n_images,) int64, on the network's device: the labels, or the classes the network
        predicts."""
        if self.labels is not None:
            return self.labels.to(self.device)
        with torch.inference_mode():
            predicted = torch.cat([self.model(part).argmax(1) for part in self.batches()])
        return predicted.clone()  # a tensor of inference mode is none for a gradient
