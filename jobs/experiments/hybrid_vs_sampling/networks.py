"""The trained networks of the experiment, the images that calibration sets are drawn from, and
what is asked of each network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jobs.benchmarks.networks import DATA, ROOT
from shapray.config import Images, Model, Transform
from shapray.engine.trace import fold
from shapray.inputs.images import ImageSet, check_disjoint, open_images
from shapray.inputs.model import build_model
from shapray.network.check import check_group
from shapray.network.find import find_groups
from shapray.network.group import Group
from shapray.pruning.sizes import Sizes

DIGITS = ROOT / "jobs" / "data"


@dataclass(frozen=True)
class Plan:
    """What is compared on a network.

    Attributes:
        exact_max_players: the hybrid is exact on images with no more active units in a group.
        permutations: prices of sampling an image.
        samplers: "plain" antithetic permutations, "package": what the package draws.
        shares: of the multiply-adds that may stay; the first is also repaired.
        n_images: sizes of the calibration sets.
    """

    exact_max_players: int
    permutations: tuple[int, ...]
    samplers: tuple[str, ...]
    shares: tuple[float, ...]
    n_images: tuple[int, ...] = (10, 50, 250)


@dataclass(frozen=True)
class Trained:
    """A trained network and its images.

    Attributes:
        calibration: (number, seed) -> so many images, as many of every class; more images of the
            same seed hold the fewer.
        pixels, labels: the evaluation images, none of which calibration may draw.
    """

    name: str
    model: nn.Module
    folded: nn.Module
    groups: list[Group]
    sizes: Sizes
    calibration: Callable[[int | None, int], ImageSet]
    pixels: Tensor
    labels: Tensor
    plan: Plan

    @property
    def n_units(self) -> dict[str, int]:
        return {group.name: group.n_units for group in self.groups}


PLANS = {
    "digits": Plan(16, (2, 8), ("plain", "package"), (0.5,)),
    "digits_vgg": Plan(12, (2, 8), ("plain", "package"), (0.5, 0.7)),
    # a cut to half of it leaves whatever is chosen at chance if it is not repaired
    "resnet20": Plan(12, (4,), ("plain",), (0.7,), n_images=(10, 50)),
}


def load(name: str, plan: Plan | None = None) -> Trained:
    """`digits` and `digits_vgg` (jobs/data), or `resnet20` (CIFAR-10, ../shared/data).

    Calibration images are drawn from training images, as they would be where a network is pruned by
    those who trained it.
    """
    if name == "resnet20":
        factory, weights = "resnet20", DATA / "resnet20_cifar10.safetensors"
        transform = Transform(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        pool = Images(source="parquet", path=str(DATA / "cifar10_calibration.parquet"))
        rest = Images(source="parquet", path=str(DATA / "cifar10_evaluation.parquet"), limit=1000)
    else:
        factory = {"digits": "digits_cnn", "digits_vgg": "digits_vgg"}[name]
        weights = DIGITS / f"{factory}.safetensors"
        transform = Transform(mode="L")
        path = str(DIGITS / "digits.parquet")
        pool = Images(source="parquet", path=path, where={"split": "train"})
        rest = Images(source="parquet", path=path, where={"split": "evaluation"})
    model = build_model(Model(factory=f"shapray.zoo:{factory}", weights=str(weights)))

    def calibration(n_images: int | None, seed: int) -> ImageSet:
        section = pool.model_copy(update={"limit": n_images, "seed": seed})
        return open_images(section, transform, f"calibration of {name}")

    evaluation = open_images(rest, transform, f"evaluation of {name}")
    check_disjoint(calibration(None, 0), evaluation)
    pixels = evaluation.load(0, len(evaluation))
    assert evaluation.labels is not None
    found = find_groups(model, pixels[:1])
    groups = [
        group
        for group in found
        if group.reason is None
        and group.flat
        and check_group(model, group, pixels[:4], seed=0) is None
    ]
    return Trained(
        name=name,
        model=model,
        folded=fold(model, pixels[:1]),
        groups=groups,
        sizes=Sizes(model, found, pixels[:1]),
        calibration=calibration,
        pixels=pixels,
        labels=evaluation.labels,
        plan=plan or PLANS[name],
    )


def one_thread() -> None:
    """As the package's own workers: sums are then the same on every machine of a kind."""
    torch.set_num_threads(1)
