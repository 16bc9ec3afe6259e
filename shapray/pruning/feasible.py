"""Whether units can be ranked and a cut repaired as asked: said before anything is scored."""

from collections.abc import Sequence

from torch import Tensor, nn

from shapray.config import Prune
from shapray.network.group import Group
from shapray.pruning.criteria import CRITERIA, check_criterion
from shapray.pruning.criteria.inputs import AsScored
from shapray.pruning.repair.distill import FEWEST_IMAGES, check_trainable


def check_ways(
    prune: Prune,
    network: nn.Module,
    groups: Sequence[Group],
    image: Tensor,
    as_scored: AsScored | None = None,
) -> None:
    """The network allows the criteria that it is to be ranked by, and the training.

    Args:
        network: in eval mode, float32.
        groups: those to score.
        image: (1, channels, height, width) float32, on the network's device.
        as_scored: see `criterion`.
    Raises:
        ValueError: names the key of `prune`.
    """
    for name in prune.rank_by:
        if name in CRITERIA:
            try:
                check_criterion(name, network, groups, image, as_scored)
            except ValueError as error:
                raise ValueError(f"rank_by: {error}") from error
    if "distill" in prune.repair:
        try:
            check_trainable(network, image)
        except ValueError as error:
            raise ValueError(f"repair: distill: {error}") from error


def check_images(prune: Prune, n_images: int, n_held_back: int, labelled: bool) -> None:
    """There are images and labels enough to distill with.

    Args:
        n_images: for calibration.
        n_held_back: of them, for a target that is measured.
        labelled: they have labels.
    Raises:
        ValueError: names the key of `prune`.
    """
    if "distill" not in prune.repair:
        return
    if n_images - n_held_back < FEWEST_IMAGES:
        raise ValueError(
            f"repair: distill needs {FEWEST_IMAGES} calibration images, and there are {n_images}"
            + f", of which prune.{prune.target[0]} holds {n_held_back} back" * (n_held_back > 0)
        )
    if prune.distill.labels and not labelled:
        raise ValueError(
            "distill.labels: true, and the calibration images have none; give them "
            "(data.calibration.label_column in a job), or leave it false"
        )
