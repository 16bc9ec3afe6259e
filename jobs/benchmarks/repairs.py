"""Ways to make a cut network work, each on the same calibration images."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from jobs.benchmarks import grail
from jobs.benchmarks.draws import Trained
from shapray.network.surgery import prune_model
from shapray.pruning.repair.augment import look_alike, views
from shapray.pruning.repair.batchnorm import batchnorm
from shapray.pruning.repair.least_squares import VIEWS, least_squares

IMAGES_AT_ONCE = 50
OWN = "least_squares"
Removed = Mapping[str, Sequence[int]]  # group -> units
Made = Iterator[tuple[str, nn.Module, float | None]]
"""What was done, the network that came of it, and the ridge that it took; a network may be changed
when the next is asked for."""


class Repairs:
    """Of one network, on one draw's images."""

    def __init__(self, trained: Trained, images: Tensor) -> None:
        self.trained, self.images = trained, images
        self.reference = outputs(trained.model, images)

    def by_least_squares(self, cut: Removed) -> Made:
        model, groups = self.trained.model, self.trained.groups
        seen = views(self.images, VIEWS, seed=0, mirror=look_alike(model, self.images))
        repaired = least_squares(model, model, groups, cut, seen).network
        yield OWN, self._small(repaired, cut), None

    def bare(self, cut: Removed) -> Made:
        small = self._small(self.trained.model, cut)
        yield "none", small, None
        batchnorm(small, self.images)
        yield "batchnorm", small, None

    def by_grail(self, cut: Removed) -> Made:
        """With the ridge of the paper; with the best of some; and with BatchNorms after that."""

        def made(ridge: float) -> nn.Module:
            groups, grams = self.trained.groups, self.grams
            return self._small(
                grail.compensated(self.trained.model, groups, cut, grams, ridge), cut
            )

        yield "grail", made(grail.RIDGE), grail.RIDGE
        small, ridge = self._best(made)
        yield "grail, chosen ridge", small, ridge
        batchnorm(small, self.images)
        yield "grail, batchnorm", small, ridge

    def by_grail_step_by_step(self, cut: Removed) -> Made:
        """With the best ridge of some, and with BatchNorms after that."""

        def made(ridge: float) -> nn.Module:
            model, groups, images = self.trained.model, self.trained.groups, self.images
            return self._small(grail.step_by_step(model, groups, cut, images, ridge), cut)

        small, ridge = self._best(made)
        yield "grail, step by step", small, ridge
        batchnorm(small, self.images)
        yield "grail, step by step, batchnorm", small, ridge

    @functools.cached_property
    def grams(self) -> grail.Grams:
        """Of all layers that read a group."""
        layers = [c.module for group in self.trained.groups for c in group.consumers]
        return grail.grams_of(self.trained.model, layers, self.images)

    def _best(self, made: Callable[[float], nn.Module]) -> tuple[nn.Module, float]:
        """That which comes nearest to the whole network on the images, and its ridge."""
        found = [(made(ridge), ridge) for ridge in grail.RIDGES]
        return min(
            found, key=lambda f: grail.divergence(outputs(f[0], self.images), self.reference)
        )

    def _small(self, network: nn.Module, cut: Removed) -> nn.Module:
        return prune_model(network, self.trained.groups, cut).eval()


FAMILIES: Mapping[str, Callable[[Repairs, Removed], Made]] = {  # by the first that they make
    OWN: Repairs.by_least_squares,
    "none": Repairs.bare,
    "grail": Repairs.by_grail,
    "grail, step by step": Repairs.by_grail_step_by_step,
}


def outputs(network: nn.Module, images: Tensor) -> Tensor:
    """(n, n_classes)."""
    with torch.inference_mode():
        return torch.cat([network(part.clone()) for part in images.split(IMAGES_AT_ONCE)])
